"""Points drawn over frames: a disc where a point is seen, a ring where it is called hidden, one colour per point."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from videossl.drawing import Rgb
from videossl.eval.overlay import COLOURS, write_contact_sheet
from videossl.eval.point_sets import PointVideo
from videossl.eval.points import Flags, Places, Tracks

SHEET_FRAMES = 6
SHEET_POINTS = 40  # more would hide the frames: evenly taken
_HEIGHT = 200  # pixels of a picture on the sheet
_RADIUS = 3.0  # pixels on the sheet


def draw_points(rgb: Rgb, places: Places, occluded: Flags, *, radius: float) -> Rgb:
    """The frame (H, W, 3) with points (N, 2) in its pixels; places of nan are left out."""
    image = Image.fromarray(rgb)
    draw = ImageDraw.Draw(image)
    line = max(1, round(radius / 3))
    for number, ((x, y), is_hidden) in enumerate(zip(places, occluded, strict=True)):
        if np.isnan(x) or np.isnan(y):
            continue
        colour = tuple(int(value) for value in COLOURS[number % len(COLOURS)])
        box = (x - radius, y - radius, x + radius, y + radius)
        if is_hidden:
            draw.ellipse(box, outline=colour, width=line)
        else:
            draw.ellipse(box, fill=colour, outline="white", width=line)
    return np.asarray(image)


def write_point_sheet(path: Path, video: PointVideo, rows: Mapping[str, Tracks]) -> None:
    """A contact sheet: a few frames with the true points, and under them those of each row."""
    known = np.flatnonzero(video.is_visible.any(0))
    shown = known[np.linspace(0, len(known) - 1, min(SHEET_FRAMES, len(known))).round().astype(int)]
    count = len(video.truth)
    points = np.linspace(0, count - 1, min(SHEET_POINTS, count)).round().astype(int)
    frames = video.source.read([int(index) for index in shown], video.size)
    radius = _RADIUS * video.size[0] / _HEIGHT
    # What is not in view is not drawn as true at all: BADJA and TAP-Vid hold no place for it.
    seen_truth = np.where(video.is_visible[..., None], video.truth, np.nan)
    drawn = {"truth": Tracks(seen_truth, np.zeros_like(video.is_visible)), **rows}
    strips = []
    for name, tracks in drawn.items():
        pictures = [
            draw_points(
                np.ascontiguousarray(frame.permute(1, 2, 0).numpy()),
                tracks.places[points, index],
                tracks.occluded[points, index],
                radius=radius,
            )
            for frame, index in zip(frames, shown, strict=True)
        ]
        strips.append((f"{video.name}: {name}", pictures))
    write_contact_sheet(path, strips, height=_HEIGHT)
