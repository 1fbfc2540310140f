"""What an audit finds: how far each cheat gets, what is wrong with clips and labels, and the words for both."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from videossl.stats import ENOUGH_VIDEOS as MIN_VIDEOS
from videossl.stats import Interval, bootstrap_over_videos

Verdict = Literal["at chance", "leaks", "baseline to beat", "unclear", "too few videos"]

# Standard errors above chance from which a cheat is called a leak. An audit asks about a hundred times: 2 would name three
# leaks where there is none, 3.5 one in forty audits.
LEAK_ERRORS = 3.5
FEW_VIDEOS_P = 0.002  # of fewer videos than that, all of nine: chosen
_ERRORS_OF_INTERVAL = 1.96


@dataclass(frozen=True)
class Cheat:
    """How far one rule without a trained encoder gets on held-out videos, on the measure of the task's accuracy."""

    probe: str  # P2, P3, ... of the battery
    name: str
    accuracy: Interval
    chance: float
    verdict: Verdict
    num_questions: int
    num_videos: int
    form: str = "evaluation"  # of the clips: evaluation, training, static, flicker, control
    asks_the_same: bool = True  # as the task's accuracy: neither a part of it nor other candidates
    is_demonstration: bool = False  # of what the rules keep out: no leak, however far it gets


@dataclass(frozen=True)
class Check:
    """One thing about clips, labels or the split that is as it should be, or is not; None: it could not be looked at."""

    probe: str
    name: str
    is_clean: bool | None
    says: str
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskAudit:
    """All about one task. `model` is the accuracy of the run's checkpoint on held-out videos, where one was given."""

    task: str
    chance: float
    cheats: Sequence[Cheat]
    checks: Sequence[Check]
    model: Interval | None = None

    @property
    def best_cheat(self) -> Cheat | None:
        """The one that gets farthest, leak or baseline, of those that answer what the model is asked."""
        known = [c for c in self._judged if not np.isnan(c.accuracy.estimate)]
        return max(known, key=lambda cheat: cheat.accuracy.estimate, default=None)

    @property
    def num_videos(self) -> int:
        """How many held-out videos the cheap cheats were judged on."""
        return max((cheat.num_videos for cheat in self._judged), default=0)

    @property
    def least_found(self) -> float | None:
        """The accuracy from which on a cheap cheat would have been called a leak; None where the videos are too few."""
        if self.num_videos < MIN_VIDEOS:
            return None
        widest = np.nanmax([standard_error(cheat.accuracy) for cheat in self._judged])
        return float(min(1.0, self.chance + LEAK_ERRORS * widest))

    @property
    def _judged(self) -> list[Cheat]:
        return [
            c
            for c in self.cheats
            if c.probe in CHEAP and c.form == "evaluation" and c.asks_the_same
        ]

    @property
    def leaks(self) -> list[str]:
        """What gives answers away: the names of cheats and what the checks say."""
        return [f"{c.probe} {c.name} ({c.form})" for c in self.cheats if c.verdict == "leaks"] + [
            c.says for c in self.checks if c.is_clean is False
        ]


# The probes that answer the task's own questions: P5 and P6 ask others, P7 asks again, P9 trains a head for long.
CHEAP = ("P2", "P3", "P4")


def measure(
    right: np.ndarray,
    weights: np.ndarray,
    videos: np.ndarray,
    *,
    chance: float,
    is_baseline: bool = False,
    seed: int = 0,
) -> tuple[Interval, Verdict]:
    """The weighted mean of `right` (Q,) with its interval over videos, and what it means."""
    interval = bootstrap_over_videos(right, weights, videos, seed=seed)
    if len(np.unique(videos[weights > 0])) < MIN_VIDEOS:
        if sign_test(right, weights, videos, chance=chance) > FEW_VIDEOS_P:
            return interval, "too few videos"
        return interval, "baseline to beat" if is_baseline else "leaks"
    if interval.low <= chance:
        return interval, "at chance"
    if is_baseline:
        return interval, "baseline to beat"
    is_far = interval.estimate - LEAK_ERRORS * standard_error(interval) > chance
    return interval, "leaks" if is_far else "unclear"


def sign_test(
    right: np.ndarray, weights: np.ndarray, videos: np.ndarray, *, chance: float
) -> float:
    """The probability that a guess wins as many videos as these answers do: 2**-9 for nine of nine.

    A video is won where more than half of its questions, and more than `chance`, are answered. It takes no spread to be
    known, as an interval over a few videos does, and no questions to be independent.
    """
    won = [
        np.average(right[rows], weights=weights[rows]) > max(0.5, chance)
        for video in np.unique(videos[weights > 0])
        if (rows := (videos == video) & (weights > 0)).any()
    ]
    return sum(math.comb(len(won), k) for k in range(sum(won), len(won) + 1)) / 2 ** len(won)


def standard_error(interval: Interval) -> float:
    """Of the estimate, read off its 95 % interval."""
    return (interval.high - interval.low) / (2 * _ERRORS_OF_INTERVAL)


def is_above(one: Interval, other: Interval) -> bool:
    """Whether the first is greater by more than chance allows (95 %), taking both to be measured apart."""
    spread = float(np.hypot(standard_error(one), standard_error(other)))
    return one.estimate - other.estimate > _ERRORS_OF_INTERVAL * spread
