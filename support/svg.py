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
                  f'<text x="{LEFT - 5}" y="{down(y) + 4:.1f}" text-anchor="end">{y:g}</text>']
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
