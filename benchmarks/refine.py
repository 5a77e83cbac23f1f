"""Rewriting with a reason against drawing again: what each gives of the answers that a gate failed.

    python benchmarks/refine.py runs/qwen15 --limit 150      # writes runs/qwen15-redraw

A finished run's first two attempts are taken from its record and made again nowhere. What failed
then for a reason to be told went back to the model; here the same items are drawn once more from
the plain prompt, at the same temperature. Prints both, by side: a toxic side's items are not quite
the same, since other positive answers let other requests through.
"""

import contextlib
import io
import shutil
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import synth
from benchmarks.script import exit_code
from evals.report import markdown_table
from evals.stats import wilson
from evals.texts import interval
from support.commandline import Parser, number
from support.files import (
    InputError,
    read_jsonl,
    read_object,
    refusing,
    sha256_file,
    write_json,
)
from support.runs import new_folder
from synthesis.seeds import SHIPPED
from synthesis.session import PROMPTS

SETTINGS = ("model", "triplets", "domains", "positives_only", "no_thoughts", "benign_share",
            "format", "round_calls", "block", "device", "dtype", "base_dtype", "seed")  # of the run
KEPT = ("calls.jsonl", "calls.toxic.jsonl")


def run_again(run: Path, name: str, *, seeds_file: Path, limit: int, **changes) -> Path:
    """The folder RUN-NAME: the run's first instructions again, under settings with these changes.
    What is on record is made again nowhere."""
    with refusing((KeyError, TypeError), "not a run of synth", run, "name one"):
        record = read_object(run / "config.json", remedy="name a run of synth")
        settings = record["settings"]
        seeds, known = settings["seeds_sha256"], {key: settings[key] for key in SETTINGS}
    if "endpoint" in settings:
        raise InputError("made by a server", run, "take another run")
    if seeds != sha256_file(seeds_file):
        raise InputError("not made from these seeds", run, "name its own by --seeds-file")
    out = run.with_name(f"{run.name}-{name}")
    if not out.exists():
        with new_folder(out) as folder:
            for log in KEPT:
                shutil.copy(run / log, folder / log)
            write_json(folder / "config.json", {**record, "settings": settings | changes})
    with contextlib.redirect_stdout(io.StringIO()):  # its report
        synth.synth(out=str(out), limit=limit, seeds_file=str(seeds_file), dry_run=False, show=None,
                    show_toxic=False, fresh=False, **(known | changes))
    return out


def rejects_of(run: Path) -> list[dict]:
    return [row for _, row in read_jsonl(run / "rejects.jsonl")]


def last_attempts(run: Path, side: str) -> Counter:
    """Verdicts on the third attempts at items whose second one failed for a reason to be told. It
    is told of deeds alone: the others are answered without rules."""
    deeds = {item["id"] for _, item in read_jsonl(run / "instructions.jsonl")
             if item["id"].startswith("i/") and item["ask"] != "claims"}
    of: dict[str, dict[str, str]] = {"1": {}, "2": {}}  # attempt -> item -> why it was turned down
    for row in rejects_of(run):
        if row["stage"] == "answers":
            item, own, attempt = row["id"].rsplit("/", 2)
            if own == side and attempt in of and (item in deeds or side == "toxic"):
                of[attempt][item] = row["reason"]
    return Counter(of["2"].get(item, "accepted") for item, reason in of["1"].items()
                   if reason in PROMPTS["faults"])


def gained(verdicts: Counter) -> list[str]:
    """Accepted of all, and the commonest reasons against the others."""
    n, k = verdicts.total(), verdicts["accepted"]
    others = Counter({reason: n for reason, n in verdicts.items() if reason != "accepted"})
    return [str(n), interval(k / n, wilson(k, n)) if n else "-",
            ", ".join(f"{reason} {n}" for reason, n in others.most_common(4))]


def compare(options) -> None:
    run, again = Path(options.run), {"seeds_file": options.seeds_file, "limit": options.limit}
    arms = {"rewritten with the reason": run_again(run, "rewrite", no_refine=False, **again),
            "drawn again": run_again(run, "redraw", no_refine=True, **again)}
    table = [("answers", "third attempt", "attempts", "accepted % [95 %]", "others")]
    table += [(side, arm, *gained(last_attempts(own, side)))
              for side in ("positive", "toxic") for arm, own in arms.items()]
    print(markdown_table(table))


def main(argv=None) -> int:
    parser = Parser(prog="refine", description=__doc__.partition("\n")[0])
    parser.add_argument("run", help="folder of a finished synth")
    parser.add_argument("--limit", type=number(int, least=1), default=150,
                        help="instructions (default: %(default)s)")
    parser.add_argument("--seeds-file", type=Path, default=SHIPPED, help="the run's own")
    return exit_code("refine", lambda: compare(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
