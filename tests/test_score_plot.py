"""The plot of J and F over frames: where its lines lie, what it escapes."""

import math
import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest

from videossl.tracking.page import HEIGHT, WIDTH, ScoreLine, frame_ticks, score_plot

SVG = "{http://www.w3.org/2000/svg}"


def parsed(*lines: ScoreLine, title: str = "J", first_frame: int = 1) -> ElementTree.Element:
    return ElementTree.fromstring(score_plot(title, lines, first_frame=first_frame))


def polylines(svg: ElementTree.Element) -> list[list[tuple[float, float]]]:
    return [
        [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        for line in svg.iter(f"{SVG}polyline")
    ]


def tick_places(svg: ElementTree.Element, anchor: str) -> dict[float, float]:
    """Number to place, of the axis whose texts are anchored so."""
    axis = "y" if anchor == "end" else "x"
    return {
        float(text.text): float(text.attrib[axis])
        for text in svg.iter(f"{SVG}text")
        if text.attrib.get("text-anchor") == anchor and re.fullmatch(r"[\d.]+", text.text or "")
    }


def test_values_lie_where_the_axes_say():
    values = [0.0, 0.2, 0.5, 0.9, 1.0, 0.3]
    svg = parsed(ScoreLine("ant 1", values, object_id=1))
    (points,) = polylines(svg)
    up, along = tick_places(svg, "end"), tick_places(svg, "middle")
    assert set(along) == {1, 2, 3, 4, 5, 6}
    for frame, (value, (x, y)) in enumerate(zip(values, points, strict=True), start=1):
        assert x == pytest.approx(along[frame], abs=0.2)
        expected = up[0] + value * (up[1] - up[0])
        assert y == pytest.approx(expected - 4, abs=0.2)  # text is set 4 below its line
        assert 0 <= x <= WIDTH
        assert 0 <= y <= HEIGHT


def test_axes_are_named():
    texts = [text.text for text in parsed(title="region similarity J").iter(f"{SVG}text")]
    assert "frame" in texts
    assert "region similarity J" in texts
    assert {"0", "0.5", "1"} <= set(texts)


def test_a_missing_value_interrupts_the_line_and_a_lone_one_is_a_dot():
    svg = parsed(ScoreLine("a", [0.1, 0.2, math.nan, 0.4, math.nan, 0.6, 0.7], object_id=1))
    assert [len(line) for line in polylines(svg)] == [2, 2]
    assert len(list(svg.iter(f"{SVG}circle"))) == 1


def test_baselines_are_faint_and_lie_behind():
    svg = parsed(
        ScoreLine("trained", [1.0, 1.0], object_id=1),
        ScoreLine("lab", [0.5, 0.5], object_id=1, faint=True),
    )
    behind, front = svg.iter(f"{SVG}polyline")
    assert "stroke-dasharray" in behind.attrib
    assert "stroke-dasharray" not in front.attrib
    assert [t.text for t in svg.iter(f"{SVG}title")] == ["J", "lab", "trained"]


def test_objects_have_the_colours_of_the_overlay():
    svg = parsed(*(ScoreLine(str(n), [0.0, 1.0], object_id=n) for n in (1, 2, 8)))
    styles = [line.attrib["style"] for line in svg.iter(f"{SVG}polyline")]
    assert styles[0] == "stroke:var(--object-1, #e63c28)"
    assert styles[1] == "stroke:var(--object-2, #56b4e9)"
    assert styles[2] == styles[0]


def test_names_cannot_become_markup():
    name = '<img src=x onerror="alert(1)">&'
    svg = parsed(ScoreLine(name, [0.0, 1.0], object_id=1), title=name)
    assert [t.text for t in svg.iter(f"{SVG}title")] == [name, name]
    assert "<img" not in score_plot(name, [ScoreLine(name, [0.0], object_id=1)])


@pytest.mark.parametrize(("first", "last"), [(1, 1), (1, 2), (1, 48), (3, 9), (1, 103), (1, 9999)])
def test_ticks_are_few_and_within_the_frames(first, last):
    ticks = frame_ticks(first, last)
    assert 1 <= len(ticks) <= 8
    assert all(first <= tick <= last for tick in ticks)
    assert len({b - a for a, b in pairwise(ticks)}) <= 1
