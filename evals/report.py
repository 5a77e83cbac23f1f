"""results.json as tables for the terminal and as report.md. Nothing is computed here but text.

The same results always give the same text, and no text of a prompt or an answer is in it. What the
tables and notes say stands in the templates (texts.py)."""

import re

from evals.figures import changes_of, columns_of, grouped
from evals.texts import LEVEL, Table, split_key, written


def by_task(figures: list[dict]) -> dict[str, list[dict]]:
    """The figures of each table, by its heading."""
    return grouped(figures, lambda f: split_key(f["key"])[0])


def figure_tables(results: dict) -> list[Table]:
    return written("figures", tasks=by_task(results["figures"]),
                   primary=results["primary"])["tables"]


def other_tables(results: dict) -> list[Table]:
    """The null baselines, the counts of answers, and the tables of single tasks."""
    columns = columns_of(results["settings"]["adapter"])
    return written("counts", **results, columns=columns)["tables"] + results["tables"]


def text_table(rows: Table, like: Table = ()) -> str:
    """Columns in line, with those of the rows of further tables that are to look like it."""
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
    escaped = [[without_tags(cell.strip()).replace("*", "\\*").replace("|", "\\|")
                for cell in row] for row in rows]
    header, *lines = [f"| {' | '.join(row)} |" for row in escaped]
    return "\n".join([header, "|---|" + "---:|" * (len(rows[0]) - 1), *lines])


def without_tags(text: str) -> str:
    """A user's name for a group or a file may hold "<b>", which Markdown hands on as HTML."""
    return re.sub("<(?=[A-Za-z/!?])", r"\\<", text)


def summary(results: dict) -> list[str]:
    """The primary figure, and which of the others changed after the correction."""
    # A judge that failed its calibration has no say.
    compared = [f for f in results["figures"] if changes_of(f) and not f.get("fails")]
    return written("summary", primary=results["primary"], compared=compared,
                   surely_changed=surely_changed)["notes"]


def surely_changed(figures: list[dict], *, better: bool) -> list[dict]:
    """The figures that every adapter changed this way, but for those of a judge that failed its
    calibration."""
    way = "better" if better else "worse"
    return [f for f in figures if changes_of(f) and not f.get("fails") and all(
        direction(change, f["higher_is_better"]) == way for change in changes_of(f))]


def direction(change: dict, higher_is_better: bool) -> str:
    """"better" or "worse" where p is below LEVEL after the correction and the interval lies on that
    side of 0, since p counts the prompts that changed, and not by how much; else ""."""
    low, high = change["bootstrap_95"]
    if change["p_holm"] >= LEVEL or low <= 0 <= high:
        return ""
    return "better" if (low > 0) == higher_is_better else "worse"


def notes(results: dict) -> list[str]:
    """What a reader of the tables must know, as far as it applies to this run."""
    return written("notes", **results, shares_prompts=lambda figures: any(
        f["prompts"] < f["n"] for f in figures))["notes"]


def contamination_notes(contamination: dict, adapter: str | list[str] | None) -> list[str]:
    """On training prompts among the evaluated ones; `adapter` as in the run's settings."""
    adapters = len(columns_of(adapter)) - 1
    return written("contamination", **contamination, adapters=adapters)["notes"] if adapters else []


def render_text(results: dict) -> str:
    """For the terminal: the tables, the notes on them, and at the end what came out."""
    return joined(figures_text(results), *map(text_table, other_tables(results)),
                  "\n".join(notes(results)), "\n".join(summary(results)))


def render_markdown(results: dict) -> str:
    """report.md: the same, with the settings and hashes that a rerun needs."""
    settings = results["settings"]
    title = f"# Evaluation of {settings['model']}"
    if settings["adapter"]:
        title += f" with {value_text(settings['adapter'])}"
    return joined(
        without_tags(title), markdown_figures(results),
        "## Settings", bullets(f"{name}: {value_text(value)}"
                               for name, value in run_facts(results).items())) + "\n"


def markdown_figures(results: dict) -> str:
    """What came out, the figures, the notes on them, and what else was measured."""
    others = other_tables(results)
    return joined(bullets(summary(results)), *map(markdown_table, figure_tables(results)),
                  bullets(notes(results)), "## Counts and other measures" if others else "",
                  *map(markdown_table, others))


def run_facts(results: dict) -> dict:
    """The settings, hashes and versions that a rerun needs."""
    return {**results["settings"], "device used": results["device"],
            "dtype used": results["dtype"],
            **{f"source {name}": source for name, source in results["sources"].items()},
            "versions": results["versions"], "date": results["date"]}


def joined(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


def bullets(lines) -> str:
    return without_tags("\n".join(f"- {line}" for line in lines)).replace("- *", "- \\*")


def value_text(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {value_text(v)}" for key, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)
