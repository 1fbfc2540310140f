"""What every backend offers: timed uint8 frames by index or by the second, in whole batches.

The two decisions that could differ between backends, which frames and at what size, are the pure functions here.
"""

import functools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import torch
from torch import Tensor

from videossl.errors import UserError

log = logging.getLogger("videossl")

TIME_TOLERANCE_SECONDS = (
    1e-6  # times are rationals rounded to float64: k/30 must still show frame k
)
BATCH_FRAMES = 32  # held at once while reading from the start; chosen


@dataclass(frozen=True)
class FrameBatch:
    """N frames, `data` (N, 3, H, W) uint8 RGB in [0, 255], shown from `pts_seconds` (N,) float64 on.

    Raises ValueError if the shapes or types disagree.
    """

    data: Tensor
    pts_seconds: Tensor

    def __post_init__(self) -> None:
        if self.data.ndim != 4 or self.data.shape[1] != 3 or self.data.dtype != torch.uint8:
            got = f"{tuple(self.data.shape)} {self.data.dtype}"
            raise ValueError(f"data must be (N, 3, H, W) uint8, got {got}")
        if self.pts_seconds.shape != self.data.shape[:1] or self.pts_seconds.dtype != torch.float64:
            got = f"{tuple(self.pts_seconds.shape)} {self.pts_seconds.dtype}"
            raise ValueError(f"pts_seconds must be ({len(self.data)},) float64, got {got}")

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        shapes = f"data {tuple(self.data.shape)}, pts_seconds {tuple(self.pts_seconds.shape)}"
        return f"FrameBatch({shapes} on {self.data.device})"


class VideoReader(Protocol):
    """One open file. Not to be shared between processes or threads: open one in each."""

    backend: str
    path: str
    num_frames: int
    height: int  # of the frames returned
    width: int
    pts_seconds: Tensor  # (num_frames,) float64, ascending, the container's own clock

    def frames_at(self, indices: Sequence[int] | Tensor) -> FrameBatch:
        """The frames of these indices in presentation order, in the order asked for; repeats are allowed.

        Raises UserError for an index outside [0, num_frames), VideoDecodeError for a broken stream.
        """
        ...

    def indices_shown_at(self, seconds: Sequence[float]) -> Tensor:
        """(N,) int64 indices of the frames on screen at these times: from their own time up to the next frame's.

        Raises UserError outside [begin, end) of the file.
        """
        ...

    def frames_shown_at(self, seconds: Sequence[float]) -> FrameBatch:
        """The frames on screen at these times, in the order asked for; repeats are allowed.

        Raises as `indices_shown_at` and `frames_at` do.
        """
        ...

    def close(self) -> None:
        """Frees the file and the decoder."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


def resized_shape(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """The (height, width) to decode at: the short side exactly `short_side`, the long side to the nearest pixel.

    Never larger than the file's own size. Raises UserError for a short side below 1.
    """
    if short_side is None:
        return height, width
    if short_side < 1:
        raise UserError(f"short_side must be at least 1 pixel, got {short_side}")
    short = min(height, width)
    if short <= short_side:
        return height, width
    return tuple(math.floor(side * short_side / short + 0.5) for side in (height, width))  # type: ignore[return-value]


def indices_shown_at(pts_seconds: Tensor, seconds: Sequence[float], end_seconds: float) -> Tensor:
    """(N,) int64 indices of the last frame at or before each time; `pts_seconds` (num_frames,) ascending.

    Raises UserError for times outside [first pts, end_seconds).
    """
    times = torch.as_tensor(seconds, dtype=torch.float64).reshape(-1)
    begin = float(pts_seconds[0])
    outside = ~((times >= begin - TIME_TOLERANCE_SECONDS) & (times < end_seconds))
    if outside.any():
        raise UserError(
            f"no frame at {float(times[outside][0]):g} s: the file shows frames in [{begin:g}, {end_seconds:g}) s"
        )
    return torch.searchsorted(pts_seconds, times + TIME_TOLERANCE_SECONDS, right=True) - 1


def gather_frames(
    decode: Callable[[list[int]], Tensor], indices: Sequence[int] | Tensor, pts_seconds: Tensor
) -> FrameBatch:
    """Calls `decode` once with the ascending, distinct indices and gathers its (n, 3, H, W) to the order asked for.

    Raises UserError for an index outside [0, len(pts_seconds)).
    """
    wanted = torch.as_tensor(indices, dtype=torch.int64).reshape(-1)
    num_frames = len(pts_seconds)
    outside = (wanted < 0) | (wanted >= num_frames)
    if outside.any():
        raise UserError(
            f"no frame {int(wanted[outside][0])}: the file has frames 0 to {num_frames - 1}"
        )
    distinct, positions = torch.unique(wanted, return_inverse=True)
    data = decode(distinct.tolist())
    if not torch.equal(distinct, wanted):  # else the frames need no copy
        data = data[positions.to(data.device)]
    return FrameBatch(data, pts_seconds[wanted])


@functools.lru_cache(maxsize=1024)  # once for each of them
def say_seek_fails(path: str, cause: str) -> None:
    """Logs why a file is read from its beginning, which takes longer."""
    log.info("%s: read from its beginning, since %s", path, cause)


def read_from_start(read: Callable[[list[int]], Tensor], indices: Sequence[int]) -> Tensor:
    """(n, ...) frames of ascending indices, by reading every frame up to the last: right where seeking is not.

    `read` takes ascending indices, BATCH_FRAMES at most, of which the first is 0 and then follows the last.
    """
    frames = []
    for start in range(0, indices[-1] + 1, BATCH_FRAMES):
        stop = min(start + BATCH_FRAMES, indices[-1] + 1)
        batch = read(list(range(start, stop)))
        frames.append(batch[[index - start for index in indices if start <= index < stop]])
    return torch.cat(frames)
