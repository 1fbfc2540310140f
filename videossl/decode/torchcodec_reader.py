"""Decodes with torchcodec: the only one of the three that can decode on a GPU (NVDEC).

It needs a system FFmpeg. It is told the frames of `videossl.decode.index`, and what it decodes is held to their times. Its
demuxer and packet decoder (public since 0.17) would serve no better: their packets tell neither time nor whether a frame is
referred to, so that none could be left out, and their colour converter does not scale.
"""

import json
import re
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
    say_seek_fails,
)
from videossl.decode.source import VideoSource, as_source
from videossl.errors import UserError, VideoDecodeError

# Measured: in AVI it returned wrong frames (pixels up to 255 away on B-frames) and in MPEG-PS its seeks run off the end.
# The containers listed store presentation times, and gave the right frames.
EXACT_CONTAINERS = frozenset({"mov", "matroska", "flv", "gif"})
PTS_TOLERANCE_SECONDS = 1e-4  # ten times finer than the coarsest clock in use, a millisecond


REMEDY = "use backend=pyav or auto"


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


def refusal(index: VideoIndex) -> str:
    """What torchcodec would get wrong in this file, or an empty string."""
    info = index.info
    if info.container not in EXACT_CONTAINERS or index.times_by_order:
        return f"its seeks are not exact in {info.container} files with these time stamps"
    if info.is_mirrored:
        return "it turns pictures, and this file asks for their mirror image"
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
        if index is not None:  # else it has been opened as what it is
            check_format(self._source)
        info = self._index.info
        if reason := refusal(self._index):
            self._fail(f"{reason}; {REMEDY}")
        self.num_frames = info.num_frames
        self.height, self.width = resized_shape(info.height, info.width, short_side)
        self.pts_seconds = torch.from_numpy(self._index.pts_seconds)
        self._device = device
        self._decoder = self._open(device)

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

    def _open(self, device: str) -> Any:
        """A decoder that has been told the frames; or, where it needs a header to take them, one that scans the file."""
        try:
            decoder = self._build(device, custom_frame_mappings=_frame_mappings(self._index))
            is_told = (
                len(decoder) >= self.num_frames
            )  # it counts by the header, whatever it is told
        except (RuntimeError, ValueError):
            is_told = False
        if not is_told:
            decoder = self._scanning(device)
        if device != "cpu" and decoder.cpu_fallback:
            self._fail(f"{decoder.cpu_fallback}; decode this file with device=cpu")
        return decoder

    def _scanning(self, device: str) -> Any:
        try:
            decoder = self._build(device, seek_mode="exact")
        except (RuntimeError, ValueError) as error:
            if "No valid stream found" in str(error):
                codec = self._index.info.codec
                self._fail(f"the FFmpeg that it found has no decoder for {codec}; {REMEDY}")
            self._fail(f"{_first_line(error)}; {REMEDY}")
        if len(decoder) != self.num_frames:
            self._fail(f"it counts {len(decoder)} frames, {self.num_frames} are shown; {REMEDY}")
        return decoder

    def _build(self, device: str, **frames: str) -> Any:
        from torchcodec.decoders import VideoDecoder
        from torchcodec.transforms import Resize

        info = self._index.info
        size = (self.height, self.width)
        is_native = info.has_square_pixels and size == (info.height, info.width)
        return VideoDecoder(
            self._source.open(),
            stream_index=self._index.stream_index,
            dimension_order="NCHW",
            num_ffmpeg_threads=1,
            device=device,
            transforms=[] if is_native else [Resize(size)],
            **frames,
        )

    def _decode(self, indices: list[int]) -> Tensor:
        """(n, 3, H, W) of ascending, distinct indices, in one forward pass."""
        if not indices:
            empty = (0, 3, self.height, self.width)
            return torch.empty(empty, dtype=torch.uint8, device=self._device)
        try:
            return self._read(indices)
        except (RuntimeError, IndexError, ValueError) as error:
            say_seek_fails(self.path, f"torchcodec's seek fails: {_first_line(error)}")
        self._decoder = self._open(self._device)
        try:
            return read_from_start(self._read, indices)
        except (RuntimeError, IndexError, ValueError) as error:
            self._fail(f"{_first_line(error)}; {REMEDY}")

    def _read(self, indices: list[int]) -> Tensor:
        """(n, 3, H, W). Raises torchcodec's errors, and ValueError for frames of other times than those asked for."""
        batch = self._decoder.get_frames_at(indices)
        error_seconds = float((batch.pts_seconds.cpu() - self.pts_seconds[indices]).abs().max())
        if error_seconds > PTS_TOLERANCE_SECONDS:
            raise ValueError(
                f"its frames are {error_seconds:g} s away from the times of the packets"
            )
        return batch.data

    def _fail(self, cause: str) -> NoReturn:
        raise VideoDecodeError(self.path, "torchcodec", cause)


def _frame_mappings(index: VideoIndex) -> str:
    """The frames as torchcodec takes them: it need not scan the file, and cannot find others than those shown.

    Its approximate mode, which needs no scan either, takes frame k to be shown at k / fps, and refuses or mixes up sound
    files that begin elsewhere or count their frames in no header.
    """
    durations = np.diff(index.pts, append=index.pts[-1] + 1).clip(1)
    columns = (index.pts.tolist(), durations.tolist(), index.is_key.tolist())
    rows = [
        {"pts": pts, "duration": duration, "key_frame": int(is_key)}
        for pts, duration, is_key in zip(*columns, strict=True)
    ]
    return json.dumps({"frames": rows})


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
