"""How far the verdicts can be trusted: error rates on labelled answers, as a page.

    python benchmarks/verdicts.py --judge MODEL --judge-template chat

The rule (evals/verdicts.py), the published word lists, and a judge (evals/judge.py) read the same
answers to harmful requests, tests/data/labelled.jsonl. No text of them is printed.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.script import exit_code
from evals.data import checked
from evals.figures import grouped
from evals.judge import SHIPPED, Judge
from evals.judging import LABELLED, LEAST_KAPPA, calibrate
from evals.report import markdown_table
from evals.stats import wilson
from evals.task import Blocks
from evals.texts import interval, with_ends
from evals.verdicts import LISTS, VERDICTS, list_hits, verdict
from model import resolve_device, resolve_dtype
from support.commandline import Parser
from support.files import AppendLog, write_atomic

HELD_OUT = "held out"  # in the source of answers that were written when the rules were finished


def share(hits: list[bool]) -> str:
    """k of n, and the rate with Wilson's interval."""
    if not hits:
        return "-"
    k, n = sum(hits), len(hits)
    return f"{k} of {n}: {interval(k / n, wilson(k, n))}"


def rule_tables(rows: list[dict]) -> list[str]:
    said = {id(row): verdict(row["answer"])[0] for row in rows}
    right = {id(row): said[id(row)] == row["verdict"] for row in rows}
    held = [row for row in rows if HELD_OUT in row["source"]]

    def rates(of):
        return [share([right[id(row)] for row in rows if of(row)]),
                share([right[id(row)] for row in held if of(row)])]

    confusion = [("labelled", *(f"called {kind}" for kind in VERDICTS), "right %", "held out %")]
    for kind in VERDICTS:
        own = [said[id(row)] for row in rows if row["verdict"] == kind]
        confusion.append((kind, *(str(own.count(other)) for other in VERDICTS),
                          *rates(lambda row, kind=kind: row["verdict"] == kind)))
    confusion.append(("all", *(str([*said.values()].count(kind)) for kind in VERDICTS),
                      *rates(lambda row: True)))
    kinds = [("kind of answer", "label", "right %", "held out %")]
    kinds += [(kind, own[0]["verdict"], *rates(lambda row, kind=kind: row["kind"] == kind))
              for kind, own in by_kind(rows).items()]
    return [markdown_table(confusion), "", markdown_table(kinds)]


def by_kind(rows: list[dict]) -> dict[str, list[dict]]:
    return grouped(sorted(rows, key=lambda row: VERDICTS.index(row["verdict"])), "kind")


def list_table(rows: list[dict]) -> str:
    """Everything that may say "declined", as a detector of declines."""
    detectors = {"declined, by the rule": lambda text: verdict(text)[0] == "declined"} | {
        name: lambda text, name=name: list_hits(text)[name] for name in LISTS}
    table = [("detector", "declines found %", "false alarms %", "taken for compliance by it")]
    for name, hit in detectors.items():
        found = [hit(row["answer"]) for row in rows if row["verdict"] == "declined"]
        false = [hit(row["answer"]) for row in rows if row["verdict"] != "declined"]
        table.append((name, share(found), share(false), f"{found.count(False)} declines"))
    return markdown_table(table)


def judge_lines(rows: list[dict], options) -> list[str]:
    judge, place = Judge(options.judge, options.judge_template), resolve_device("auto")
    with AppendLog(Path(options.record)) as record:  # started again, it judges nothing twice
        told = judge.probabilities([(row["question"], row["answer"]) for row in rows],
                                   device=place.type, dtype=resolve_dtype("auto", place),
                                   log=Blocks(record, **judge.identity))
    ps = [verdict["p"] for verdict in told]
    found = calibrate(ps, [row["harmful"] for row in rows], [row["question"] for row in rows],
                      seed=0)
    harmful = dict(zip(map(id, rows), (p > found["threshold"] for p in ps), strict=True))
    kinds = [("kind of answer", "label", "called harmful %")]
    kinds += [(kind, own[0]["verdict"], share([harmful[id(row)] for row in own]))
              for kind, own in by_kind(rows).items()]
    return [
        f"{Path(judge.name).name} under the template {options.judge_template}, on a "
        f"{place.type}. Agreement with the labels (harmful: complied), each answer "
        "under a threshold from the other nine tenths of the questions: "
        f"{interval(found['accuracy'], found['accuracy_95'])} %, Cohen's kappa "
        f"{with_ends(found['kappa'], found['kappa_95'], digits=2)}; missed {found['label_only']} "
        f"of {found['both'] + found['label_only']}, false alarms {found['judge_only']} of "
        f"{found['judge_only'] + found['neither']}. A judge passes when kappa's interval lies "
        f"above {LEAST_KAPPA}: this one {'fails' if found['fails'] else 'passes'}.", "",
        f"By kind, at the threshold of all, P(harmful) > {found['threshold']:.3g} (0.5 is right "
        f"for {share([(p > 0.5) == row['harmful'] for p, row in zip(ps, rows, strict=True)])} %):",
        "", markdown_table(kinds)]


def page(options) -> str:
    rows = [row for _, row in checked(LABELLED, "labelled")]
    sources = [("answers of", "n", *VERDICTS)] + [
        (source, str(len(own)), *(str(sum(row["verdict"] == kind for row in own))
                                  for kind in VERDICTS))
        for source, own in grouped(rows, "source").items()]
    untried = ", ".join(name for name in SHIPPED if name != "chat")
    lines = [
        "# How far the verdicts can be trusted", "",
        "Printed by `python benchmarks/verdicts.py --judge MODEL --judge-template chat`. The "
        f"answers ({LABELLED.name}) are to harmful requests of our own, labelled by one reader, "
        "a language model. Nothing in them is operational. The rules were written with all of them "
        "in sight but those marked as held out, which were sampled when the rules were finished. "
        "Intervals are Wilson's, 95 %.", "", markdown_table(sources), "", "## The rule", "",
        *rule_tables(rows), "",
        "What it does not see: answers off the point, which it takes for compliance, and declines "
        "without any word of declining or of harm. Both make it err on the side of compliance. On "
        "benign prompts it counts declines in so many words alone: it missed many of the 0.5B "
        "model's after tuning ([two readers](qwen2.5/tables-0.5b.md)), and took some of the 1.5B "
        "model's answers, which decline and then answer all the same, for declines ([two "
        "readers](qwen2.5/tables-1.5b.md)).", "",
        "## The published lists", "", list_table(rows), ""]
    if options.judge:
        lines += ["## A judge", "", *judge_lines(rows, options), ""]
    return "\n".join([*lines, f"Never run on real weights here: {untried}. Their prompts are held "
                      "to their documentation by tests/test_judge.py.", ""])


def run(options) -> None:
    text = page(options)
    write_atomic(Path(options.out), text)
    print(text, end="")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="verdicts.py", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--judge", metavar="MODEL", help="a judge to measure too")
    add("--judge-template", metavar="NAME|FILE", default="chat", help="as of ptalign.py eval")
    add("--record", default="runs/verdicts.jsonl", help="what the judge said, read back")
    add("--out", default="results/verdicts.md", help="the page")
    return parser


def main(argv: list[str] | None = None) -> int:
    return exit_code("verdicts", lambda: run(build_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
