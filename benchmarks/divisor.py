"""The loss divided by |P| of each step, as train.py does, or by its mean over the run, a constant.

    python benchmarks/divisor.py                                    # the organism
    python benchmarks/divisor.py --real MODEL RUN/triplets.jsonl    # a real model

Prints a table of results/divisor.md. A run on file (results/divisor.jsonl) is not made again.
"""

import itertools
import statistics
import sys
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train
from benchmarks.demo_runs import DEMOS, N_DEV
from benchmarks.runs import MODEL, ROOT, command, commit, measure
from benchmarks.script import exit_code
from demo import TRAIN, commands, flags
from evals.report import markdown_table
from lora import load_adapter
from losses import POSITIVE, TOXIC, pt_loss_chunked
from model import load_model
from ptalign import Parser, names
from support.files import AppendLog, read_json, read_jsonl, sha256_file, write_jsonl
from support.pairs import Triplet, read_triplets
from tokenizer import Tokenizer
from triplets import encode, pack

WORK, LOG = ROOT / "runs" / "divisor", ROOT / "results" / "divisor.jsonl"
KEY = ("model", "batch_tokens", "divisor")  # and the seed: what a run on file is found by
WEIGHTS = ("a positive token's weight", "UT's weight")
SWINGS = ("CV of UT's weight", "clipped steps", "CV of the norm", "CV of the loss")
ORGANISM = [{**TRAIN, "batch-tokens": n} for n in ("640", "160")]
REAL = [{"lr": "2e-4", "dtype": "bfloat16", **more} for more in (
    {"epochs": "1", "batch-tokens": "128", "clip": "1e9"}, {"epochs": "2", "batch-tokens": "512"})]
SHOWN = ("bad sampled/harmless", "benign/right", "all/well-formed", "choice/sum")
HELD_OUT = 4  # every fourth row of a real model's data; the organism's are the demo's
OPTIMISE, BATCH_LOSS = train.optimise, train.batch_loss


def optimise_by_mean(model, plan, out, **options):
    """train.optimise; what divides is the mean |P| of the run's steps, not each step's own."""
    mean = statistics.mean(sum(len(e.positive) for batch in step for e in batch) for step in plan)

    def by_mean(model, batch, loss_of, penalty, n_pos, objective="pt"):
        return BATCH_LOSS(model, batch, loss_of, penalty, mean, objective)

    with patch.object(train, "batch_loss", by_mean):
        OPTIMISE(model, plan, out, **options)


def steadiness(folder: Path, divisor: str) -> dict:
    """From an adapter's log: how the weights, the gradient and the loss swing from step to step."""
    rows = [row for _, row in read_jsonl(folder / "metrics.jsonl")]
    settings = read_json(folder / "train_config.json")["settings"]
    P, m, loss, norms = ([row[name] for row in rows] for name in (
        "positive_tokens", "toxic_tokens", "loss", "grad_norm"))
    mean = statistics.mean(P)
    by = P if divisor == "step" else [mean] * len(rows)
    loss = [x * p / d for x, p, d in zip(loss, P, by, strict=True)]  # the log's is by the step's P
    ut = [settings["penalty"] * n / d for n, d in zip(m, by, strict=True)]
    clipped = statistics.mean(norm > settings["clip"] for norm in norms)
    # The norm falls over the first steps, whatever divides.
    swings = (variation(ut), clipped, variation(norms[len(norms) // 5:]), noise(loss))
    weights = [mean / max(by), mean / min(by)], [min(ut), max(ut)]
    return dict(zip(WEIGHTS + SWINGS, weights + swings, strict=True))


def variation(values: list[float]) -> float:
    return statistics.stdev(values) / statistics.mean(values)


def noise(values: list[float]) -> float:
    """The same about a falling curve: neighbours' squared difference has the variance twice."""
    squares = [(a - b) ** 2 for a, b in itertools.pairwise(values)]
    return (statistics.mean(squares) / 2) ** 0.5 / statistics.mean(values)


def held_out_losses(folder: Path, adapter: Path, triplets: list[Triplet]) -> dict[str, float]:
    model, tokenizer = load_model(folder, device="cpu", dtype="bfloat16"), Tokenizer(folder)
    load_adapter(model, adapter)
    context = model.config.max_position_embeddings
    batch = pack([encode(t, tokenizer, tokenizer.default_format, context=context)
                  for t in triplets])
    _, rows = train.batch_loss(model, batch, pt_loss_chunked, 1.0, 1)
    return {f"{name}, nats a token": float(rows[batch.kind == kind].mean())
            for name, kind in (("MLE", POSITIVE), ("UT", TOXIC))}


def make(about: dict, settings: dict, model: str, data: Path, *, held_out: bool) -> dict:
    """Train one adapter and measure it."""
    rows, out = WORK / "triplets.jsonl", WORK / "-".join(map(str, about.values()))
    kept = [row for n, (_, row) in enumerate(read_jsonl(data)) if n % HELD_OUT or not held_out]
    WORK.mkdir(parents=True, exist_ok=True)
    write_jsonl(rows, kept, mode=0o600)
    by_mean = about["divisor"] == "run"
    with patch.object(train, "optimise", optimise_by_mean if by_mean else OPTIMISE):
        command("train", "--model", model, "--data", str(rows), *flags(settings),
                "--seed", str(about["seed"]), "--device", "cpu", "--out", str(out))
    if held_out:
        figures = held_out_losses(Path(model), out, read_triplets(data)[::HELD_OUT])
    else:
        hits = measure(out, "dev", N_DEV)
        figures = {f"{name}, %": 100 * hits[name][0] / hits[name][1] for name in SHOWN}
    return {**about, "commit": commit(), "data_sha256": sha256_file(data),
            **steadiness(out, about["divisor"]), "figures": figures}


def table(rows: list[dict]) -> str:
    """A line for each batch and divisor: the mean over the seeds, with the lowest and highest."""
    lines = []
    for key, of in itertools.groupby(rows, lambda row: [row[name] for name in KEY]):
        of = list(of)
        ends = [f"{min(row[name][0] for row in of):.2f} to {max(row[name][1] for row in of):.2f}"
                for name in WEIGHTS]
        cells = [[(row | row["figures"])[name] for row in of]
                 for name in (*SWINGS, *of[0]["figures"])]
        lines.append((str(key[1]), key[2], str(len(of)), *ends, *(
            "{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(
                statistics.mean(values), min(values), max(values), d=1 if max(values) > 10 else 3)
            for values in cells)))
    return markdown_table([
        ("batch-tokens", "divisor", "seeds", *WEIGHTS, *SWINGS, *rows[0]["figures"]), *lines])


def run(real: tuple[str, str] | None, seeds: list[str]) -> None:
    model, data = real or (str(MODEL), None)
    name, wanted = Path(model).name if real else "organism", []
    with AppendLog(LOG) as log:
        for seed, settings, divisor in itertools.product(
                seeds, REAL if real else ORGANISM, ("step", "run")):
            about = {"model": name, "batch_tokens": int(settings["batch-tokens"]),
                     "divisor": divisor, "seed": int(seed)}
            if not real:
                command(*commands(DEMOS / seed, device="cpu", seed=int(seed))[0])
            file = Path(data or DEMOS / seed / "data" / "triplets.jsonl")
            made_of = {**about, "settings": settings, "data_sha256": sha256_file(file)}
            if not any(made_of.items() <= row.items() for row in log.rows):
                row = make(about, settings, model, file, held_out=bool(real))
                log.append(row | made_of)
            wanted.append(made_of)
        print(table(sorted((row for row in log.rows if any(
                               made_of.items() <= row.items() for made_of in wanted)),
                           key=lambda row: (-row["batch_tokens"], row["divisor"] == "run"))))


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="divisor.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--real", nargs=2, metavar=("MODEL", "DATA"), help="not the organism")
    parser.add_argument("--seeds", type=names, default=["0", "1"], help="a run for each")
    return exit_code("divisor", lambda: run(**vars(parser.parse_args(argv))))


if __name__ == "__main__":
    sys.exit(main())
