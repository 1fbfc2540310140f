"""From answers to figures: against slow loops."""

import itertools
import math

import numpy as np
import pytest
import torch

from videossl.audit.pretext_accuracy import auc, judge
from videossl.types import Predictions


def predictions(num: int = 60, num_answers: int = 3, seed: int = 0) -> Predictions:
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_answers, (num,), generator=random)
    scores = torch.randn(num, num_answers, generator=random)
    scores[torch.arange(num), labels] += 0.8
    return Predictions(
        scores,
        labels,
        torch.arange(num) // 4,
        torch.rand(num, generator=random),
        baselines={"always 0": torch.zeros(num, dtype=torch.int64)},
        numbers={"place": torch.arange(num).float()},
        subsets={"first half": torch.arange(num) < num // 2, "none": torch.zeros(num) > 0},
    )


def test_figures_equal_slow_loops():
    given = predictions()
    judged = judge(given)
    said, labels = given.scores.argmax(1).tolist(), given.labels.tolist()
    weights = given.weights.tolist()
    rows = list(zip(said, labels, weights, strict=True))
    total = sum(weights)
    assert judged["accuracy"][0] == pytest.approx(sum(w for s, y, w in rows if s == y) / total)
    recalls = [
        sum(w for s, y, w in rows if s == y == c) / sum(w for _, y, w in rows if y == c)
        for c in range(3)
    ]
    assert judged["balanced_accuracy"][0] == pytest.approx(sum(recalls) / 3)
    shares = [sum(w for _, y, w in rows if y == c) / total for c in range(3)]
    assert judged["majority"] == pytest.approx(max(shares))
    baseline = judged["baselines"]["always 0"]
    assert baseline["accuracy"][0] == pytest.approx(shares[0])
    assert baseline["balanced_accuracy"][0] == pytest.approx(1 / 3)
    assert baseline["model_minus_baseline"][0] == pytest.approx(judged["accuracy"][0] - shares[0])
    assert judged["numbers"]["place"][0] == pytest.approx(np.average(range(60), weights=weights))
    for y, s in itertools.product(range(3), repeat=2):
        expected = sum(w for a, b, w in rows if (a, b) == (s, y))
        assert judged["confusion"][y][s] == pytest.approx(expected)
    low, high = judged["accuracy"][1:]
    assert low < judged["accuracy"][0] < high


def test_subsets_are_judged_by_themselves():
    given = predictions()
    half = Predictions(given.scores[:30], given.labels[:30], given.videos[:30], given.weights[:30])
    judged = judge(given)["subsets"]
    assert judged["first half"]["accuracy"] == judge(half)["accuracy"]
    assert judged["none"]["num_questions"] == 0
    assert math.isnan(judged["none"]["accuracy"][0])
    assert math.isnan(judged["none"]["balanced_accuracy"][0])


def test_candidates_of_a_batch_are_no_classes():
    """The best constant answer would be always right where the right one is always last."""
    scores = torch.tensor([[0.0, 1.0, 2.0], [3.0, 1.0, 2.0], [0.0, -torch.inf, 2.0]])
    given = Predictions(
        scores,
        torch.full((3,), 2),
        torch.arange(3),
        torch.ones(3),
        baselines={"first": torch.zeros(3, dtype=torch.int64)},
        chance=torch.tensor([1 / 3, 1 / 3, 1 / 2]),
    )
    judged = judge(given)
    assert judged["accuracy"][0] == pytest.approx(2 / 3)
    assert judged["chance"] == pytest.approx((1 / 3 + 1 / 3 + 1 / 2) / 3)
    assert not {"majority", "balanced_accuracy", "confusion", "auc"} & judged.keys()
    assert judged["baselines"]["first"]["accuracy"][0] == 0


def test_area_under_the_curve_is_the_share_of_pairs_won():
    random = np.random.default_rng(0)
    scores, labels = random.integers(0, 6, 40).astype(float), random.integers(0, 2, 40)
    weights = random.uniform(size=40)
    won = asked = 0.0
    for i, j in itertools.product(range(40), repeat=2):
        if labels[i] == 1 and labels[j] == 0:
            pair = weights[i] * weights[j]
            asked += pair
            won += pair * ((scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]))
    assert auc(scores, labels, weights) == pytest.approx(won / asked)
    assert math.isnan(auc(scores, np.ones(40), weights))


def test_two_answers_have_an_area_and_three_have_none():
    assert judge(predictions(num_answers=2))["auc"][0] > 0.5
    assert "auc" not in judge(predictions())
