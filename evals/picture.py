"""Figures as bars, base above tuned with their intervals, and the items that changed."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np

from evals.figures import changes_of
from evals.report import by_task
from evals.texts import split_key
from support.files import write_atomic
from support.progress import say

COLOURS = {"base": "#9aa0a6", "tuned": "#1f77b4", "fixed": "#0072b2", "broken": "#d55e00"}
WIDTH, ROW = 6, 0.3  # inches, of a panel and of a figure's row
Rows = list[tuple[str, dict | None]]  # (label, figure) from top to bottom; a heading has none


def draw(path: Path, panels: list[Callable], *, height: float) -> bool:
    """Write panels side by side, each a function of its axes; False where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        say("no picture: matplotlib is not installed (requirements-dev.txt)")
        return False
    fig = Figure(figsize=(WIDTH * len(panels), height), layout="constrained")
    for panel, axes in zip(panels, fig.subplots(1, len(panels), squeeze=False)[0], strict=True):
        panel(axes)
    png = io.BytesIO()
    fig.savefig(png, format="png", dpi=120)
    write_atomic(path, png.getvalue())
    return True


def report_picture(path: Path, results: dict) -> bool:
    """report.png; False where there is nothing to draw with or no figure to draw."""
    rows = headed(results["figures"])
    rates, items = "%, with 95 % intervals", "items that changed"
    if any("adapters" in f for f in results["figures"]):
        rates, items = "%, base [95 %], tuned mean [range]", "items that changed, mean"
    panels = [lambda axes: bars(axes, rows, title=rates)]
    if any(changes_of(f) for f in results["figures"]):
        panels.append(lambda axes: flips(axes, rows, title=items))
    return bool(rows) and draw(path, panels, height=1.2 + ROW * len(rows))


def headed(figures: list[dict]) -> Rows:
    """The figures, each task's under its heading."""
    return [row for heading, group in by_task(figures).items()
            for row in ((heading, None), *((split_key(f["key"])[1], f) for f in group))]


def bars(axes, rows: Rows, *, title: str) -> None:
    """Rates in percent; of several adapters the mean, and the range instead of the interval."""
    places = label_rows(axes, rows)
    for column, offset in (("base", 0.2), ("tuned", -0.2)):
        if measured := [(y + offset, f[column]) for y, f in places if column in f]:
            rates = 100 * np.array([cell["rate"] for _, cell in measured])
            ends = 100 * np.array([cell.get("wilson_95") or cell["range"] for _, cell in measured])
            # rounding may leave a rate of 0 a hair outside its interval: hence abs
            axes.barh([y for y, _ in measured], rates, 0.38, xerr=abs(ends.T - rates),
                      label=column, color=COLOURS[column], error_kw={"elinewidth": 1})
    axes.set_xlim(0, 100)
    finish(axes, title)


def flips(axes, rows: Rows, *, title: str) -> None:
    """Items that got better to the right, worse to the left; of several adapters the mean."""
    places = [(y, changes) for y, f in label_rows(axes, rows, names=False)
              if (changes := changes_of(f))]
    most = 1.0
    for kind, sign in (("broken", -1), ("fixed", 1)):
        counts = [sum(c[kind] for c in changes) / len(changes) for _, changes in places]
        drawn = axes.barh([y for y, _ in places], [sign * n for n in counts], 0.6, label=kind,
                          color=COLOURS[kind])
        axes.bar_label(drawn, [f"{round(n, 1):g}" if n else "" for n in counts], padding=2)
        most = max(most, *counts)
    # logarithmic above 10: hundreds of changed items must not flatten another figure's dozen
    axes.set_xscale("symlog", linthresh=10)
    axes.set_xlim(-4 * most, 4 * most)  # room for the numbers
    axes.xaxis.set_major_formatter(lambda x, _: f"{abs(x):g}")
    axes.axvline(0, color="black", linewidth=0.8)
    finish(axes, title)


def label_rows(axes, rows: Rows, *, names: bool = True) -> list[tuple[int, dict]]:
    """Name the rows on the vertical axis; returns the place of every figure."""
    axes.set_yticks(range(0, -len(rows), -1), [label if names else "" for label, _ in rows])
    for tick, (_, figure) in zip(axes.get_yticklabels(), rows, strict=True):
        tick.set_fontweight("normal" if figure else "bold")
    axes.set_ylim(0.4 - len(rows), 0.6)
    axes.tick_params(axis="y", length=0)
    return [(-i, figure) for i, (_, figure) in enumerate(rows) if figure]


def finish(axes, title: str) -> None:
    axes.set_title(title, loc="left")
    axes.grid(axis="x", linewidth=0.4, alpha=0.5)
    axes.set_axisbelow(True)
    # above the axes, where no bar is
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
