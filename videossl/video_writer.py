"""Writes frames as an mp4 through PyAV, which brings its own FFmpeg."""

import logging
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from videossl.whole_file import whole_file

CRF = "20"  # of x264: visually near lossless, a few MB a minute
MPEG4_BIT_RATE = 6_000_000

log = logging.getLogger("videossl")


def write_video(
    path: Path,
    frames: Iterable[NDArray[np.uint8]],
    *,
    frames_per_second: float,
    options: Mapping[str, str] | None = None,
) -> None:
    """Writes an mp4 of (H, W, 3) uint8 RGB frames: H.264 where this PyAV can encode it, else MPEG-4 part 2.

    Written under a temporary name and renamed when whole. Odd sides lose their last row or column: yuv420p needs even
    ones. `options` are the encoder's, such as crf and g, beside or in place of our own. Raises UserError if the file cannot
    be written.
    """
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    if codec == "mpeg4":
        log.info("this PyAV cannot encode H.264: %s is written as MPEG-4", path.name)
    # The index first: a browser then plays the file while it still arrives.
    layout = {"movflags": "+faststart"}
    with (
        whole_file(path, sync=False) as partial,
        av.open(str(partial), "w", format="mp4", options=layout) as container,
    ):
        _encode(container, codec, frames, frames_per_second, options or {})


def _encode(
    container: Any,
    codec: str,
    frames: Iterable[NDArray[np.uint8]],
    frames_per_second: float,
    options: Mapping[str, str],
) -> None:
    stream = container.add_stream(codec, rate=Fraction(frames_per_second).limit_denominator(1001))
    stream.pix_fmt = "yuv420p"
    if codec == "libx264":
        stream.options = {"crf": CRF, "preset": "veryfast", **options}
    else:
        stream.bit_rate = MPEG4_BIT_RATE
        stream.options = {name: value for name, value in options.items() if name != "crf"}
    for index, rgb in enumerate(frames):
        height, width = rgb.shape[0] // 2 * 2, rgb.shape[1] // 2 * 2
        if index == 0:
            stream.height, stream.width = height, width
        even = np.ascontiguousarray(rgb[:height, :width])
        container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
    container.mux(stream.encode())
