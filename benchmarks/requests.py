"""What each domain gives: the requests that a model writes from a file of seeds, and their fate.

    python benchmarks/requests.py --model MODEL --calls 40 --out runs/requests synthesis/seeds.json

Several files of seeds stand side by side, on the same calls. No answer is written. A request is
taken as inducing, judged harmless (and kept for the benign rows), or turned down by a judge; what
the rules remove before that, such as repetitions, is not counted. It may be given again.
"""

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ptalign
from benchmarks.script import exit_code
from config import read_config
from evals.report import markdown_table
from model import resolve_device, resolve_dtype
from support.hub import model_folder, model_identity
from synth import BLOCK, Synthesis
from synthesis.ledger import Ledger, local_model
from synthesis.seeds import read_seeds
from synthesis.session import Session
from tokenizer import Tokenizer

FATES = ("inducing", "harmless", "turned down")


def fates(folder: Path, seeds: Path, out: Path, calls: int, seed: int) -> dict[str, Counter]:
    """{domain: how many requests met each of FATES} of one round of so many calls."""
    tokenizer, config, device = Tokenizer(folder), read_config(folder), resolve_device("auto")
    dtype, read = resolve_dtype("auto", device), read_seeds(seeds)
    session = Session(tokenizer, read, seed=seed, domains=read.domains, round_calls=calls,
                      context=config.max_position_embeddings, format=tokenizer.default_format)
    out.mkdir(parents=True, exist_ok=True)
    make = local_model(folder, tokenizer, device=str(device), dtype=dtype, format=session.format)
    session.ledger = Ledger(out, model_identity(folder) | {"dtype": dtype}, make, seed=seed,
                            block=BLOCK[device.type])
    requests = Synthesis(session).requests
    requests.next_round()
    session.ledger.close()
    counts = {domain.name: Counter() for domain in read.domains if domain.kind != "benign"}
    for fate, items in zip(FATES, (requests.items, requests.spilled), strict=False):
        for item in items:
            counts[item.domain][fate] += 1
    for row in session.rejects:
        if row["stage"] == "judge":
            counts[row["id"].split("/")[0]]["turned down"] += 1
    return counts


def table(found: dict[str, dict[str, Counter]]) -> str:
    """Domains below each other, files of seeds beside each other, and a line of sums."""
    domains = dict.fromkeys(domain for counts in found.values() for domain in counts)
    rows = [("domain", *(f"{name}: {fate}" for name in found for fate in FATES))]
    for domain in domains:
        rows.append((domain, *(str(counts.get(domain, Counter())[fate])
                               for counts in found.values() for fate in FATES)))
    rows.append(("all", *(str(sum(own[fate] for own in counts.values()))
                          for counts in found.values() for fate in FATES)))
    return markdown_table(rows)


def main(argv=None) -> int:
    parser = ptalign.Parser(prog="requests", description=__doc__.partition("\n")[0])
    parser.add_argument("seeds", nargs="+", type=Path, help="files of seeds")
    parser.add_argument("--model", type=ptalign.path, required=True, help="folder or hub id")
    parser.add_argument("--calls", type=ptalign.count, default=40, help="lists of requests asked")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder of the model's calls")

    def run() -> None:
        options = parser.parse_args(argv)
        folder = model_folder(options.model)
        print(table({path.stem: fates(folder, path, options.out / path.stem, options.calls,
                                      options.seed) for path in options.seeds}))
    return exit_code("requests", run)


if __name__ == "__main__":
    sys.exit(main())
