"""Masks drawn over frames: an mp4 of a sequence and a contact sheet of a few frames, with the truth where known."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

Rgb = NDArray[np.uint8]  # (H, W, 3)
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
_CRF = "20"  # of x264: visually near lossless, a few MB a minute
_MPEG4_BIT_RATE = 6_000_000

_log = logging.getLogger("videossl")


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


def write_video(path: Path, frames: Iterable[Rgb], *, frames_per_second: float) -> None:
    """Writes an mp4 of (H, W, 3) uint8 frames: H.264 where this PyAV can encode it, else MPEG-4 part 2.

    Odd sides lose their last row or column: yuv420p needs even ones.
    """
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    if codec == "mpeg4":
        _log.info("overlay: this PyAV cannot encode H.264, writing MPEG-4 instead")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name("." + path.name)
    with av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=round(frames_per_second))
        stream.pix_fmt = "yuv420p"
        if codec == "libx264":
            stream.options = {"crf": _CRF, "preset": "veryfast"}
        else:
            stream.bit_rate = _MPEG4_BIT_RATE
        for index, rgb in enumerate(frames):
            height, width = rgb.shape[0] // 2 * 2, rgb.shape[1] // 2 * 2
            if index == 0:
                stream.height, stream.width = height, width
            even = np.ascontiguousarray(rgb[:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        container.mux(stream.encode())
    partial.replace(path)


def write_contact_sheet(
    path: Path, rows: Sequence[tuple[str, Sequence[Rgb]]], *, height: int = 160
) -> None:
    """Writes a PNG with one titled row of pictures per entry, each scaled to `height` pixels."""
    strips = []
    for title, pictures in rows:
        scaled = [
            Image.fromarray(picture).resize(
                (round(picture.shape[1] * height / picture.shape[0]), height)
            )
            for picture in pictures
        ]
        strip = Image.new("RGB", (sum(p.width + 4 for p in scaled), height + 20), "white")
        ImageDraw.Draw(strip).text((4, 4), title, fill="black")
        left = 0
        for picture in scaled:
            strip.paste(picture, (left, 20))
            left += picture.width + 4
        strips.append(strip)
    sheet = Image.new("RGB", (max(s.width for s in strips), sum(s.height for s in strips)), "white")
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    sheet.save(partial, format="PNG")
    partial.replace(path)
