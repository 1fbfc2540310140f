"""The classifier of shortcut baselines, and the verdict on their answers."""

import numpy as np
import pytest
from scipy.stats import binomtest

from videossl.audit.shortcut_baselines import (
    LinearClassifier,
    class_weights,
    measure,
    sign_test,
)


def test_classes_weigh_alike():
    labels = np.array([0, 0, 0, 1, 2, 2])
    constant = (labels == 0).astype(float)
    weights = class_weights(labels)
    assert (constant * weights).sum() / weights.sum() == pytest.approx(1 / 3)


def test_a_classifier_learns_what_can_be_learned_and_nothing_else():
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 600)
    features = np.stack([labels + 0.1 * random.normal(size=600), random.normal(size=600)], 1)
    right = LinearClassifier(features[:300], labels[:300]).answer(features[300:]) == labels[300:]
    assert right.mean() > 0.95
    assert LinearClassifier(features[:5], np.full(5, 2)).answer(features[:2]).tolist() == [2, 2]


@pytest.mark.parametrize(
    ("accuracy", "to_beat", "expected"),
    [(0.9, False, "leaks"), (0.9, True, "baseline to beat"), (0.5, False, "at chance")],
)
def test_verdicts(accuracy, to_beat, expected):
    videos = np.repeat(np.arange(60), 4)
    right = np.random.default_rng(1).random(240) < accuracy
    _, verdict = measure(right, np.ones(240), videos, chance=0.5, to_beat=to_beat)
    assert verdict == expected
    few = videos < 5
    assert measure(right[few], np.ones(20), videos[few], chance=0.5)[1] == "too few videos"


def test_nine_videos_that_a_baseline_wins_are_no_luck_and_eight_may_be():
    for won, expected in ((9, "leaks"), (8, "too few videos")):
        right = np.repeat(np.arange(9) < won, 4).astype(float)
        videos = np.repeat(np.arange(9), 4)
        assert measure(right, np.ones(36), videos, chance=0.5)[1] == expected


@pytest.mark.parametrize("won", range(10))
def test_the_sign_test_is_the_binomial_one(won):
    videos, right = np.arange(9), (np.arange(9) < won).astype(float)
    expected = binomtest(won, 9, 0.5, alternative="greater").pvalue
    assert sign_test(right, np.ones(9), videos, chance=0.5) == pytest.approx(expected)
