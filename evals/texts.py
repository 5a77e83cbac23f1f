"""Numbers as text, and the templates (*.jinja) that make them the tables and notes of a report.

A template writes lines. Cells divided by │ are a row of a table, the first row after a blank line
is its header, and every other line is a note."""

from pathlib import Path

import jinja2

from evals.figures import changes_of, grouped
from evals.verdicts import VERDICTS
from support.contamination import PROMPTS

TRAINED_ON = "†"  # on figures that count prompts which an adapter was trained on
BELOW = "‡"  # on p-values that are below LEVEL after Holm's correction
LEVEL = 0.05
TINY = 1e-300
Table = list[tuple[str, ...]]  # the header first


def percent(value: float, *, sign: bool = False) -> str:
    # + 0.0 turns a rounded -0.0 into 0.0
    rounded = round(100 * value, 1) + 0.0
    return f"{rounded:+.1f}" if sign and rounded else f"{rounded:.1f}"


def span(ends, *, sign: bool = False) -> str:
    return f"[{', '.join(percent(end, sign=sign) for end in ends)}]"


def interval(value: float, ends, *, sign: bool = False) -> str:
    return f"{percent(value, sign=sign)} {span(ends, sign=sign)}"


def with_ends(value: float | None, ends=None, *, digits: int = 3) -> str:
    """A number with its interval, as in "1.234 [1.200, 1.300]"; None is one beyond all floats."""
    numbers = ["inf" if number is None else f"{number:.{digits}f}"
               for number in (value, *(ends or ()))]
    return numbers[0] + (f" [{', '.join(numbers[1:])}]" if ends else "")


def p_text(p: float) -> str:
    """A probability beyond the range of floats is 0 on file, but not in truth."""
    return f"{p:.2g}" if p >= TINY else f"< {TINY:g}"


def split_key(key: str) -> tuple[str, str]:
    """The heading of a figure's table and its name there."""
    parts = key.split("/")
    heading = 3 if parts[0] == "judge" else 2  # task and format; what was judged has its own
    return " ".join(parts[:heading]), " ".join(parts[heading:])


def one_line(value):
    """What a template prints: a line break in a user's name for a thing would end its row, and the
    mark between cells would begin another."""
    return " ".join(value.splitlines()).replace("│", "|") if isinstance(value, str) else value


TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), trim_blocks=True, finalize=one_line,
    undefined=jinja2.StrictUndefined)
TEMPLATES.filters["changes_of"] = changes_of
TEMPLATES.globals.update(
    percent=percent, span=span, interval=interval, with_ends=with_ends, p_text=p_text,
    split_key=split_key, grouped=grouped, VERDICTS=VERDICTS, TRAINED_ON=TRAINED_ON, BELOW=BELOW,
    LEVEL=LEVEL, PROMPTS=PROMPTS)


def written(template: str, **facts) -> dict:
    """{"tables", "notes"} of the file `template`.jinja, filled with the facts."""
    tables, notes = [], []
    for paragraph in TEMPLATES.get_template(f"{template}.jinja").render(facts).split("\n\n"):
        lines = [line for line in paragraph.split("\n") if line]
        rows = [tuple(line.split(" │ ")) for line in lines if " │ " in line]
        tables += [rows] if rows else []
        notes += [line for line in lines if " │ " not in line]
    return {"tables": tables, "notes": notes}
