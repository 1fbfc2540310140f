"""When frames are shown: constant rates told from variable ones, ticks stored in little room, motion by packet size."""

from collections.abc import Sequence

import numpy as np

NUM_MOTION_BINS = 32
# A frame may sit this far from the regular grid (as part of the frame interval) in a file of constant rate; chosen.
CONSTANT_RATE_TOLERANCE = 0.05
# Both ends of a file are marked by its codec (a logistic regression on frame statistics tells forward from backward with
# 94-100 % there): its last second, or the last tenth of one shorter than SHORT_FILE_SECONDS, and its first frame.
END_MARGIN_SECONDS = 1.0
END_MARGIN_SHARE = 0.1
SHORT_FILE_SECONDS = 5.0


def is_constant_rate(seconds: np.ndarray, tick_seconds: float) -> bool:
    """Whether the ascending times lie on a regular grid, but for the rounding of the container's clock."""
    if len(seconds) < 2:
        return True
    grid = np.linspace(seconds[0], seconds[-1], len(seconds))
    interval = (seconds[-1] - seconds[0]) / (len(seconds) - 1)
    tolerance = max(CONSTANT_RATE_TOLERANCE * interval, min(tick_seconds, interval / 8))
    return bool(interval > 0 and np.abs(seconds - grid).max() <= tolerance + 1e-9)


def tick_deltas(ticks: np.ndarray) -> np.ndarray:
    """What `frame_ticks` needs beside the first and the last tick: nothing for a regular file, else the differences."""
    if np.array_equal(_regular_ticks(int(ticks[0]), int(ticks[-1]), len(ticks)), ticks):
        return np.empty(0, dtype=np.int64)
    return np.diff(ticks)


def frame_ticks(first: int, last: int, num_frames: int, deltas: Sequence[int]) -> np.ndarray:
    """(num_frames,) int64 presentation ticks: the inverse of `tick_deltas`, to the tick."""
    if len(deltas) == 0:
        return _regular_ticks(first, last, num_frames)
    return np.concatenate([[first], first + np.cumsum(np.asarray(deltas, dtype=np.int64))])


def _regular_ticks(first: int, last: int, num_frames: int) -> np.ndarray:
    """Evenly spaced times, rounded to the clock in integers: the same on every machine."""
    if num_frames == 1:
        return np.array([first], dtype=np.int64)
    steps = np.arange(num_frames, dtype=np.int64)
    return first + (2 * steps * (last - first) + num_frames - 1) // (2 * (num_frames - 1))


def usable_seconds(begin: float, end: float, fps: float) -> tuple[float, float]:
    """What is left of the file [begin, end) without its first frame and its end; may be empty (first >= second)."""
    frame = 1 / fps if fps > 0 else 0.0
    seconds = max(end - begin, 0.0)
    share = END_MARGIN_SHARE * seconds
    margin = share if seconds < SHORT_FILE_SECONDS else END_MARGIN_SECONDS
    return begin + frame, end - max(margin, frame)


def motion_of(
    seconds: np.ndarray, bytes_per_pixel: np.ndarray, *, begin: float, end: float
) -> tuple[float, ...]:
    """Mean compressed size of the non-key frames in each of NUM_MOTION_BINS equal parts of [begin, end).

    A proxy for motion that costs no decoding: a predicted frame is large where prediction fails. It also grows with
    texture, noise and bit rate, so compare bins of one file, not files. Bins without such a frame are 0.
    """
    span = max(end - begin, 1e-9)
    bins = ((seconds - begin) / span * NUM_MOTION_BINS).astype(int).clip(0, NUM_MOTION_BINS - 1)
    totals = np.bincount(bins, weights=bytes_per_pixel, minlength=NUM_MOTION_BINS)
    counts = np.bincount(bins, minlength=NUM_MOTION_BINS)
    return tuple(float(value) for value in totals / np.maximum(counts, 1))
