import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from videossl.errors import UserError
from videossl.probe.classifiers import chance_of_hit, hits, knn_score, similarities, votes


def slow_knn(features, labels, groups, neighbours: int, temperature: float) -> float:
    """One video at a time, from the definition."""
    right = 0
    unit = [f / np.linalg.norm(f) for f in features]
    for i, own in enumerate(unit):
        others = [j for j in range(len(unit)) if groups[j] != groups[i]]
        others = sorted(others, key=lambda j: -float(own @ unit[j]))[:neighbours]
        votes = dict.fromkeys(sorted(set(labels)), 0.0)
        for j in others:
            votes[labels[j]] += np.exp(float(own @ unit[j]) / temperature)
        right += max(votes, key=votes.get) == labels[i]
    return right / len(unit)


@pytest.mark.parametrize("neighbours", [1, 5, 20])
def test_knn_equals_a_slow_loop(neighbours):
    random = np.random.default_rng(0)
    labels = [str(c) for c in random.integers(0, 3, 60)]
    groups = [str(g) for g in random.integers(0, 12, 60)]
    features = random.normal(size=(60, 4)) + np.eye(4)[[int(c) for c in labels]]
    score = knn_score(torch.from_numpy(features), labels, groups, neighbours=neighbours)
    assert score.accuracy == pytest.approx(slow_knn(features, labels, groups, neighbours, 0.07))
    assert score.chance == max(labels.count(c) for c in "012") / 60
    assert (score.count, score.num_classes) == (60, 3)


def test_knn_never_asks_a_video_of_the_same_source():
    """Copies of one clip under one source name each other's label; under it alone they cannot."""
    features = torch.eye(4).repeat_interleave(2, 0)
    labels = ["a", "a", "b", "b", "a", "a", "b", "b"]
    assert knn_score(features, labels, list("01234567"), neighbours=1).accuracy == 1.0
    assert knn_score(features, labels, list("00112233"), neighbours=1).accuracy < 1.0


@pytest.mark.parametrize(("labels", "groups"), [("aaa", "xyz"), ("aba", "xxx")])
def test_knn_without_a_question_is_refused(labels, groups):
    with pytest.raises(UserError, match="two classes and two source groups"):
        knn_score(torch.randn(3, 2), list(labels), list(groups))


def test_votes_are_weighted_by_similarity():
    similarity = torch.tensor([[0.9, 0.8, 0.1, -1.0]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 1, 2])
    found = votes(similarity, labels, num_classes=3, neighbours=3, temperature=0.5)
    weights = [math.exp(s / 0.5) for s in (0.9, 0.8, 0.1)]
    expected = torch.tensor([[weights[0], weights[1] + weights[2], 0.0]], dtype=torch.float64)
    torch.testing.assert_close(found, expected / expected.sum())


@pytest.mark.parametrize("k", [1, 5, 40, 99])
def test_a_hit_is_a_video_of_the_class_among_the_k_nearest(k):
    random = torch.Generator().manual_seed(0)
    queries = torch.randn(20, 3, generator=random)
    gallery = torch.randn(40, 3, generator=random)
    classes = torch.randint(8, (60,), generator=random)
    found = hits(similarities(queries, gallery), classes[:20], classes[20:], k)
    for query, own, hit in zip(queries, classes[:20], found, strict=True):
        cosines = [float(F.cosine_similarity(query, other, dim=0)) for other in gallery]
        nearest = sorted(range(40), key=lambda j: -cosines[j])[:k]
        assert float(hit) == any(classes[20 + j] == own for j in nearest)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_chance_of_a_hit_is_that_of_a_gallery_in_random_order(k):
    random = np.random.default_rng(0)
    queries, gallery = torch.tensor([0, 0, 1, 2]), torch.tensor([0] * 3 + [1] * 20 + [2] * 7)
    tries = [random.permutation(gallery.numpy())[:k] for _ in range(4000)]
    simulated = np.mean([[query in drawn for query in queries.numpy()] for drawn in tries])
    assert chance_of_hit(queries, gallery, k) == pytest.approx(simulated, abs=0.015)
