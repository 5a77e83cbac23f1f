"""results.json as tables for the terminal and as report.md. Nothing is computed here but text.

The same results always give the same text, and no text of a prompt or an answer is in it.
"""

from pathlib import Path

import jinja2

from evals.figures import changes_of
from support.contamination import PROMPTS

TRAINED_ON = "†"  # on figures that count prompts which an adapter was trained on
BELOW = "‡"  # on p-values that are below LEVEL after Holm's correction
LEVEL = 0.05
TINY = 1e-300
HEADERS = {  # by the number of adapters: none, one, several
    0: ("n (prompts)", "base % [95 %]"),
    1: ("n (prompts)", "base % [95 %]", "tuned % [95 %]", "difference [95 %]", "fixed/broken",
        "p", "Holm's p"),
    2: ("n (prompts)", "base % [95 %]", "tuned %: mean, range", "difference: mean, range",
        "95 % of the mean", "p < .05", "Holm's p < .05"),
}
NULL_HEADER = ("null baseline", "chance %", "longest choice %")

TEMPLATES = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent),
                               trim_blocks=True, undefined=jinja2.StrictUndefined)

Table = list[tuple[str, ...]]  # the header first


def percent(value: float, *, sign: bool = False) -> str:
    # + 0.0 turns a rounded -0.0 into 0.0
    rounded = round(100 * value, 1) + 0.0
    return f"{rounded:+.1f}" if sign and rounded else f"{rounded:.1f}"


def span(ends, *, sign: bool = False) -> str:
    return f"[{', '.join(percent(end, sign=sign) for end in ends)}]"


def interval(value: float, ends, *, sign: bool = False) -> str:
    return f"{percent(value, sign=sign)} {span(ends, sign=sign)}"


def p_text(p: float) -> str:
    """A probability beyond the range of floats is 0 on file, but not in truth."""
    return f"{p:.2g}" if p >= TINY else f"< {TINY:g}"


def split_key(key: str) -> tuple[str, str]:
    """The heading of a figure's table and its name there."""
    parts = key.split("/")
    heading = 3 if parts[0] == "judge" else 2  # task and format; what was judged has its own
    return " ".join(parts[:heading]), " ".join(parts[heading:])


def figure_tables(results: dict) -> list[Table]:
    """One table a task, all with the same columns."""
    tables = {}
    adapters = max((len(changes_of(f)) for f in results["figures"]), default=0)
    for f in results["figures"]:
        heading, name = split_key(f["key"])
        if "trained_on" in f:
            name += f" {TRAINED_ON}"
        if f["key"] == results["primary"]:
            name += " *"
        n = str(f["n"]) if f["n"] == f["prompts"] else f"{f['n']} ({f['prompts']})"
        row = (name, n, interval(f["base"]["rate"], f["base"]["wilson_95"]), *change_cells(f))
        tables.setdefault(heading, [(heading, *HEADERS[min(2, adapters)])]).append(row)
    return list(tables.values())


def change_cells(f: dict) -> tuple[str, ...]:
    """The cells that compare tuned with base."""
    changes = changes_of(f)
    if not changes:
        return ()
    if "adapters" in f:
        return (interval(f["tuned"]["rate"], f["tuned"]["range"]),
                interval(f["difference"], f["difference_range"], sign=True),
                span(f["bootstrap_95"], sign=True),
                *(f"{sum(change[p] < LEVEL for change in changes)} of {len(changes)}"
                  for p in ("p", "p_holm")))
    # two spaces keep the digits of marked and unmarked numbers in line
    mark = f" {BELOW}" if f["p_holm"] < LEVEL else "  "
    return (interval(f["tuned"]["rate"], f["tuned"]["wilson_95"]),
            interval(f["difference"], f["bootstrap_95"], sign=True),
            f"{f['fixed']}/{f['broken']}", p_text(f["p"]), p_text(f["p_holm"]) + mark)


def other_tables(results: dict) -> list[Table]:
    """The null baselines, the counts of answers, and the tables that tasks made themselves."""
    tables = []
    if results["nulls"]:
        tables.append([NULL_HEADER, *(
            (name.replace("/", " "), percent(null["chance"]), percent(null["longest"]))
            for name, null in results["nulls"].items())])
    if results["answers"]:
        verdicts, lists = {}, {}
        for key, answers in results["answers"].items():
            for column in [name for name in answers if name != "n"]:
                name, counts = f"{key.replace('/', ' ')} {column}", dict(answers[column])
                lists[name] = {"n": answers["n"], **counts.pop("lists")}
                verdicts[name] = {"n": answers["n"], **counts}
        tables += [count_table("answers", verdicts), count_table("hits of each list", lists)]
    return tables + results["tables"]


def count_table(title: str, counts: dict[str, dict[str, int]]) -> Table:
    header = (title, *next(iter(counts.values())))
    return [header, *((name, *map(str, row.values())) for name, row in counts.items())]


def text_table(rows: Table, like: Table = ()) -> str:
    """`like`: rows of further tables whose columns are to be as wide."""
    widths = [max(map(len, column)) for column in zip(*rows, *like, strict=True)]
    lines = []
    for name, *numbers in rows:
        cells = [name.ljust(widths[0]), *map(str.rjust, numbers, widths[1:])]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "─" * (sum(widths) + 2 * len(widths) - 2))
    return "\n".join(lines)


def figures_text(results: dict) -> str:
    tables = figure_tables(results)
    rows = [row for table in tables for row in table]
    return "\n\n".join(text_table(table, like=rows) for table in tables)


def markdown_table(rows: Table) -> str:
    # a bare * opens emphasis, a | the next cell
    escaped = [[cell.strip().replace("*", "\\*").replace("|", "\\|") for cell in row]
               for row in rows]
    header, *lines = [f"| {' | '.join(row)} |" for row in escaped]
    return "\n".join([header, "|---|" + "---:|" * (len(rows[0]) - 1), *lines])


def summary(results: dict) -> list[str]:
    """The primary figure, and which of the others changed after the correction."""
    compared = [f for f in results["figures"] if changes_of(f)]
    if not compared:
        return []
    others = [f for f in compared if f["key"] != results["primary"]]
    kind = "other figures" if results["primary"] else "figures"
    lines = [f"Primary figure: {primary_text(f)}" for f in compared if f not in others]
    for word, better in (("Better", True), ("Worse", False)):
        changed = [f"{' '.join(split_key(f['key']))} {percent(f['difference'], sign=True)}"
                   for f in others if surely_changed(f, better=better)]
        names = f": {', '.join(changed)}." if changed else "."
        count = f"{len(changed)} of {len(others)} {kind}"
        lines.append(f"{word} after Holm's correction: {count}{names}")
    return lines


def surely_changed(f: dict, *, better: bool) -> bool:
    """Whether every adapter changed a figure this way, each below LEVEL after the correction."""
    upwards = f["higher_is_better"] == better
    return all(change["p_holm"] < LEVEL and (change["difference"] > 0) == upwards
               for change in changes_of(f))


def primary_text(f: dict) -> str:
    name = " ".join(split_key(f["key"]))
    rates = f"{percent(f['base']['rate'])} → {percent(f['tuned']['rate'])} %"
    change = f"{percent(f['difference'], sign=True)} points {span(f['bootstrap_95'], sign=True)}"
    if "adapters" in f:
        ends = span(f["difference_range"], sign=True)
        return f"{name}, {rates}, {change}, from {ends} of {len(f['adapters'])} adapters."
    p = p_text(f["p"])
    return f"{name}, {rates}, {change}, p {p if p.startswith('<') else f'= {p}'}."


def notes(results: dict) -> list[str]:
    """What a reader must know to read the tables; only what applies to this run."""
    compared = [f for f in results["figures"] if changes_of(f)]
    unchanged = [c for f in compared for c in changes_of(f) if c["fixed"] + c["broken"] == 0]
    return lines_of(
        "notes.jinja", results, BELOW=BELOW, LEVEL=LEVEL, compared=compared, unchanged=unchanged,
        several=any("adapters" in f for f in compared),
        family=sum(len(changes_of(f)) for f in compared if f["key"] != results["primary"]),
        shares_prompts=lambda figures: any(f["prompts"] < f["n"] for f in figures))


def contamination_notes(contamination: dict, adapter: str | list[str] | None) -> list[str]:
    """On training prompts among the evaluated ones; `adapter` as in the run's settings."""
    if not adapter:
        return []
    adapters = len(adapter) if isinstance(adapter, list) else 1
    return lines_of("contamination.jinja", contamination, adapters=adapters, PROMPTS=PROMPTS,
                    TRAINED_ON=TRAINED_ON)


def lines_of(template: str, facts: dict, **more) -> list[str]:
    text = TEMPLATES.get_template(template).render(facts, **more)
    return [line for line in text.split("\n") if line]


def render_text(results: dict) -> str:
    """For the terminal: the tables, the notes on them, and at the end what came out."""
    return joined(figures_text(results), *map(text_table, other_tables(results)),
                  "\n".join(notes(results)), "\n".join(summary(results)))


def render_markdown(results: dict) -> str:
    """report.md: the same, with the settings and hashes that a rerun needs."""
    settings, others = results["settings"], other_tables(results)
    title = f"# Evaluation of {settings['model']}"
    if settings["adapter"]:
        title += f" with {value_text(settings['adapter'])}"
    about = {**settings, "device used": results["device"], "dtype used": results["dtype"],
             **{f"source {name}": source for name, source in results["sources"].items()},
             "versions": results["versions"], "date": results["date"]}
    return joined(
        title, bullets(summary(results)), *map(markdown_table, figure_tables(results)),
        "![the figures before and after](report.png)" if results["picture"] else "",
        bullets(notes(results)),
        "## Counts and other measures" if others else "", *map(markdown_table, others),
        "## Settings", bullets(f"{name}: {value_text(v)}" for name, v in about.items())) + "\n"


def joined(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


def bullets(lines) -> str:
    return "\n".join(f"- {line}" for line in lines).replace("- *", "- \\*")


def value_text(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {value_text(v)}" for key, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)
