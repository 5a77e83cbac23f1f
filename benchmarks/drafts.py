"""What two rules of decoding change: the first attempts at positive answers, without and with them.

    python benchmarks/drafts.py runs/qwen15 --limit 80       # writes runs/qwen15-plain and others

The rules are those of a chat model's answers (synthesis/answers.py): none ends before so many
tokens, and no run of so many tokens comes twice in prompt and answer. A run's first instructions
are answered once under each; its lists and judgements are taken from its record.
"""

import sys
from collections import Counter
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.refine import gained, rejects_of, run_again
from benchmarks.script import exit_code
from evals.report import markdown_table
from support.commandline import Parser, number
from support.files import read_jsonl
from synthesis import answers
from synthesis.seeds import SHIPPED

ONCE = {refine: ("drawn",) for refine in answers.ROUNDS}
LEAST, NGRAM = answers.LEAST_TOKENS, answers.NO_REPEAT_NGRAM
ARMS = {"neither": (0, 0), "no run repeats": (0, NGRAM), "no early end": (LEAST, 0),
        "both": (LEAST, NGRAM)}


def first_attempts(out: Path, limit: int) -> dict[str, Counter]:
    """{"claims" or "deeds": verdicts on the only attempt at each of the run's first requests}."""
    why = {row["id"].removesuffix("/positive/0"): row["reason"] for row in rejects_of(out)
           if row["stage"] == "answers"}
    asked = [item for _, item in read_jsonl(out / "instructions.jsonl")
             if item["id"].startswith("i/")]  # others are benign
    found = {"deeds": Counter(), "claims": Counter()}
    for item in asked[:limit]:
        kind = "claims" if item["ask"] == "claims" else "deeds"
        found[kind][why.get(item["id"], "accepted")] += 1
    return found


def compare(options) -> None:
    table = [("requests", "rule", "attempts", "accepted % [95 %]", "others")]
    for arm in options.arms:
        least, ngram = ARMS[arm]
        with patch.multiple(answers, LEAST_TOKENS=least, NO_REPEAT_NGRAM=ngram, ROUNDS=ONCE):
            out = run_again(Path(options.run), arm.replace(" ", "-"), seeds_file=options.seeds_file,
                            limit=options.limit, triplets=options.limit, positives_only=True,
                            benign_share=0.0, no_refine=True)
        table += [(kind, arm, *gained(verdicts))
                  for kind, verdicts in first_attempts(out, options.limit).items()]
    print(markdown_table([table[0], *sorted(table[1:], key=lambda row: row[0], reverse=True)]))


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
