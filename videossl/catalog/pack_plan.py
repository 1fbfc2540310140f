"""What a video is cut into before it is packed: pure functions of its facts and of the settings."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from videossl.catalog.pack_settings import PackSettings
from videossl.decode.index import CONSTANT_RATE_TOLERANCE, VideoIndex

SETTINGS = "pack.json"  # in a packed folder: what its shards were made of, and how


MAX_RATE_DENOMINATOR = 1001  # 30000/1001 and its like are kept exactly


@dataclass(frozen=True)
class Shot:
    """What becomes one file: frame k of it is frame `frames[k]` of the source."""

    begin_seconds: float  # on the source's clock
    end_seconds: float
    rate: Fraction
    frames: np.ndarray  # (n,) ascending indices, with repeats where the source has fewer


def plan_shots(
    index: VideoIndex, cuts: Sequence[float], settings: PackSettings
) -> tuple[list[Shot], int]:
    """The shots of a video and the number of those dropped because they are too short.

    A frame of the output at k / fps is the one that the source shows then; at its own constant rate, each frame once.
    """
    info = index.info
    seconds = index.pts_seconds
    rate = Fraction(settings.fps or info.fps).limit_denominator(MAX_RATE_DENOMINATOR)
    # Cuts are stored in single precision: the nearest frame is meant.
    firsts = sorted({int(np.abs(seconds - cut).argmin()) for cut in cuts} - {0})
    edges = [0, *firsts, len(seconds)]
    shots, num_short = [], 0
    for first, stop in itertools.pairwise(edges):
        begin = float(seconds[first])
        end = float(seconds[stop]) if stop < len(seconds) else info.end_seconds
        if end - begin < settings.min_shot_seconds:
            num_short += 1
            continue
        if settings.fps is None and info.is_constant_rate:
            frames = np.arange(first, stop)
        else:
            shown_from = _even(seconds) if info.is_constant_rate else seconds
            times = _grid(begin, end, rate) + float(index.time_base)  # rounded by the container
            frames = np.searchsorted(shown_from[:stop], times, side="right") - 1
            frames = frames.clip(first)  # an even time may lie past the rounded begin
        shots.append(Shot(begin, end, rate, frames))
    return shots, num_short


def output_size(
    width: int, height: int, bars: Sequence[int], short_side: int
) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
    """The (top, bottom, left, right) to crop and the (width, height) to scale to, all even, for a picture as shown.

    A row more than a bar is cropped: the one beside it is blended with it. Raises ValueError for a picture that has no
    two rows or columns.
    """
    top, bottom, left, right = ((bar + 2) // 2 * 2 if bar else 0 for bar in (*bars, 0, 0, 0, 0)[:4])
    bottom += (height - top - bottom) % 2
    right += (width - left - right) % 2
    kept_width, kept_height = width - left - right, height - top - bottom
    if min(kept_width, kept_height) < 2:
        raise ValueError(
            f"the picture of {width}x{height} is smaller than the 2x2 that 4:2:0 needs"
        )
    scale = min(1.0, short_side / min(kept_width, kept_height))
    size = tuple(max(2, 2 * round(side * scale / 2)) for side in (kept_width, kept_height))
    return (top, bottom, left, right), (size[0], size[1])


def _grid(begin: float, end: float, rate: Fraction) -> np.ndarray:
    """(n,) times begin, begin + 1 / rate, ... before `end`; the last of a rounded end is left out."""
    count = max(1, int(np.ceil((end - begin) * float(rate) - CONSTANT_RATE_TOLERANCE)))
    return begin + np.arange(count) / float(rate)


def _even(seconds: np.ndarray) -> np.ndarray:
    """The times of a file of constant rate without the rounding of its container."""
    return np.linspace(seconds[0], seconds[-1], len(seconds))
