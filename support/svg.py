"""Curves as an SVG of our own: text that any browser draws, without a library or a font file."""

import math
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

Points = list[tuple[float, float]]
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00")  # told apart by colour-blind eyes
WIDTH, HEIGHT = 400, 250  # of a panel, in user units; two stand beside each other
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 28, 52  # its margins: numbers, title, steps and legend
TITLE = 26  # above all panels


@dataclass(frozen=True)
class Panel:
    title: str
    curves: dict[str, Points]  # by name; a point that is not finite is left out
    y_range: tuple[float | None, float | None] = field(default=(None, None))  # None: the data's


def line_charts(panels: list[Panel], *, title: str, x_label: str = "step") -> str:
    """Panels two in a row, each with its own axes and legend."""
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
    start, width, (low, high) = min(xs), max(xs) - min(xs) or 1, panel.y_range
    x_ticks = [x for x in ticks(start, start + width) if start <= x <= start + width]
    y_ticks = ticks(min(ys) if low is None else low, max(ys) if high is None else high)
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def across(x):
        return LEFT + (x - start) / width * (right - LEFT)

    def down(y):
        return bottom - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (bottom - TOP)

    parts = [f'<text x="{LEFT}" y="16" font-weight="bold">{escape(panel.title)}</text>']
    for y in y_ticks:
        parts += [f'<path d="M{LEFT} {down(y):.1f}H{right}" stroke="#ddd"/>',
                  f'<text x="{LEFT - 5}" y="{down(y) + 5:.1f}" text-anchor="end">{y:g}</text>']
    for x in x_ticks:
        parts.append(f'<text x="{across(x):.1f}" y="{bottom + 15}" text-anchor="middle">{x:g}'
                     "</text>")
    parts.append(f'<text x="{right}" y="{bottom + 28}" text-anchor="end">{escape(x_label)}</text>')
    at = LEFT
    for (name, points), colour in zip(curves.items(), COLOURS, strict=False):
        line = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in points)
        parts += [f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.8"/>',
                  f'<path d="M{at} {HEIGHT - 8}h12" stroke="{colour}" stroke-width="3"/>',
                  f'<text x="{at + 15}" y="{HEIGHT - 4}">{escape(name)}</text>']
        at += 24 + 6 * len(name)  # about a letter's width
    return parts


def ticks(low: float, high: float, *, about: int = 5) -> list[float]:
    """Round numbers that enclose low and high, in steps of 1, 2 or 5 times a power of ten."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(f * power for f in (1, 2, 5, 10) if span / (f * power) <= about)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


# ---- rates with their intervals, for a page whose style gives each class "c0", "c1", ... a colour

Ends = tuple[float, float]


@dataclass(frozen=True)
class Mark:
    """A rate of one column, all numbers from 0 to 1. Column 0 is what the others started from."""
    column: int
    rate: float
    ends: Ends


def strip(marks: list[Mark]) -> str:
    """One figure from 0 to 100 %: column 0 as an upright line through a line for each other, which
    leads from there to that column's rate. Intervals are broad and pale."""
    step, width, edge = 12, 170, 6
    start, *others = marks
    height = step * (len(others) or 1) + 6

    def across(rate):
        return f"{edge + rate * (width - 2 * edge):.1f}"

    low, high = map(across, start.ends)
    parts = [f'<svg class="strip" viewBox="0 0 {width} {height}" width="{width}" '
             f'height="{height}" aria-hidden="true">',
             *(f'<path class="grid" d="M{across(at)} 0V{height}"/>' for at in (0, 0.5, 1)),
             f'<g class="c0"><path class="ends" d="M{low} 0H{high}V{height}H{low}Z"/>'
             f'<path d="M{across(start.rate)} 0V{height}"/></g>']
    for i, mark in enumerate(others):
        y, (low, high) = step * i + 9, map(across, mark.ends)
        parts.append(f'<g class="c{mark.column}"><path d="M{across(start.rate)} {y}'
                     f'H{across(mark.rate)}"/><path class="ends" d="M{low} {y - 3}H{high}v6H{low}Z"'
                     f'/><circle cx="{across(mark.rate)}" cy="{y}" r="4"/></g>')
    return "".join([*parts, "</svg>"])


def plane(points: list[tuple[Mark, Mark]], *, x_label: str, y_label: str) -> str:
    """Columns as points with their intervals as crosses, (across, up), better to the upper right.
    Arrows lead from the first to the others."""
    left, right, top, bottom = 42, 404, 36, 346
    x_ticks, y_ticks = (_wide_ticks([end for point in points for end in point[axis].ends])
                        for axis in (0, 1))

    def across(rate):
        return left + (100 * rate - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (right - left)

    def down(rate):
        return bottom - (100 * rate - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (bottom - top)

    parts = [f'<svg class="plane" viewBox="0 0 420 400" role="img"><title>{escape(y_label)} '
             f"against {escape(x_label)}</title>"]
    for tick in x_ticks:
        x = across(tick / 100)
        parts += [f'<path class="grid" d="M{x:.1f} {top}V{bottom}"/>',
                  f'<text x="{x:.1f}" y="{bottom + 20}" text-anchor="middle">{tick:g}</text>']
    for tick in y_ticks:
        y = down(tick / 100)
        parts += [f'<path class="grid" d="M{left} {y:.1f}H{right}"/>',
                  f'<text x="{left - 8}" y="{y + 5:.1f}" text-anchor="end">{tick:g}</text>']
    parts += [f'<text class="axis" x="{left}" y="20">↑ {escape(y_label)}, %</text>',
              f'<text class="axis" x="{right}" y="{bottom + 46}" text-anchor="end">'
              f"{escape(x_label)}, % →</text>"]
    start = tuple(scale(mark.rate) for scale, mark in zip((across, down), points[0], strict=True))
    for x_mark, y_mark in points:
        x, y = across(x_mark.rate), down(y_mark.rate)
        (x0, x1), (y0, y1) = map(across, x_mark.ends), map(down, y_mark.ends)
        parts += [f'<g class="c{x_mark.column}"><path d="M{x0:.1f} {y:.1f}H{x1:.1f}'
                  f'M{x:.1f} {y0:.1f}V{y1:.1f}"/>', _arrow(start, (x, y)),
                  f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6"/></g>']
    return "".join([*parts, "</svg>"])


def _wide_ticks(rates: list[float], *, least: float = 20) -> list[float]:
    """Ticks in percent that enclose the rates, over so many points at least: a change of one or
    two is to look like one."""
    low, high = 100 * min(rates), 100 * max(rates)
    spare = max(0.0, least - (high - low)) / 2
    return ticks(max(0.0, min(low - spare, 100 - least)), min(100.0, max(high + spare, least)))


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    """From one point's rim to the other's, where there is room for it."""
    (x0, y0), (x1, y1) = start, end
    length, rim, head = math.dist(start, end), 9, 9
    if length < 2 * rim + head:
        return ""
    along, over = (x1 - x0) / length, (y1 - y0) / length
    foot = x1 - (rim + head) * along, y1 - (rim + head) * over
    corners = [(x1 - rim * along, y1 - rim * over),
               *((foot[0] + side * over, foot[1] - side * along) for side in (4, -4))]
    return (f'<path d="M{x0 + rim * along:.1f} {y0 + rim * over:.1f}L{foot[0]:.1f} {foot[1]:.1f}"/>'
            f'<polygon points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in corners)}"/>')
