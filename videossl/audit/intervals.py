"""How sure a number is: bootstrap intervals over videos, the units that are drawn independently.

Questions about one video share its content, so an interval over questions would be too narrow (Efron and Tibshirani, 1993,
chapter 8: resample what was sampled).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], float]  # of a weight per row

NUM_RESAMPLES = 1000
SHARE = 0.95  # of the resamples that an interval holds


class Interval(NamedTuple):
    """An estimate and the bounds of its 95 % interval; all nan where nothing was asked."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"


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
        return Interval(float("nan"), float("nan"), float("nan"))
    _, index = np.unique(videos, return_inverse=True)
    num_videos = int(index.max()) + 1
    random = np.random.default_rng(seed)
    values = []
    for _ in range(num_resamples):
        drawn = np.bincount(random.integers(num_videos, size=num_videos), minlength=num_videos)
        values.append(statistic(weights * drawn[index]))
    known = np.array(values)[~np.isnan(values)]
    tail = 50 * (1 - SHARE)
    low, high = np.percentile(known, [tail, 100 - tail]) if len(known) else (np.nan, np.nan)
    return Interval(statistic(weights), float(low), float(high))


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
    _, index = np.unique(videos, return_inverse=True)
    weights = np.asarray(weights, dtype=np.float64)
    if not weights.sum() > 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    # A mean needs each video's two sums alone: all resamples at once, however many rows there are.
    sums, totals = np.bincount(index, values * weights), np.bincount(index, weights)
    random = np.random.default_rng(seed)
    drawn = np.stack(
        [
            np.bincount(random.integers(len(sums), size=len(sums)), minlength=len(sums))
            for _ in range(num_resamples)
        ]
    )
    with np.errstate(invalid="ignore"):
        means = (drawn @ sums) / (drawn @ totals)
    tail = 50 * (1 - SHARE)
    low, high = np.nanpercentile(means, [tail, 100 - tail])
    return Interval(float(sums.sum() / totals.sum()), float(low), float(high))
