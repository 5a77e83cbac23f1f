"""Curves as an SVG of our own: text that any browser draws, without a library or a font file."""

import cmath
import math
from collections.abc import Callable
from typing import NamedTuple
from xml.sax.saxutils import escape

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00")  # told apart by colour-blind eyes
WIDTH, HEIGHT = 400, 250  # of a panel, in user units; two stand beside each other
LEFT, RIGHT, TOP, BOTTOM = 48, WIDTH - 12, 28, HEIGHT - 52  # the edges of its plot
TITLE = 26  # above all panels


class Panel(NamedTuple):
    title: str
    curves: dict[str, list[tuple[float, float]]]  # by name; a point that is not finite is left out
    y_range: tuple[float | None, float | None] = (None, None)  # None: the data's


def line_charts(panels: list[Panel], *, title: str, x_label: str = "step") -> str:
    """Panels by `x_label`, two in a row, each with its own axes and legend."""
    columns = min(2, len(panels))
    height = TITLE + HEIGHT * math.ceil(len(panels) / columns)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {columns * WIDTH} {height}" '
             f'role="img" font-family="sans-serif" font-size="11" fill="#222">',
             f"<title>{escape(title)}</title>",
             f'<rect width="{columns * WIDTH}" height="{height}" fill="#fff"/>',
             f'<text x="12" y="18" font-size="14" font-weight="bold">{escape(title)}</text>']
    for i, panel in enumerate(panels):
        x, y = i % columns * WIDTH, TITLE + i // columns * HEIGHT
        parts += [f'<g transform="translate({x} {y})">', *_panel(panel, x_label), "</g>"]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Panel, x_label: str) -> list[str]:
    curves = {name: [p for p in points if all(map(math.isfinite, p))]
              for name, points in panel.curves.items()}
    xs, ys = ([p[axis] for points in curves.values() for p in points] or [0] for axis in (0, 1))
    start, end, (low, high) = min(xs), max(xs), panel.y_range
    end = end if end > start else start + 1
    x_ticks = [x for x in ticks(start, end) if start <= x <= end]
    y_ticks = ticks(min(ys) if low is None else low, max(ys) if high is None else high)
    across = _scale(start, end, LEFT, RIGHT)
    down = _scale(y_ticks[0], y_ticks[-1], BOTTOM, TOP)
    parts = [f'<text x="{LEFT}" y="16" font-weight="bold">{escape(panel.title)}</text>',
             *_grid(x_ticks, y_ticks, across, down, (LEFT, RIGHT, TOP, BOTTOM)),
             f'<text x="{RIGHT}" y="{BOTTOM + 30}" text-anchor="end">{escape(x_label)}</text>']
    at = LEFT
    for i, (name, points) in enumerate(curves.items()):
        line = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in points)
        turn, colour = divmod(i, len(COLOURS))  # curves that share a colour differ in their dashes
        dashes = f' stroke-dasharray="{3 * turn} 2"' if turn else ""
        stroke = f'stroke="{COLOURS[colour]}"{dashes}'
        parts += [f'<polyline points="{line}" fill="none" {stroke} stroke-width="1.8"/>',
                  f'<path d="M{at} {HEIGHT - 8}h12" {stroke} stroke-width="3"/>',
                  f'<text x="{at + 15}" y="{HEIGHT - 4}">{escape(name)}</text>']
        # About a letter's width; where there are many, they share the panel's.
        at += min(24 + 6 * len(name), (RIGHT - LEFT) / len(curves))
    return parts


def ticks(low: float, high: float) -> list[float]:
    """Some five round numbers that enclose low and high, in steps of 1, 2 or 5 times a power of
    ten."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 5))
    step = next(f * power for f in (1, 2, 5, 10) if span / (f * power) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Where a value stands: low at start, high at end."""
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _grid(x_ticks: list[float], y_ticks: list[float], across: Callable, down: Callable,
          edges: tuple[int, int, int, int]) -> list[str]:
    """A line and a number for each tick; the edges are left, right, top and bottom."""
    left, right, top, bottom = edges
    lines = [(across(x), top, f"V{bottom}", across(x), bottom + 18, "middle", x) for x in x_ticks]
    lines += [(left, down(y), f"H{right}", left - 6, down(y) + 5, "end", y) for y in y_ticks]
    return [f'<path class="grid" d="M{x0:.1f} {y0:.1f}{line}" stroke="#ddd"/>'
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{number:g}</text>'
            for x0, y0, line, x, y, anchor, number in lines]


# ---- rates with their intervals, for a page whose style gives each class "c0", "c1", ... a colour

class Mark(NamedTuple):
    """A rate of one column, all numbers from 0 to 1. Column 0 is what the others started from."""
    column: int
    rate: float
    ends: tuple[float, float]


def strip(marks: list[Mark]) -> str:
    """One figure from 0 to 100 %: column 0 as an upright line through a line for each other, which
    leads from there to that column's rate. Intervals are broad and pale."""
    width, (start, *others) = 170, marks
    height, across = 12 * (len(others) or 1) + 6, _scale(0, 1, 6, width - 6)
    origin, low, high = map(across, (start.rate, *start.ends))
    parts = [f'<svg class="strip" viewBox="0 0 {width} {height}" width="{width}" '
             f'height="{height}" aria-hidden="true">',
             *(f'<path class="grid" d="M{across(at):.1f} 0V{height}"/>' for at in (0, 0.5, 1)),
             f'<g class="c0"><path class="ends" d="M{low:.1f} 0H{high:.1f}V{height}H{low:.1f}Z"/>'
             f'<path d="M{origin:.1f} 0V{height}"/></g>']
    for i, mark in enumerate(others):
        y, (at, low, high) = 12 * i + 9, map(across, (mark.rate, *mark.ends))
        parts.append(f'<g class="c{mark.column}"><path d="M{origin:.1f} {y}H{at:.1f}"/>'
                     f'<path class="ends" d="M{low:.1f} {y - 3}H{high:.1f}v6H{low:.1f}Z"/>'
                     f'<circle cx="{at:.1f}" cy="{y}" r="4"/></g>')
    return "".join([*parts, "</svg>"])


def plane(points: list[tuple[Mark, Mark]], *, x_label: str, y_label: str) -> str:
    """Columns as points with their intervals as crosses, (across, up), better to the upper right.
    Arrows lead from the first to the others."""
    left, right, top, bottom = edges = 42, 404, 36, 346
    # percent, of each column: the rate and its ends
    xs, ys = ([[100 * value for value in (mark.rate, *mark.ends)] for mark in marks]
              for marks in zip(*points, strict=True))
    x_ticks, y_ticks = _wide_ticks(xs), _wide_ticks(ys)
    across = _scale(x_ticks[0], x_ticks[-1], left, right)
    down = _scale(y_ticks[0], y_ticks[-1], bottom, top)
    parts = [f'<svg class="plane" viewBox="0 0 420 400" role="img"><title>{escape(y_label)} '
             f"against {escape(x_label)}</title>", *_grid(x_ticks, y_ticks, across, down, edges),
             f'<text class="axis" x="{left}" y="20">↑ {escape(y_label)}, %</text>',
             f'<text class="axis" x="{right}" y="{bottom + 46}" text-anchor="end">'
             f"{escape(x_label)}, % →</text>"]
    start = complex(across(xs[0][0]), down(ys[0][0]))
    for (mark, _), x_values, y_values in zip(points, xs, ys, strict=True):
        (x, x0, x1), (y, y0, y1) = map(across, x_values), map(down, y_values)
        parts += [f'<g class="c{mark.column}"><path d="M{x0:.1f} {y:.1f}H{x1:.1f}'
                  f'M{x:.1f} {y0:.1f}V{y1:.1f}"/>', _arrow(start, complex(x, y)),
                  f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6"/></g>']
    return "".join([*parts, "</svg>"])


def _wide_ticks(values: list[list[float]]) -> list[float]:
    """Ticks in percent that enclose all values, over 20 points at least: a change of one or two is
    to look like one."""
    low, high, least = min(map(min, values)), max(map(max, values)), 20
    spare = max(0.0, least - (high - low)) / 2
    return ticks(max(0.0, min(low - spare, 100 - least)), min(100.0, max(high + spare, least)))


def _arrow(start: complex, end: complex) -> str:
    """From one point's rim to the other's, where there is room for it; points as x + iy."""
    (length, angle), rim, head = cmath.polar(end - start), 9, 9
    tip, foot = length - rim, length - rim - head  # on a line to the right, which is then turned
    if foot < rim:
        return ""
    return (f'<g transform="translate({start.real:.1f} {start.imag:.1f}) '
            f'rotate({math.degrees(angle):.1f})"><path d="M{rim} 0H{foot:.1f}"/>'
            f'<polygon points="{tip:.1f},0 {foot:.1f},4 {foot:.1f},-4"/></g>')
