"""Masks drawn over frames, and a contact sheet of a few frames, with the truth where known."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from videossl.drawing import Rgb, Strip, contact_sheet

IndexMask = NDArray[np.uint8]  # (H, W)

# Distinct for colour-blind eyes too (Okabe and Ito), brightest first; ids beyond them start again.
COLOURS = np.array(
    [
        (230, 60, 40),
        (86, 180, 233),
        (240, 228, 66),
        (0, 180, 120),
        (204, 121, 167),
        (255, 160, 0),
        (60, 90, 220),
    ],
    np.uint8,
)
_OPACITY = 0.5


def draw_mask(rgb: Rgb, mask: IndexMask) -> Rgb:
    """The frame with each object tinted in its colour and outlined in white and its colour, (H, W, 3) uint8."""
    out = rgb.copy()
    objects = mask > 0
    if not objects.any():
        return out
    colours = COLOURS[(mask.astype(int) - 1) % len(COLOURS)]
    tinted = (1 - _OPACITY) * rgb[objects] + _OPACITY * colours[objects]
    out[objects] = tinted.round().astype(np.uint8)
    inside = ndimage.grey_erosion(mask, size=3) == ndimage.grey_dilation(mask, size=3)
    line = ~inside
    out[line & objects] = colours[line & objects]
    out[line & ~objects] = 255
    return out


def write_contact_sheet(
    path: Path, rows: Sequence[tuple[str, Sequence[Rgb]]], *, height: int = 160
) -> None:
    """Writes a PNG with one titled row of pictures per entry, each scaled to `height` pixels."""
    sheet = contact_sheet([Strip(*row) for row in rows], height=height)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    Image.fromarray(sheet).save(partial, format="PNG")
    partial.replace(path)
