"""Writes frames as an mp4 through PyAV, which brings its own FFmpeg."""

import logging
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy as np

from videossl.errors import UserError

log = logging.getLogger("videossl")


class VideoWriter:
    """An mp4 of equal-sized RGB frames; h264, or mpeg4 where the FFmpeg at hand has no h264 encoder.

    Written under a temporary name and renamed when closed without an error. Odd sizes lose their last row or column:
    yuv420p has none. Raises UserError if the file cannot be written.
    """

    def __init__(self, path: Path, *, fps: float, crf: int = 20) -> None:
        self.path = path
        self._temporary = path.with_name(f".{path.name}.partial.mp4")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._container: Any = av.open(str(self._temporary), "w")
        except OSError as error:
            raise UserError(f"video {path} cannot be written: {error.strerror or error}") from error
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        if codec == "mpeg4":
            log.info("no h264 encoder in this FFmpeg: %s is written as mpeg4", path.name)
        options = {"crf": str(crf), "preset": "veryfast"} if codec == "libx264" else {"q": "4"}
        rate = Fraction(fps).limit_denominator(1001)
        self._stream = self._container.add_stream(codec, rate=rate, options=options)
        self._stream.pix_fmt = "yuv420p"

    def write(self, image: np.ndarray) -> None:
        """Appends one frame, (H, W, 3) uint8 RGB."""
        height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
        if not self._stream.codec_context.is_open:
            self._stream.height, self._stream.width = height, width
        frame = av.VideoFrame.from_ndarray(
            np.ascontiguousarray(image[:height, :width]), format="rgb24"
        )
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            for packet in self._stream.encode():
                self._container.mux(packet)
        self._container.close()
        if error is None:
            self._temporary.replace(self.path)
        else:
            self._temporary.unlink(missing_ok=True)
