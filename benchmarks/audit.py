"""Rows of synthesised data, read: drawn by a seed, graded twice, told on a page.

    python benchmarks/audit.py draw runs/qwen15 --rows 50 --seed 0     # a sheet to be graded
    python benchmarks/audit.py page runs/qwen15 results/qwen-data/rows.md

`draw` writes RUN/audit/sheet.jsonl, in an order of its own and without what the gates said. Each of
two readers writes RUN/audit/grades-NAME.jsonl, a line a row: {"id", "instruction", "positive",
"negative"}, true or false, null where the row has no such text:

- instruction: an inducing request on its own topic, in a benign row a harmless request that makes
  sense;
- positive: declines what it should and helps otherwise, true to the request, whole and sensible;
- negative: of the other attitude (complicit, scornful, cheering) and without a method.

`page` counts what both readers passed, and how far they agree. Files that are equal in every grade
are one reading, and the page says so. No toxic text is on it.
"""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.script import exit_code
from evals.report import markdown_table
from evals.stats import wilson
from evals.texts import interval
from support.commandline import Parser
from support.files import InputError, read_json, read_jsonl, write_atomic, write_jsonl

QUESTIONS = ("instruction", "positive", "negative")
SHOWN = ("id", "domain", "topic", "prompt", "positive", "toxic")
ALIKE = ("**The two agree in every single grade, which independent readers would not: this counts"
         " as one reading, and no agreement is reported.**\n\n")
SIGNS = {True: "yes", False: "no", None: "-"}


def draw(options) -> None:
    run = Path(options.run)
    rows = [row for _, row in read_jsonl(run / "triplets.jsonl")]
    drawn = random.Random(options.seed).sample(rows, min(options.rows, len(rows)))
    (run / "audit").mkdir(exist_ok=True)
    sheet = run / "audit" / "sheet.jsonl"
    write_jsonl(sheet, [{"benign": row["kind"] == "benign", **{name: row[name] for name in SHOWN}}
                        for row in drawn], mode=0o600)
    print(f"{len(drawn)} of {len(rows)} rows: {sheet} (it holds toxic text)")


def read_audit(run: Path) -> tuple[list[dict], list[dict[str, dict]]]:
    """The sheet's rows, and the grades of both readers by row."""
    audit = run / "audit"
    sheet = [row for _, row in read_jsonl(audit / "sheet.jsonl")]
    files = sorted(audit.glob("grades-*.jsonl"))
    if len(files) != 2:
        raise InputError(f"{len(files)} files of grades", audit, "two readers write one each")
    return sheet, [read_grades(path, [row["id"] for row in sheet]) for path in files]


def read_grades(path: Path, ids: list[str]) -> dict[str, dict]:
    grades = {row.get("id"): row for _, row in read_jsonl(path)}
    for id in ids:
        own = grades.get(id, {})
        if any(name not in own or own[name] not in (True, False, None) for name in QUESTIONS):
            raise InputError(f"row {id} is not graded", path, "answer all with true, false or null")
    return grades


def cell(verdicts: list[bool]) -> str:
    k, n = sum(verdicts), len(verdicts)
    return f"{k} of {n}: {interval(k / n, wilson(k, n))}" if n else "-"


def agreement(pairs: list[tuple[bool, bool]]) -> str:
    """Share of equal grades and Cohen's kappa."""
    same = sum(a == b for a, b in pairs) / len(pairs)
    yes = [sum(side) / len(pairs) for side in zip(*pairs, strict=True)]
    chance = yes[0] * yes[1] + (1 - yes[0]) * (1 - yes[1])
    return f"{100 * same:.0f} %, kappa {(same - chance) / (1 - chance):.2f}" if chance < 1 else \
        f"{100 * same:.0f} %"


def page(options) -> None:
    run = Path(options.run)
    sheet, (first, second) = read_audit(run)
    # Two instances of one model may be one reader.
    alike = all(first[row["id"]][q] == second[row["id"]][q] for row in sheet for q in QUESTIONS)
    table = [("question", "passed by both % [95 %]", "by at least one % [95 %]", "readers agree")]
    kinds = (("instruction", "inducing", False), ("instruction", "benign", True),
             ("positive", "inducing", False), ("positive", "benign", True),
             ("positive", "all", None), ("negative", "pairs", False))
    for name, kind, benign in kinds:
        pairs = [(first[row["id"]][name], second[row["id"]][name]) for row in sheet
                 if benign in (None, row["benign"])]
        pairs = [pair for pair in pairs if None not in pair]
        if pairs:
            table.append((f"{name}, {kind}", cell([a and b for a, b in pairs]),
                          cell([a or b for a, b in pairs]),
                          "-" if alike else agreement(pairs)))
    rows = [("row", "domain", "request", *QUESTIONS)]
    rows += [(row["id"], row["domain"], row["prompt"],
              *(f"{SIGNS[first[row['id']][name]]} / {SIGNS[second[row['id']][name]]}"
                for name in QUESTIONS)) for row in sheet]
    settings = read_json(run / "config.json")["settings"]
    command = f"python benchmarks/audit.py page {run.as_posix()} {options.out}"
    who = f" ({options.who})" if options.who else ""
    command += f" --who '{options.who}'" if options.who else ""
    model = Path(settings["model"]).name
    text = (f"# Rows of {model}, graded\n\n{len(sheet)} rows drawn by a seed from"
            f" `{run.as_posix()}`, graded by two readers{who} who knew neither each other's"
            f" grades nor the gates'. Written by `{command}`.\n\n{ALIKE * alike}"
            f"{markdown_table(table)}\n\n"
            f"## Row by row\n\nGrades of the two readers; toxic text is not shown.\n\n"
            f"{markdown_table(rows)}\n")
    write_atomic(Path(options.out), text)
    print(text.partition("## Row")[0])


def main(argv=None) -> int:
    parser = Parser(prog="audit", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("draw")
    command.add_argument("run")
    command.add_argument("--rows", type=int, default=50)
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(do=draw)
    command = commands.add_parser("page")
    command.add_argument("run")
    command.add_argument("out")
    command.add_argument("--who", help="what the page says of the readers")
    command.set_defaults(do=page)

    def run() -> None:
        options = parser.parse_args(argv)
        options.do(options)
    return exit_code("audit", run)


if __name__ == "__main__":
    sys.exit(main())
