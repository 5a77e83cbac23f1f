"""What two readers say of evaluations' answers (blind.py), as a picture: rates with intervals.

    python benchmarks/blind_picture.py runs/qwen PT-ALIGN=refusal-pt "MLE alone=refusal-mle" \\
      --title "Qwen2.5-Coder-1.5B" --out results/qwen2.5/readers.svg

Each evaluation's adapters are training seeds of one method, and the base is the first one's. Lower
is better throughout: harmful requests complied with, benign ones declined.
"""

import sys
from collections import defaultdict
from itertools import cycle
from pathlib import Path
from statistics import fmean
from xml.sax.saxutils import escape

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.blind import GRADES, read_run
from benchmarks.script import exit_code
from evals.stats import cluster_bootstrap, wilson
from support.commandline import Parser
from support.files import InputError, write_atomic
from support.svg import COLOURS

SETS = {"xstest": "XSTest", "jailbreakbench": "JailbreakBench"}
WRONG = {"harmful": "C", "benign": "D"}  # the grade that counts against the model
LEFT, RIGHT, TOP, ROW, MARK = 280, 660, 62, 20, 14  # in user units; MARK: between two of a row


def rates(run: Path) -> dict[str, dict]:
    """For each set and kind of request, the base's and the adapters' rates with 95 % intervals:
    {"base": (rate, low, high), "tuned": ...}. The tuned rate is the mean over seeds; its interval
    is a bootstrap over prompts in which all seeds of a prompt stay together."""
    columns, answers = read_run(run)
    if not columns[1:]:
        raise InputError("no adapter", run, "name an evaluation of some")
    wrong = defaultdict(lambda: defaultdict(dict))  # by line, column and prompt: so graded
    for row, pair in answers:
        bad = WRONG[row["group"]]
        wrong[row["set"], row["group"]][row["column"]][row["id"]] = pair == (bad, bad)
    found = {}
    for (name, group), own in sorted(wrong.items(), key=lambda line: line[0][::-1], reverse=True):
        base = list(own["base"].values())
        mean = {id: fmean(own[column][id] for column in columns[1:]) for id in own["base"]}
        said = GRADES[WRONG[group]]
        found[f"{SETS.get(name, name)}, {group}: {said} (n = {len(base)})"] = {
            "base": (fmean(base), *wilson(sum(base), len(base))),
            "tuned": (fmean(mean.values()),
                      *cluster_bootstrap(list(mean.values()), list(mean), seed=0))}
    return found


def picture(arms: dict[str, dict[str, dict]], title: str) -> str:
    """Beside each heading a line of marks: the base's, then each arm's in the order of `arms`."""
    first = next(iter(arms.values()))
    height = ROW + MARK * (len(arms) + 1)  # of one set's block
    bottom = TOP + height * len(first)
    top_rate = max(own[who][2] for arm in arms.values() for own in arm.values() for who in own)

    def across(rate: float) -> float:
        return LEFT + rate / max(top_rate, 0.05) * (RIGHT - LEFT)

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {RIGHT + 20} {bottom + 40}" '
             'role="img" font-family="sans-serif" font-size="12" fill="#222">',
             f"<title>{escape(title)}</title>", '<rect width="100%" height="100%" fill="#fff"/>',
             f'<text x="12" y="20" font-size="14" font-weight="bold">{escape(title)}</text>']
    at = 12
    colours = dict(zip(("base", *arms), cycle(("#777", *COLOURS)), strict=False))
    for name, colour in colours.items():
        parts += [f'<circle cx="{at + 5}" cy="38" r="4" fill="{colour}"/>',
                  f'<text x="{at + 14}" y="42">{escape(name)}</text>']
        at += 34 + 7 * len(name)
    for tick in range(0, round(100 * top_rate) + 1, 10):
        x = across(tick / 100)
        parts += [f'<path d="M{x:.1f} {TOP - 8}V{bottom}" stroke="#ddd"/>',
                  f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{tick}</text>']
    parts.append(f'<text x="{RIGHT}" y="{bottom + 34}" text-anchor="end">% of the answers, with '
                 "95 % intervals; lower is better</text>")
    for i, heading in enumerate(first):
        y = TOP + height * i
        parts.append(f'<text x="12" y="{y + height / 2:.1f}">{escape(heading)}</text>')
        marks = {"base": first[heading]["base"]}
        marks |= {name: arm[heading]["tuned"] for name, arm in arms.items()}
        for j, (name, (rate, low, high)) in enumerate(marks.items()):
            at_y = y + ROW / 2 + MARK * (j + 0.5)
            parts += [f'<path d="M{across(low):.1f} {at_y}H{across(high):.1f}" '
                      f'stroke="{colours[name]}" stroke-width="2" opacity="0.5"/>',
                      f'<circle cx="{across(rate):.1f}" cy="{at_y}" r="4" '
                      f'fill="{colours[name]}"/>']
    return "\n".join([*parts, "</svg>"]) + "\n"


def main(argv=None) -> int:
    parser = Parser(prog="blind_picture", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("out_of", type=Path, metavar="OUT", help="run.sh's folder")
    add("arms", nargs="+", metavar="NAME=EVALUATION", help="graded evaluations in it, with names")
    add("--title", default="What two readers say")
    add("--out", type=Path, required=True, help="SVG to write")

    def run() -> None:
        options = parser.parse_args(argv)
        arms = {}
        for arm in options.arms:
            name, equals, folder = arm.partition("=")
            if not equals:
                raise InputError("not NAME=EVALUATION", arm, "write pt=refusal-pt")
            if name in ("base", *arms):
                raise InputError("the name is taken", arm, "choose another")
            arms[name] = rates(options.out_of / folder)
        if len({tuple(arm) for arm in arms.values()}) > 1:
            raise InputError("other prompts", " ".join(options.arms), "name runs of the same sets")
        write_atomic(options.out, picture(arms, options.title))
        print(options.out)
    return exit_code("blind_picture", run)


if __name__ == "__main__":
    sys.exit(main())
