"""The evenly spread clips of videos, decoded ahead by worker processes, in the order asked for.

A video that cannot be decoded, hangs or crashes its decoder is not replaced, as it is in training: it comes as a reason.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from videossl.data.dataset import frames_of_row
from videossl.data.manifest import Manifest
from videossl.decode.backends import Backend, open_video, resolve_backend
from videossl.errors import UserError, VideoDecodeError
from videossl.export.video_encoder import ClipForm, VideoEncoder
from videossl.workers.pool import Outcome, WorkerPool, can_fork, num_cores


def uniform_clip_times(
    begin: float, end: float, *, fps: float, clip: ClipForm, num_clips: int
) -> Tensor:
    """(K, T) float64 seconds in [begin, end): the first clip starts with the video, the last one ends with it.

    One clip is the middle one. In a video shorter than a clip, the frames after its last one show that again: each video
    has its features, however short (Xu et al., CVPR 2019 leave such videos out).
    """
    last = max(begin, end - (1 / fps if fps > 0 else 0.0))  # when the last frame begins
    slack = max(last - begin - clip.clip_seconds, 0.0)
    steps = torch.arange(num_clips, dtype=torch.float64)
    shares = steps / (num_clips - 1) if num_clips > 1 else torch.full((1,), 0.5).double()
    starts = begin + shares * slack
    frames = torch.arange(clip.num_frames, dtype=torch.float64) * clip.seconds_between_frames
    return (starts[:, None] + frames).clamp(begin, last)


log = logging.getLogger("videossl")

AHEAD = 2  # videos decoded per worker before they are asked for; chosen


@dataclass(frozen=True)
class VideoClips:
    """The clips of one row of the manifest: `frames` (K, T, 3, H, W) uint8 RGB, or None and the reason in one line."""

    row: int
    frames: Tensor | None
    reason: str = ""


@dataclass(frozen=True)
class ClipReader:
    """Reads K evenly spread clips of a video of the manifest, whole frames of short side `clip.resize` at most."""

    manifest: Manifest
    clip: ClipForm
    num_clips: int = 10
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        if self.num_clips < 1:
            raise UserError(f"clips per video must be at least 1, got {self.num_clips}")

    def read(self, row: int) -> Tensor:
        """(K, T, 3, H, W) uint8 RGB. Raises VideoDecodeError if the video is broken or breaks."""
        entry = self.manifest[row]
        if not entry.is_ok:
            raise VideoDecodeError(str(entry.source), self.backend, entry.reason)
        index = entry.index()
        times = uniform_clip_times(
            entry.begin_seconds,
            entry.end_seconds,
            fps=entry.fps,
            clip=self.clip,
            num_clips=self.num_clips,
        )
        pts = torch.from_numpy(index.pts_seconds)
        shown = frames_of_row(entry, pts, times.flatten().tolist())
        union, inverse = shown.unique(return_inverse=True)
        with open_video(
            entry.source, backend=self.backend, short_side=self.clip.resize, index=index
        ) as reader:
            frames = reader.frames_at(union).data
        return frames[inverse].unflatten(0, tuple(times.shape))

    def read_all(
        self, rows: Sequence[int], *, num_workers: int, timeout_seconds: float = 120.0
    ) -> Iterator[VideoClips]:
        """The clips of these rows, in their order; 0 workers decode in this process. Close it to end the workers."""
        resolve_backend(self.backend, "cpu")  # refused here: once, and not by every worker
        if num_workers == 0 or not can_fork():
            return map(self._read_here, rows)
        return self._read_ahead(rows, num_workers, timeout_seconds)

    def _read_here(self, row: int) -> VideoClips:
        try:
            return VideoClips(row, self.read(row))
        except VideoDecodeError as error:
            return VideoClips(row, None, error.cause)

    def _read_ahead(
        self, rows: Sequence[int], num_workers: int, timeout_seconds: float
    ) -> Iterator[VideoClips]:
        pool = WorkerPool(
            self.read,
            num_workers,
            initialize=_one_thread,
            timeout_seconds=timeout_seconds,
            ahead=AHEAD,
        )
        waiting = deque(enumerate(rows))
        ready: dict[int, VideoClips] = {}
        with closing(pool):
            for position in range(len(rows)):
                while waiting and waiting[0][0] < position + num_workers * AHEAD:
                    key, row = waiting.popleft()
                    pool.submit((key, row), row)
                while position not in ready:
                    for outcome in pool.wait():
                        ready[outcome.key[0]] = _clips_of(outcome)
                yield ready.pop(position)


def _clips_of(outcome: Outcome) -> VideoClips:
    _, row = outcome.key
    if outcome.failure is None:
        return VideoClips(row, outcome.value)
    error = outcome.failure.error
    if isinstance(error, VideoDecodeError):
        return VideoClips(row, None, error.cause)
    if isinstance(error, UserError):
        raise error  # not the video's fault
    return VideoClips(row, None, outcome.failure.cause)


def _one_thread() -> None:
    torch.set_num_threads(1)


Form = Literal["pooled", "tokens"]
TOKEN_GRID = (4, 4, 4)  # at most: time, height, width; means over equal parts of larger maps


@dataclass(frozen=True)
class VideoFeatures:
    """The features of one row of the manifest: (K, C) of its clips, (K, P, C) tokens, or None and the reason."""

    row: int
    clips: Tensor | None
    reason: str = ""


def video_features(
    encoder: VideoEncoder,
    reader: ClipReader,
    rows: Sequence[int],
    *,
    device: torch.device,
    form: Form = "pooled",
    num_workers: int | None = None,
) -> Iterator[VideoFeatures]:
    """The features of these rows in their order, float32 on the CPU, the encoder frozen in evaluation mode.

    `pooled` is the mean over time and space of the encoder's stage, `tokens` its cells, at most TOKEN_GRID of them.
    """
    encoder = encoder.to(device).eval()
    readout = encoder.forward if form == "pooled" else _tokens_of(encoder)
    workers = max(1, num_cores() - 1) if num_workers is None else num_workers
    for found in reader.read_all(rows, num_workers=workers):
        if found.frames is None:
            yield VideoFeatures(found.row, None, found.reason)
            continue
        with torch.inference_mode():
            features = readout(found.frames.to(device, non_blocking=True))
        if not torch.isfinite(features).all():
            yield VideoFeatures(found.row, None, "the encoder's features of it are not finite")
            continue
        yield VideoFeatures(found.row, features.float().cpu())


def _tokens_of(encoder: VideoEncoder) -> Callable[[Tensor], Tensor]:
    def tokens(video: Tensor) -> Tensor:
        """(K, T, 3, H, W) to (K, P, C)."""
        maps = encoder.feature_maps(video)[encoder.stage]
        time, height, width = map(min, maps.shape[2:], TOKEN_GRID)
        return (
            F.adaptive_avg_pool3d(maps, (time, height, width))
            .flatten(2)
            .transpose(1, 2)
            .contiguous()
        )

    return tokens
