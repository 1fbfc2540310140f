"""Decodes with torchcodec: the only one of the three that can decode on a GPU (NVDEC).

It needs a system FFmpeg. What it decodes is held to the packet list of `videossl.decode.info`.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np
import torch
from torch import Tensor

from videossl.decode.info import VideoIndex, current_index
from videossl.decode.reader import FrameBatch, gather_frames, indices_shown_at, resized_shape
from videossl.decode.source import VideoSource, as_source
from videossl.errors import UserError, VideoDecodeError

# Measured: in AVI it returned wrong frames (pixels up to 255 away on B-frames) and in MPEG-PS its seeks run off the end.
# The containers listed store presentation times, and gave the right frames.
EXACT_CONTAINERS = frozenset({"mov", "matroska", "flv", "gif"})
PTS_TOLERANCE_SECONDS = 1e-4  # ten times finer than the coarsest clock in use, a millisecond


def load_error() -> str:
    """Why torchcodec does not load, or an empty string."""
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, OSError, RuntimeError) as error:
        return short_load_error(error)
    try:
        # The import alone says nothing: from torchcodec 0.17 on, FFmpeg is looked for at the first decoder.
        VideoDecoder(b"not a video")
    except (RuntimeError, ValueError, OSError) as error:
        if "Could not load libtorchcodec" in str(error):
            return short_load_error(error)
    return ""


def short_load_error(error: Exception) -> str:
    """One line for torchcodec's message, which holds a traceback for every version of FFmpeg that it tried."""
    message = str(error).strip()
    if "Could not load libtorchcodec" not in message:
        return f"{type(error).__name__}: {message.splitlines()[0]}" if message else repr(error)
    causes = re.findall(r"^OSError: (.+)$", message, flags=re.MULTILINE)
    others = [cause for cause in causes if not re.search(r"lib(av|sw|torchcodec)\w+\.", cause)]
    if others:
        return f"torchcodec does not load: {others[0]}"
    return "torchcodec finds no FFmpeg (install the libraries of version 4 to 9, e.g. `apt install ffmpeg`)"


def cuda_error(device: str) -> str:
    """Why this machine cannot decode on `device`, or an empty string."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    index = torch.device(device).index or 0
    if index >= torch.cuda.device_count():
        return (
            f"torch sees {torch.cuda.device_count()} CUDA devices, cuda:{index} is not among them"
        )
    return ""


class TorchcodecReader:
    """A `VideoReader` on the processor or on a CUDA device, of one FFmpeg thread."""

    backend = "torchcodec"

    def __init__(
        self,
        source: str | Path | VideoSource,
        *,
        device: str = "cpu",
        short_side: int | None = None,
        index: VideoIndex | None = None,
    ) -> None:
        """`index` of an earlier reading of the file saves reading all of its packets again.

        Raises VideoDecodeError for a broken or refused file, UserError where torchcodec or the device is missing."""
        reason = load_error()
        if reason:
            raise UserError(f"the torchcodec backend does not load: {reason}")
        if torch.device(device).type == "cuda" and (reason := cuda_error(device)):
            raise UserError(f"cannot decode on {device}: {reason}")
        self._source = as_source(source)
        self.path = str(self._source)
        self._index = current_index(self._source, index, self.backend)
        info = self._index.info
        if info.container not in EXACT_CONTAINERS or self._index.times_by_order:
            self._fail(
                f"its seeks are not exact in {info.container} files with these time stamps; use backend=pyav or auto"
            )
        self.num_frames = info.num_frames
        self.height, self.width = resized_shape(info.height, info.width, short_side)
        self.pts_seconds = torch.from_numpy(self._index.pts_seconds)
        self._device = device
        self._decoder = self._open(device, is_scanned=index is not None)
        if len(self._decoder) != self.num_frames:
            self._fail(
                f"it counts {len(self._decoder)} frames, the packets hold {self.num_frames}; use backend=pyav or auto"
            )

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
        self._decoder = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self, device: str, *, is_scanned: bool) -> Any:
        from torchcodec.decoders import VideoDecoder
        from torchcodec.transforms import Resize

        info = self._index.info
        size = (self.height, self.width)
        try:
            decoder = VideoDecoder(
                self._source.open(),
                stream_index=self._index.stream_index,
                dimension_order="NCHW",
                num_ffmpeg_threads=1,
                device=device,
                seek_mode="approximate" if is_scanned and self._is_regular() else "exact",
                transforms=[] if size == (info.height, info.width) else [Resize(size)],
            )
        except (RuntimeError, ValueError) as error:
            self._fail(_first_line(error))
        if device != "cpu" and decoder.cpu_fallback:
            self._fail(f"{decoder.cpu_fallback}; decode this file with device=cpu")
        return decoder

    def _is_regular(self) -> bool:
        """Whether frame k is known to be shown at k / fps: then the decoder need not scan the file once more.

        On other files its approximate mode returns wrong frames (58 of 80 on a variable-rate file, in random order).
        """
        return len(np.unique(np.diff(self._index.pts))) <= 1

    def _decode(self, indices: list[int]) -> Tensor:
        """(n, 3, H, W) of ascending, distinct indices, in one forward pass."""
        if not indices:
            empty = (0, 3, self.height, self.width)
            return torch.empty(empty, dtype=torch.uint8, device=self._device)
        try:
            batch = self._decoder.get_frames_at(indices)
        except (RuntimeError, IndexError, ValueError) as error:
            self._fail(_first_line(error))
        error_seconds = float((batch.pts_seconds.cpu() - self.pts_seconds[indices]).abs().max())
        if error_seconds > PTS_TOLERANCE_SECONDS:
            self._fail(f"its frames are {error_seconds:g} s away from the times of the packets")
        return batch.data

    def _fail(self, cause: str) -> NoReturn:
        raise VideoDecodeError(self.path, "torchcodec", cause)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
