"""Frames of a decoder -> pictures through FFmpeg's filters, without torch."""

from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import ColorRange

from videossl.decode.filters import filter_graph

STUDIO_BLACK = np.uint8(16)  # of a luma of limited range


class FilterChain:
    """Runs frames of one size through filters like "scale=64:48", on one thread."""

    def __init__(self, first: "av.VideoFrame", time_base: Fraction, filters: Sequence[str]) -> None:
        self.size = (first.width, first.height)
        # Untold, swscale takes the output for another matrix than the input, and shifts colours by up to 4 of 255.
        source = (
            "video_size={}x{}:".format(*self.size)
            + f"pix_fmt={first.format.name}:time_base={time_base}:"
            f"colorspace={int(first.colorspace)}:range={int(first.color_range)}"
        )
        self._graph = filter_graph(source, filters)

    def __call__(self, frame: "av.VideoFrame") -> "av.VideoFrame":
        """The filtered frame. Raises ValueError for a frame of another size than the first."""
        if (frame.width, frame.height) != self.size:
            sizes = "{}x{} to {}x{}".format(*self.size, frame.width, frame.height)
            raise ValueError(f"the frame size changes from {sizes} inside the file")
        self._graph.push(frame)
        return self._graph.pull()


def luma_of(frame: "av.VideoFrame") -> np.ndarray:
    """(H, W) uint8 view of the first plane of an 8-bit frame."""
    plane = frame.planes[0]
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[
        : frame.height, : frame.width
    ]


def full_luma_of(frame: "av.VideoFrame") -> np.ndarray:
    """(H, W) uint8 luma of any frame, with black at 0."""
    layout = frame.format
    if layout.is_rgb or not layout.is_planar or layout.components[0].bits != 8:
        return luma_of(frame.reformat(format="gray"))
    luma = luma_of(frame)  # 15 times quicker than converting it
    is_full = frame.color_range == ColorRange.JPEG or layout.name.startswith("yuvj")
    return luma if is_full else np.maximum(luma, STUDIO_BLACK) - STUDIO_BLACK
