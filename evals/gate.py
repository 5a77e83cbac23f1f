"""A gate for CI: figures that must hold, by their keys of results.json.

    python ptalign.py eval ... --require "refusal/chat/xstest/harmful/declined >= 0.9"

The rate (0 to 1) is the tuned model's, of several adapters their mean, without one the base's. A
name that the run will not have is told before anything is generated."""

import operator
import re
from difflib import get_close_matches
from math import nan

from evals.task import Comparison, Task
from support.files import InputError

FORM = re.compile(r"\s*(\S.*?)\s*(>=|<=|>|<)\s*([01]?\.?\d+)\s*")
SIGNS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
FALLS_SHORT = 4  # the exit code
DIGITS = 9  # of a rate: ten shares of 0.1 add up to a little less than 1, and are to pass ">= 0.1"


class Nothing(float):
    """Stands for every result of an item that is not measured yet."""
    def __getitem__(self, _):
        return self


def read_requirements(texts: list[str] | None) -> list[tuple[str, str, float]]:
    """(key, sign, bound) of each."""
    required = []
    for text in texts or []:
        match = FORM.fullmatch(text)
        if match is None or float(match[3]) > 1:
            raise InputError(f"{text!r} is no requirement", "--require",
                             'write "FIGURE >= X", with a key of results.json and X from 0 to 1')
        required.append((match[1], match[2], float(match[3])))
    return required


def refuse_unknown(required: list[tuple], tasks: dict[str, Task], columns: tuple[str, ...],
                   judged) -> None:
    """InputError for a figure that the run will not have: a task's figures have the same names
    whatever its results are. `judged(item)` names the judge's, and is None without a judge."""
    keys = set()
    for task in tasks.values() if required else ():
        items = [{"task": task.name, "format": task.format, **item,
                  **dict.fromkeys(columns, Nothing())} for item in task.describe()]
        keys |= {f["key"] for f in task.figures(items, Comparison(columns, 0))}
        keys |= set(map(judged, items)) if judged and task.about.answers else set()
    for key, *_ in required:
        if key not in keys:
            near = ", ".join(get_close_matches(key, sorted(keys), cutoff=0.3)) or "none"
            raise InputError(f"no figure {key!r} in this run", "--require", f"the nearest: {near}")


def misses(required: list[tuple], figures: list[dict]) -> list[str]:
    """A line about each figure that falls short, or whose judge fails its calibration."""
    found, lines = {f["key"]: f for f in figures}, []
    for key, sign, bound in required:
        # A judge's figure of items without answers has a name, and is no figure.
        figure = found.get(key, {"base": {"rate": nan}})
        rate, fails = figure.get("tuned", figure["base"])["rate"], figure.get("fails", False)
        if fails or not SIGNS[sign](round(rate, DIGITS), round(bound, DIGITS)):
            lines.append(f"ptalign: {key} is {rate:.4f}, required {sign} {bound:g}"
                         + ", and the judge fails its calibration" * fails)
    return lines
