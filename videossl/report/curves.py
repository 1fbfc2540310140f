"""Curves over steps as inline SVG, a colour for each run: held-out solid, training faint, chance and cheat as level lines.

Colours are the CSS variables --object-1 to --object-7 of the page, and currentColor for axes.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

WIDTH, HEIGHT = 460, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 26, 36
NUM_COLOURS = 7
MOST_DRAWN = 1e300  # beyond it a distance between two values overflows; a loss that got there is as good as infinite
_FLAT = 1e-9  # of the greatest value: a smaller range is drawn as a level line
Style = Literal["solid", "faint", "dashed", "dotted"]
_STYLES: dict[Style, str] = {
    "solid": 'stroke-width="2" stroke-linejoin="round"',
    "faint": 'stroke-width="1.2" stroke-opacity="0.45"',
    "dashed": 'stroke-width="1.2" stroke-opacity="0.8" stroke-dasharray="6 4"',
    "dotted": 'stroke-width="1.4" stroke-opacity="0.9" stroke-dasharray="1.5 3.5"',
}


@dataclass(frozen=True)
class Curve:
    """Points (step, value) of one run; `colour` counts from 0."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: int
    style: Style = "solid"


def curve_plot(title: str, curves: Sequence[Curve]) -> str:
    """An `<svg>` element; the axes hold every point, names are escaped. A curve of one point is a dot.

    Values that are not finite, or beyond MOST_DRAWN, are left out.
    """
    points = [p for curve in curves for p in curve.points if abs(p[1]) <= MOST_DRAWN]
    if not points:
        return ""
    steps = nice_ticks(0, max(step for step, _ in points))
    values = nice_ticks(min(value for _, value in points), max(value for _, value in points))
    frame = _Frame(steps[0], steps[-1], values[0], values[-1])
    name = html.escape(title)
    parts = [
        f'<svg class="plot" role="img" viewBox="0 0 {WIDTH} {HEIGHT}" xmlns="http://www.w3.org/2000/svg" '
        'font-size="11" font-family="system-ui, sans-serif">',
        f"<title>{name}</title>",
        f'<text x="{_LEFT}" y="15" font-size="13" font-weight="600" fill="currentColor">{name}</text>',
        *_axes(frame, steps, values),
    ]
    order = ("faint", "dotted", "dashed", "solid")
    for curve in sorted(curves, key=lambda curve: order.index(curve.style)):
        parts += _draw(curve, frame)
    return "\n".join([*parts, "</svg>"])


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers at equal distances, the first not above `low`, the last not below `high`."""
    greatest = max(abs(low), abs(high))
    if high - low <= max(_FLAT * greatest, 1e-300):
        half = max(0.5, 1e-6 * greatest)
        low, high = low - half, high + half
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


@dataclass(frozen=True)
class _Frame:
    first: float
    last: float
    low: float
    high: float

    def x(self, step: float) -> float:
        share = (step - self.first) / (self.last - self.first)
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)


def _axes(frame: _Frame, steps: Sequence[float], values: Sequence[float]) -> list[str]:
    parts = []
    for value in values:
        y = frame.y(value)
        opacity = 0.5 if value == values[0] else 0.14
        parts.append(
            f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" '
            f'stroke-opacity="{opacity}"/>'
        )
        parts.append(_text(_LEFT - 6, y + 4, f"{value:g}", "end"))
    for step in steps:
        parts.append(_text(frame.x(step), HEIGHT - _BOTTOM + 16, f"{step:g}", "middle"))
    return [*parts, _text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 4, "step", "middle")]


def _draw(curve: Curve, frame: _Frame) -> list[str]:
    colour = f"var(--object-{curve.colour % NUM_COLOURS + 1}, #555)"
    places = [
        f"{frame.x(step):.1f},{frame.y(value):.1f}"
        for step, value in curve.points
        if abs(value) <= MOST_DRAWN
    ]
    title = f"<title>{html.escape(curve.label)}</title>"
    if len(places) == 1:
        x, y = places[0].split(",")
        return [f'<g>{title}<circle cx="{x}" cy="{y}" r="2.5" style="fill:{colour}"/></g>']
    line = f'<polyline points="{" ".join(places)}" fill="none" style="stroke:{colour}" {_STYLES[curve.style]}/>'
    return [f"<g>{title}{line}</g>"]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor" fill-opacity="0.75">{text}</text>'
