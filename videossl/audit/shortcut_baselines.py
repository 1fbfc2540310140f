"""A shortcut baseline: a linear classifier of a few numbers that hold no understanding, its accuracy and its verdict.

A baseline that scores above chance is either a leak, which must be closed, or a score that the model has to beat. `measure`
says which, from the answers on held-out videos.
"""

import math
import warnings
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from videossl.stats import ENOUGH_VIDEOS as MIN_VIDEOS
from videossl.stats import Interval, bootstrap_over_videos

Verdict = Literal["at chance", "leaks", "baseline to beat", "unclear", "too few videos"]

# A baseline is called a leak from this many standard errors above chance. An audit tests about forty of them: 2 would name
# one leak where there is none, 3.5 one in a hundred audits.
LEAK_ERRORS = 3.5
FEW_VIDEOS_P = 0.002  # of the sign test below MIN_VIDEOS videos, all of nine: chosen
# On standardised numbers; chosen for a few hundred questions and up to as many numbers.
INVERSE_PENALTY = 0.1
MAX_ITERATIONS = 300
_ERRORS_OF_INTERVAL = 1.96


@dataclass(frozen=True)
class ShortcutBaseline:
    """The accuracy of one shortcut on held-out videos, on the measure of the task's own accuracy."""

    probe: str  # P1, P2, ... of the battery
    name: str
    accuracy: Interval
    chance: float
    verdict: Verdict
    num_questions: int
    num_videos: int
    form: str = "evaluation"  # of the clips: evaluation, training, static, flicker, control
    asks_the_same: bool = True  # as the task's accuracy: neither a part of it nor other candidates
    is_demonstration: bool = False  # what the sampling rules keep out: never counted as a leak


@dataclass(frozen=True)
class Check:
    """One property of clips, labels or the split, and whether it is as it should be; None if it could not be tested."""

    probe: str
    name: str
    is_clean: bool | None
    says: str
    numbers: dict[str, float] = field(default_factory=dict)


class Judged(NamedTuple):
    """Which of Q questions were answered right, their weights (None: 1 each), and the videos they are about."""

    right: np.ndarray
    weights: np.ndarray | None
    videos: np.ndarray


class LinearClassifier:
    """Logistic regression of labels (Q,) on features (Q, D); all labels weigh alike if `is_balanced`.

    Where the labels are all one, it always answers that one.
    """

    def __init__(
        self, features: np.ndarray, labels: np.ndarray, *, is_balanced: bool = True
    ) -> None:
        from sklearn.exceptions import ConvergenceWarning  # sklearn takes two seconds to load
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self._only = int(labels[0]) if len(np.unique(labels)) == 1 else None
        weight = "balanced" if is_balanced else None
        regression = LogisticRegression(
            C=INVERSE_PENALTY, class_weight=weight, max_iter=MAX_ITERATIONS
        )
        self._pipeline = make_pipeline(StandardScaler(), regression)
        if self._only is None:
            with warnings.catch_warnings():  # a fit that is not quite the best is a baseline too
                warnings.simplefilter("ignore", ConvergenceWarning)
                self._pipeline.fit(features, labels)

    def answer(self, features: np.ndarray) -> np.ndarray:
        """The answers to questions with these features, (Q,) int64."""
        if self._only is not None:
            return np.full(len(features), self._only)
        answers: np.ndarray = self._pipeline.predict(features)
        return answers


def class_weights(labels: np.ndarray) -> np.ndarray:
    """(Q,) weights under which each label that occurs weighs alike, so that a constant answer scores 1 / labels."""
    _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return 1.0 / counts[index]


def judged_baseline(
    probe: str,
    name: str,
    right: np.ndarray,
    videos: np.ndarray,
    *,
    chance: float,
    weights: np.ndarray | None = None,
    to_beat: bool = False,
    seed: int = 0,
    form: str = "evaluation",
    asks_the_same: bool = True,
    is_demonstration: bool = False,
) -> ShortcutBaseline:
    """The baseline whose answers to Q held-out questions about `videos` (Q,) were `right` (Q,)."""
    weights = np.ones(len(right)) if weights is None else weights
    interval, verdict = measure(
        right.astype(float), weights, videos, chance=chance, to_beat=to_beat, seed=seed
    )
    return ShortcutBaseline(
        *(probe, name, interval, chance, verdict, len(right), len(np.unique(videos))),
        form=form,
        asks_the_same=asks_the_same,
        is_demonstration=is_demonstration,
    )


def measure(
    right: np.ndarray,
    weights: np.ndarray,
    videos: np.ndarray,
    *,
    chance: float,
    to_beat: bool = False,
    seed: int = 0,
) -> tuple[Interval, Verdict]:
    """The weighted mean of `right` (Q,) with its interval over videos, and its verdict.

    `to_beat` marks a shortcut that the task allows: above chance it is a score to beat and no leak.
    """
    interval = bootstrap_over_videos(right, weights, videos, seed=seed)
    if len(np.unique(videos[weights > 0])) < MIN_VIDEOS:
        if sign_test(right, weights, videos, chance=chance) > FEW_VIDEOS_P:
            return interval, "too few videos"
        return interval, "baseline to beat" if to_beat else "leaks"
    if interval.low <= chance:
        return interval, "at chance"
    if to_beat:
        return interval, "baseline to beat"
    is_far = interval.estimate - LEAK_ERRORS * standard_error(interval) > chance
    return interval, "leaks" if is_far else "unclear"


def sign_test(
    right: np.ndarray, weights: np.ndarray, videos: np.ndarray, *, chance: float
) -> float:
    """The probability that guesses win as many videos as these answers do: 2**-9 for nine of nine.

    A video is won if more than half of its questions, and more than `chance`, are answered right. Unlike an interval the
    test needs neither the spread between videos, which few videos do not show, nor independent questions.
    """
    won = [
        np.average(right[rows], weights=weights[rows]) > max(0.5, chance)
        for video in np.unique(videos[weights > 0])
        if (rows := (videos == video) & (weights > 0)).any()
    ]
    return sum(math.comb(len(won), k) for k in range(sum(won), len(won) + 1)) / 2 ** len(won)


def standard_error(interval: Interval) -> float:
    """The standard error of an estimate, read off its 95 % interval."""
    return (interval.high - interval.low) / (2 * _ERRORS_OF_INTERVAL)


def is_above(one: Interval, other: Interval) -> bool:
    """Tells whether `one` is greater by more than chance allows (95 %), taking the two as measured independently."""
    spread = float(np.hypot(standard_error(one), standard_error(other)))
    return one.estimate - other.estimate > _ERRORS_OF_INTERVAL * spread
