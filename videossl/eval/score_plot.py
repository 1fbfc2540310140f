"""J or F of each frame as an inline SVG: a line per object, those of the baselines faint behind.

Colours are CSS variables, so that a page decides how they stand on its ground: --object-1 to --object-7 and currentColor
for axes. Without a page their own values hold.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from videossl.eval.overlay import COLOURS

WIDTH, HEIGHT = 460, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 8, 24, 34  # margins around the axes
_FRAME_STEPS = (1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1000)
_MOST_TICKS = 7


@dataclass(frozen=True)
class ScoreLine:
    """The score of one object over the scored frames; NaN where a frame has none."""

    label: str
    values: Sequence[float]  # in [0, 1]
    object_id: int  # its colour, as in the overlay
    faint: bool = False  # a baseline


def score_plot(title: str, lines: Sequence[ScoreLine], *, first_frame: int = 1) -> str:
    """An `<svg>` element of the lines over frames, from `first_frame` on: 0 to 1 upwards, every name escaped.

    Faint lines are drawn first and dashed. A line of a single value is a dot.
    """
    last_frame = first_frame + max((len(line.values) for line in lines), default=1) - 1
    name = html.escape(title)
    parts = [
        f'<svg class="plot" role="img" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'xmlns="http://www.w3.org/2000/svg" font-size="11" font-family="system-ui, sans-serif">',
        f"<title>{name}</title>",
        f'<text x="{_LEFT}" y="14" font-size="13" font-weight="600" fill="currentColor">{name}</text>',
        *_axes(first_frame, last_frame),
    ]
    for line in sorted(lines, key=lambda line: not line.faint):
        parts += _draw_line(line, first_frame, last_frame)
    return "\n".join([*parts, "</svg>"])


def frame_ticks(first_frame: int, last_frame: int) -> list[int]:
    """Round frame numbers within both ends, seven at most."""
    span = last_frame - first_frame
    step = next((s for s in _FRAME_STEPS if span / s < _MOST_TICKS), math.ceil(span / _MOST_TICKS))
    return [t for t in range(0, last_frame + 1, max(1, step)) if t >= first_frame] or [first_frame]


def _axes(first_frame: int, last_frame: int) -> list[str]:
    parts = []
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _y(value)
        opacity = 0.5 if value == 0 else 0.14
        parts.append(
            f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
            f'stroke="currentColor" stroke-opacity="{opacity}"/>'
        )
        if value in (0, 0.5, 1):
            parts.append(_text(_LEFT - 6, y + 4, f"{value:g}", anchor="end"))
    for frame in frame_ticks(first_frame, last_frame):
        x = _x(frame, first_frame, last_frame)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_y(0):.1f}" y2="{_y(0) + 4:.1f}" '
            'stroke="currentColor" stroke-opacity="0.5"/>'
        )
        parts.append(_text(x, _y(0) + 16, str(frame), anchor="middle"))
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    return [*parts, _text(middle, HEIGHT - 4, "frame", anchor="middle")]


def _draw_line(line: ScoreLine, first_frame: int, last_frame: int) -> list[str]:
    index = (line.object_id - 1) % len(COLOURS)
    red, green, blue = COLOURS[index]
    colour = f"var(--object-{index + 1}, #{red:02x}{green:02x}{blue:02x})"
    style = (
        'stroke-width="1.2" stroke-opacity="0.45" stroke-dasharray="4 3"'
        if line.faint
        else 'stroke-width="2" stroke-linejoin="round" stroke-linecap="round"'
    )
    parts = [f"<g><title>{html.escape(line.label)}</title>"]
    for run in _runs(line.values):
        points = [
            f"{_x(first_frame + place, first_frame, last_frame):.1f},{_y(line.values[place]):.1f}"
            for place in run
        ]
        if len(points) == 1:
            x, y = points[0].split(",")
            parts.append(f'<circle cx="{x}" cy="{y}" r="2.5" style="fill:{colour}"/>')
        else:
            parts.append(
                f'<polyline points="{" ".join(points)}" fill="none" style="stroke:{colour}" {style}/>'
            )
    return [*parts, "</g>"]


def _runs(values: Sequence[float]) -> list[list[int]]:
    """Places of values in a row, cut where one is missing."""
    runs: list[list[int]] = [[]]
    for place, value in enumerate(values):
        if math.isnan(value):
            runs.append([])
        else:
            runs[-1].append(place)
    return [run for run in runs if run]


def _text(x: float, y: float, text: str, *, anchor: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor" '
        f'fill-opacity="0.75">{text}</text>'
    )


def _x(frame: int, first_frame: int, last_frame: int) -> float:
    share = (frame - first_frame) / max(1, last_frame - first_frame)
    return _LEFT + share * (WIDTH - _LEFT - _RIGHT)


def _y(value: float) -> float:
    return HEIGHT - _BOTTOM - min(1.0, max(0.0, value)) * (HEIGHT - _TOP - _BOTTOM)
