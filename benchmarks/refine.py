"""Rewriting with a reason against drawing again: what each gives of the answers that a gate failed.

    python benchmarks/refine.py runs/qwen15 --limit 150      # writes runs/qwen15-redraw

A finished run's first two attempts are taken from its record and made again nowhere. Its last
attempts went back to the model with the reason; here the same items are drawn once more from the
plain prompt, at the same temperature. Prints both, by side.
"""

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import synth
from benchmarks.script import exit_code
from evals.report import markdown_table
from evals.stats import wilson
from evals.texts import interval
from support.commandline import Parser, number
from support.files import read_json
from synthesis.session import PROMPTS

CALLS = ("calls.jsonl", "calls.toxic.jsonl")


def run_again(run: Path, limit: int, *, faults: dict[str, str]) -> dict:
    """The report of the run's first `limit` instructions, with these reasons told to the model."""
    out = run.with_name(f"{run.name}-{'rewrite' if faults else 'redraw'}")
    out.mkdir(exist_ok=True)
    for name in CALLS:
        if not (out / name).exists():
            shutil.copy(run / name, out / name)
    settings = read_json(run / "config.json")["settings"]
    PROMPTS["faults"] = faults
    synth.synth(
        model=settings["model"], out=str(out), triplets=settings["triplets"], limit=limit,
        domains=None, seeds_file=None, positives_only=False, format=settings["format"],
        benign_share=settings["benign_share"], block=settings["block"], dtype=settings["dtype"],
        device=settings["device"], seed=settings["seed"], no_thoughts=False, dry_run=False,
        show=None, show_toxic=False, fresh=False)
    return read_json(out / "report.json")["attempts"]


def gained(rounds: dict[str, dict[str, int]]) -> list[str]:
    """Accepted of all last attempts, and the commonest reasons against the others."""
    counts = dict(rounds["refined"])
    n, k = sum(counts.values()), counts.pop("accepted", 0)
    reasons = sorted(counts, key=counts.get, reverse=True)[:4]
    return [str(n), interval(k / n, wilson(k, n)) if n else "-",
            ", ".join(f"{reason} {counts[reason]}" for reason in reasons)]


def compare(options) -> None:
    run = Path(options.run)
    arms = {"rewritten with the reason": run_again(run, options.limit, faults=PROMPTS["faults"]),
            "drawn again": run_again(run, options.limit, faults={})}
    table = [("answers", "last attempt", "attempts", "accepted % [95 %]", "others")]
    table += [(side, arm, *gained(sides[side])) for side in ("positive", "toxic", "benign")
              for arm, sides in arms.items()]
    print(markdown_table(table))


def main(argv=None) -> int:
    parser = Parser(prog="refine", description=__doc__.partition("\n")[0])
    parser.add_argument("run", help="folder of a finished synth")
    parser.add_argument("--limit", type=number(int, least=1), default=150,
                        help="instructions (default: %(default)s)")
    options = parser.parse_args(argv)
    return exit_code("refine", lambda: compare(options))


if __name__ == "__main__":
    sys.exit(main())
