"""Masks drawn over frames, beside the truth and their difference where known, and a contact sheet of a few frames."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from videossl.drawing import Rgb, Strip, contact_sheet, write_png
from videossl.video_writer import write_video

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

# Of the difference between prediction and truth: where the eye should go, not which object it is.
SPURIOUS, MISSED, CONFUSED = (230, 60, 40), (60, 130, 255), (240, 228, 66)

PANEL_HEIGHT = (
    360  # pixels at most: three panels of a 16:9 video stay within what every H.264 player takes
)
_PANEL_GAP = 4
_TITLE_HEIGHT = 24
_TITLE_SIZE = 14
_COMPARISON_CRF = "26"  # of x264; chosen: text stays sharp, a DAVIS sequence takes 1-3 MB


def draw_mask(rgb: Rgb, mask: IndexMask) -> Rgb:
    """The frame with each object tinted in its colour and outlined in white and its colour, (H, W, 3) uint8."""
    out = rgb.copy()
    objects = mask > 0
    if not objects.any():
        return out
    colours = COLOURS[(mask.astype(int) - 1) % len(COLOURS)]
    tinted = (1 - _OPACITY) * rgb[objects] + _OPACITY * colours[objects]
    out[objects] = tinted.round().astype(np.uint8)
    from scipy import ndimage  # half a second to load

    inside = ndimage.grey_erosion(mask, size=3) == ndimage.grey_dilation(mask, size=3)
    line = ~inside
    out[line & objects] = colours[line & objects]
    out[line & ~objects] = 255
    return out


def write_contact_sheet(
    path: Path, rows: Sequence[tuple[str, Sequence[Rgb]]], *, height: int = 160
) -> None:
    """Writes a PNG with one titled row of pictures per entry, each scaled to `height` pixels."""
    write_png(path, contact_sheet([Strip(*row) for row in rows], height=height))


def draw_difference(rgb: Rgb, mask: IndexMask, truth: IndexMask) -> Rgb:
    """The frame in grey with the wrong pixels in colour, (H, W, 3) uint8.

    SPURIOUS where only the prediction has an object, MISSED where only the truth has one, CONFUSED where the object is
    another one.
    """
    grey = rgb.mean(2, keepdims=True).repeat(3, 2) * 0.6  # dark, so that the tints stand out
    for wrong, colour in (
        ((mask > 0) & (truth == 0), SPURIOUS),
        ((mask == 0) & (truth > 0), MISSED),
        ((mask > 0) & (truth > 0) & (mask != truth), CONFUSED),
    ):
        grey[wrong] = 0.3 * grey[wrong] + 0.7 * np.array(colour)
    return grey.round().astype(np.uint8)


def titled(picture: Rgb, title: str) -> Rgb:
    """The picture under a dark bar with a title, which ends where the picture ends."""
    image = Image.new("RGB", (picture.shape[1], picture.shape[0] + _TITLE_HEIGHT), (24, 26, 30))
    font = ImageFont.load_default(_TITLE_SIZE)
    ImageDraw.Draw(image).text((6, 3), title, fill=(235, 235, 235), font=font)
    image.paste(Image.fromarray(picture), (0, _TITLE_HEIGHT))
    return np.asarray(image)


def write_comparison(
    path: Path,
    frames: Iterable[Rgb],
    masks: Iterable[IndexMask],
    truths: Iterable[IndexMask] | None,
    *,
    frames_per_second: float,
) -> None:
    """Writes an mp4 of prediction, ground truth and difference side by side; without truths, of frame and prediction.

    `frames` are of native size (H, W, 3) uint8, `masks` and `truths` their object ids (H, W). Raises UserError if the file
    cannot be written, ValueError if there are not as many masks as frames.
    """
    compared = _compared(frames, masks, truths)
    options = {"crf": _COMPARISON_CRF}
    write_video(path, compared, frames_per_second=frames_per_second, options=options)


def _compared(
    frames: Iterable[Rgb], masks: Iterable[IndexMask], truths: Iterable[IndexMask] | None
) -> Iterator[Rgb]:
    if truths is None:
        for index, (rgb, mask) in enumerate(zip(frames, masks, strict=True)):
            yield _beside([(f"frame {index}", rgb), ("prediction", draw_mask(rgb, mask))])
        return
    for index, (rgb, mask, truth) in enumerate(zip(frames, masks, truths, strict=True)):
        yield _beside(
            [
                (f"prediction, frame {index}", draw_mask(rgb, mask)),
                ("ground truth", draw_mask(rgb, truth)),
                (
                    "red: too much, blue: missed, yellow: other object",
                    draw_difference(rgb, mask, truth),
                ),
            ]
        )


def _beside(panels: Sequence[tuple[str, Rgb]]) -> Rgb:
    """Titled panels in a row, with even sides so that yuv420p loses none of them."""
    height, width = panels[0][1].shape[:2]
    scale = min(1.0, PANEL_HEIGHT / height)
    size = (_even(width * scale), _even(height * scale))
    pictures = []
    for title, rgb in panels:
        scaled = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BILINEAR))
        gap = np.zeros((size[1] + _TITLE_HEIGHT, _PANEL_GAP, 3), np.uint8)
        pictures += [titled(scaled, title), gap]
    return np.concatenate(pictures[:-1], 1)


def _even(length: float) -> int:
    return max(2, 2 * round(length / 2))
