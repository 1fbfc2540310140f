"""Decodes with decord, for comparison with work that used it; nobody maintains it, and it errs on many files.

What was measured against PyAV and FFmpeg is refused or corrected here: see `refusal` and CODECS_OF_EXACT_SEEKS.
"""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np
import torch
from torch import Tensor

from videossl.decode.container import check_format
from videossl.decode.index import VideoIndex, current_index
from videossl.decode.reader import (
    FrameBatch,
    gather_frames,
    indices_shown_at,
    read_from_start,
    resized_shape,
)
from videossl.decode.source import VideoSource, as_source
from videossl.errors import UserError, VideoDecodeError

EXACT_CONTAINERS = frozenset({"mov", "matroska", "flv"})  # in AVI and MPEG-PS it mixes frames up
EXACT_PIXEL_FORMATS = frozenset(
    {"yuv420p", "yuvj420p"}
)  # 10-bit files come out up to 173 of 255 wrong
# In HEVC and MPEG-4 with B-frames its seeks and skips return frames of another time (6 of 10 wrong on one file); reading
# every frame from the start does not. These codecs passed in random order.
CODECS_OF_EXACT_SEEKS = frozenset({"h264", "vp8", "vp9"})
# Times kept in float32 tell frames apart no more from about here on, and far beyond decord's memory breaks.
MAX_SECONDS = 86_400.0
PTS_TOLERANCE_SECONDS = 2e-3  # it keeps times in float32: about 1 ms after two hours


def load_error() -> str:
    """Why decord does not load, or an empty string."""
    try:
        import decord  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return ""


def refusal(index: VideoIndex) -> str:
    """What decord would get wrong in this file, or an empty string."""
    info = index.info
    if info.container not in EXACT_CONTAINERS or index.times_by_order:
        return f"it mixes up frames in {info.container} files"
    if info.pixel_format not in EXACT_PIXEL_FORMATS:
        return f"it gets the colours of {info.pixel_format} wrong"
    if info.stored_width % 2 or info.stored_height % 2:
        size = f"{info.stored_width}x{info.stored_height}"
        return f"it gets the colours of odd sizes wrong, and this is {size}"
    if index.by_decoding:
        return "it repeats and mixes up frames where the packets do not tell which are shown"
    if max(abs(info.begin_seconds), abs(info.end_seconds)) > MAX_SECONDS:
        return f"it loses times beyond {MAX_SECONDS:.0f} s, and this begins at {info.begin_seconds:.0f} s"
    if info.is_mirrored:
        return "it turns pictures, and this file asks for their mirror image"
    return ""


class DecordReader:
    """A `VideoReader` on the processor, of one thread."""

    backend = "decord"

    def __init__(
        self,
        source: str | Path | VideoSource,
        *,
        device: str = "cpu",
        short_side: int | None = None,
        index: VideoIndex | None = None,
    ) -> None:
        """`index` of an earlier reading of the file saves reading all of its packets again.

        Raises VideoDecodeError for a broken or refused file, UserError where decord is missing."""
        reason = load_error()
        if reason:
            raise UserError(f"the decord backend does not load: {reason}")
        if torch.device(device).type != "cpu":
            raise UserError(f"the decord backend decodes on the cpu only, not on {device}")
        self._source = as_source(source)
        self.path = str(self._source)
        self._index = current_index(self._source, index, self.backend)
        sizes = check_format(self._source)
        info = self._index.info
        if sizes.count((info.stored_height, info.stored_width)) > 1:
            self._fail(
                "the file has several video streams, and it may read another; use backend=pyav or auto"
            )
        if reason := refusal(self._index):
            self._fail(f"{reason}; use backend=pyav or auto")
        self.num_frames = info.num_frames
        self.height, self.width = resized_shape(info.height, info.width, short_side)
        self.pts_seconds = torch.from_numpy(self._index.pts_seconds)
        self._reader = self._open()
        if len(sizes) > 1:
            self._check_size()
        self._check_times()
        self._check_keys()
        # At sizes whose padded rows it cannot copy (48x48) this fails here, not in mid-training.
        self._decode([0])

    def frames_at(self, indices: Sequence[int] | Tensor) -> FrameBatch:
        """See `VideoReader.frames_at`."""
        return gather_frames(self._decode, indices, self.pts_seconds)

    def indices_shown_at(self, seconds: Sequence[float]) -> Tensor:
        """See `VideoReader.indices_shown_at`."""
        return indices_shown_at(self.pts_seconds, seconds, self._index.info.end_seconds)

    def frames_shown_at(self, seconds: Sequence[float]) -> FrameBatch:
        """See `VideoReader.frames_shown_at`."""
        return self.frames_at(self.indices_shown_at(seconds))

    def close(self) -> None:
        """Frees the file and the decoder."""
        self._reader = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self, *, is_native: bool = False) -> Any:
        import decord

        decord.logging.set_level(decord.logging.QUIET)  # FFmpeg's notes on each file
        info = self._index.info
        size = (self.height, self.width)
        is_native |= info.has_square_pixels and size == (info.height, info.width)
        scaled = {} if is_native else {"width": self.width, "height": self.height}
        try:
            return decord.VideoReader(self._source.open(), num_threads=1, **scaled)
        except (decord.DECORDError, RuntimeError) as error:
            self._fail(f"{_cause(error)}; use backend=pyav or auto")

    def _check_size(self) -> None:
        """It cannot be told which stream to read."""
        shape = self._open(is_native=True).next().shape[:2]
        if tuple(shape) != self._index.info.upright_stored_shape:
            self._fail("it reads another video stream of the file; use backend=pyav or auto")

    def _check_keys(self) -> None:
        """Its container's list of key frames is what its seeks go by."""
        false = set(map(int, self._reader.get_key_indices())) - set(
            np.flatnonzero(self._index.is_key).tolist()
        )
        if false and self._seeks_are_exact():
            self._fail(
                f"the file calls {len(false)} frames key frames that are not; use backend=pyav or auto"
            )

    def _check_times(self) -> None:
        """decord counts its seconds from the first frame; more may not differ."""
        if len(self._reader) != self.num_frames:
            self._fail(
                f"it counts {len(self._reader)} frames, {self.num_frames} are shown; use backend=pyav or auto"
            )
        starts = self._reader.get_frame_timestamp(np.arange(self.num_frames))[:, 0]
        expected = (self.pts_seconds - self.pts_seconds[0]).numpy()
        error_seconds = float(np.abs(starts - starts[0] - expected).max())
        if not error_seconds <= PTS_TOLERANCE_SECONDS:
            self._fail(
                f"its time stamps are {error_seconds:g} s away from the packets'; use backend=pyav or auto"
            )

    def _decode(self, indices: list[int]) -> Tensor:
        """(n, 3, H, W) of ascending, distinct indices, in one forward pass."""
        import decord

        if not indices:
            return torch.empty((0, 3, self.height, self.width), dtype=torch.uint8)
        try:
            if self._seeks_are_exact():
                frames = _to_tensor(self._reader.get_batch(indices))
            else:
                reader = self._open()  # its seek to frame 0 keeps frames of before in flight
                frames = read_from_start(lambda some: _to_tensor(reader.get_batch(some)), indices)
        except (decord.DECORDError, RuntimeError, IndexError, StopIteration) as error:
            self._fail(f"{_cause(error)}; use backend=pyav or auto")
        return frames.permute(0, 3, 1, 2)

    def _seeks_are_exact(self) -> bool:
        """It counts frames from the key frame that it seeks to, and miscounts where frames shown before that one follow."""
        index = self._index
        return index.info.codec in CODECS_OF_EXACT_SEEKS and index.has_closed_groups

    def _fail(self, cause: str) -> NoReturn:
        raise VideoDecodeError(self.path, "decord", cause)


def _to_tensor(frames: Any) -> Tensor:
    """decord hands out its own arrays, or another library's where the caller has set a bridge."""
    return torch.from_numpy(frames.asnumpy() if hasattr(frames, "asnumpy") else np.asarray(frames))


def _cause(error: Exception) -> str:
    """decord's messages carry a clock, a source line and a C++ stack trace."""
    lines = str(error).strip().splitlines()
    return lines[0].split("Check failed:")[-1].strip() if lines else type(error).__name__
