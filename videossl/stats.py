"""How sure a number is: bootstrap intervals over videos, the units that are drawn independently.

Questions about one video share its content, so an interval over questions would be too narrow (Efron and Tibshirani, 1993,
chapter 8: resample what was sampled).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], float]  # of a weight per row

NUM_RESAMPLES = 1000
SHARE = 0.95  # of the resamples that an interval holds
# Of n draws the spread is sqrt((n - 1) / n) of what it should be, and its percentiles are few: chosen.
ENOUGH_VIDEOS = 10


def too_few(num_videos: int, what: str = "videos") -> str:
    """`6 videos: too few to tell`, where an interval over them means little; else empty."""
    if num_videos >= ENOUGH_VIDEOS:
        return ""
    return f"{num_videos} {what.removesuffix('s') if num_videos == 1 else what}: too few to tell"


class Interval(NamedTuple):
    """An estimate and the bounds of its 95 % interval; all nan where nothing was asked."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"


UNKNOWN = Interval(float("nan"), float("nan"), float("nan"))


def bootstrap(
    statistic: Statistic,
    weights: np.ndarray,
    videos: np.ndarray,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """`statistic(weights)` and its interval over resamples of the videos, each a new set of row weights.

    `weights` (Q,) are those of the rows, `videos` (Q,) names the video of each. A resample multiplies the weights of a
    video's rows by how often it was drawn.
    """
    weights = np.asarray(weights, dtype=np.float64)
    if not weights.sum() > 0:
        return UNKNOWN
    index, draws = _drawn(videos, num_resamples, seed)
    return _interval(statistic(weights), [statistic(weights * drawn[index]) for drawn in draws])


def bootstrap_over_videos(
    values: np.ndarray,
    weights: np.ndarray,
    videos: np.ndarray,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The weighted mean of `values` (Q,) and its interval over videos."""
    values = np.asarray(values, dtype=np.float64)
    weights = np.asarray(weights, dtype=np.float64)
    if not weights.sum() > 0:
        return UNKNOWN
    index, draws = _drawn(videos, num_resamples, seed)
    # A mean needs each video's two sums alone: all resamples at once, however many rows there are.
    sums, totals = np.bincount(index, values * weights), np.bincount(index, weights)
    with np.errstate(invalid="ignore"):
        means = (draws @ sums) / (draws @ totals)
    return _interval(float(sums.sum() / totals.sum()), means)


def _drawn(videos: np.ndarray, num_resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The video of each row as a number, and how often each resample drew each video: (resamples, videos)."""
    names, index = np.unique(videos, return_inverse=True)
    random = np.random.default_rng(seed)
    draws = [
        np.bincount(random.integers(len(names), size=len(names)), minlength=len(names))
        for _ in range(num_resamples)
    ]
    return index, np.stack(draws)


def _interval(estimate: float, resampled: Sequence[float] | Floats) -> Interval:
    """The middle SHARE of those resamples whose statistic is known."""
    known = np.asarray(resampled)
    known = known[~np.isnan(known)]
    tail = 50 * (1 - SHARE)
    low, high = np.percentile(known, [tail, 100 - tail]) if len(known) else (np.nan, np.nan)
    return Interval(estimate, float(low), float(high))
