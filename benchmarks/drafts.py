"""What two rules of decoding change: the first attempts at positive answers, without and with them.

    python benchmarks/drafts.py runs/qwen15 --limit 80       # writes runs/qwen15-neither and others

The rules are those of the seeds file (synthesis/seeds.py): no answer ends before so many tokens,
and no run of so many tokens comes twice. A run's first requests for deeds are answered once under
each; its lists and judgements are taken from its record.
"""

import sys
from collections import Counter
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))

import synth
from benchmarks.refine import gained, rejects_of, run_again
from benchmarks.script import exit_code
from evals.report import markdown_table
from support.commandline import Parser, number
from support.files import read_jsonl
from synthesis import answers
from synthesis.seeds import SHIPPED, read_seeds

ONCE = {refine: ("drawn",) for refine in answers.ATTEMPTS}
ARMS = {"neither": ("min_new_tokens", "no_repeat_ngram"), "no run repeats": ("min_new_tokens",),
        "no early end": ("no_repeat_ngram",), "both": ()}  # which of them are off


def first_attempts(out: Path, limit: int) -> Counter:
    """Verdicts on the only attempt at each of the run's first requests. Claims are left out: they
    are answered without examples."""
    why = {row["id"].removesuffix("/positive/0"): row["reason"] for row in rejects_of(out)
           if row["stage"] == "answers"}
    asked = [item for _, item in read_jsonl(out / "instructions.jsonl")
             if item["id"].startswith("i/")]  # others are benign
    return Counter(why.get(item["id"], "accepted") for item in asked[:limit]
                   if item["ask"] != "claims")


def compare(options) -> None:
    table = [("rule", "attempts", "accepted % [95 %]", "others")]
    seeds = read_seeds(options.seeds_file)
    for arm in options.arms:
        own = seeds._replace(**dict.fromkeys(ARMS[arm], 0))
        with patch.object(synth, "read_seeds", lambda _, own=own: own), patch.object(
                answers, "ATTEMPTS", ONCE):
            out = run_again(Path(options.run), arm.replace(" ", "-"), seeds_file=options.seeds_file,
                            limit=options.limit, triplets=options.limit, positives_only=True,
                            benign_share=0.0, no_refine=True)
        table.append((arm, *gained(first_attempts(out, options.limit))))
    print(markdown_table(table))


def main(argv=None) -> int:
    parser = Parser(prog="drafts", description=__doc__.partition("\n")[0])
    parser.add_argument("run", help="folder of a synth")
    parser.add_argument("--limit", type=number(int, least=1), default=80,
                        help="instructions (default: %(default)s)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM",
                        help=f"of {', '.join(map(repr, ARMS))}")
    parser.add_argument("--seeds-file", type=Path, default=SHIPPED, help="the run's own")
    return exit_code("drafts", lambda: compare(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
