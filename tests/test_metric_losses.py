"""Each loss against a slow loop written from its formula, and against pytorch-metric-learning where it has the loss."""

import math
from itertools import permutations

import pytest
import torch
from pytorch_metric_learning import distances as theirs_distances
from pytorch_metric_learning import losses as theirs
from pytorch_metric_learning import miners, reducers

from videossl.pretext import _losses

EUCLIDEAN = theirs_distances.LpDistance(normalize_embeddings=False)
MEAN = reducers.MeanReducer()


@pytest.fixture(params=range(3))
def batch(request) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(request.param)
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 2, 3])
    return torch.randn(8, 5, generator=generator, dtype=torch.float64), labels


def close(found: torch.Tensor, expected: object) -> None:
    assert float(found) == pytest.approx(float(expected), rel=1e-6, abs=1e-9)


def d(x: torch.Tensor, i: int, j: int) -> float:
    return math.sqrt(sum(float(a - b) ** 2 for a, b in zip(x[i], x[j], strict=True)))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def pairs(labels: torch.Tensor, *, same: bool) -> list[tuple[int, int]]:
    return [
        (i, j) for i, j in permutations(range(len(labels)), 2) if (labels[i] == labels[j]) == same
    ]


def test_contrastive(batch):
    x, labels = batch
    near = mean([d(x, i, j) ** 2 for i, j in pairs(labels, same=True)])
    far = mean([max(0.0, 2.5 - d(x, i, j)) ** 2 for i, j in pairs(labels, same=False)])
    close(_losses.contrastive(x, labels, margin=2.5), near + far)
    # Theirs is not squared, so pair by pair; each twice, since it takes one pair for none.
    loss = theirs.ContrastiveLoss(pos_margin=0, neg_margin=2.5, distance=EUCLIDEAN, reducer=MEAN)
    x, one = x[:3], torch.tensor([0, 0, 1])
    none = torch.tensor([], dtype=torch.int64)

    def twice(row: int) -> torch.Tensor:
        return torch.tensor([row, row])

    near = float(loss(x, one, (twice(0), twice(1), none, none)))
    far = [float(loss(x, one, (none, none, twice(i), twice(2)))) for i in (0, 1)]
    close(_losses.contrastive(x, one, margin=2.5), near**2 + mean([f**2 for f in far]))


@pytest.mark.parametrize("mining", ["all", "semi-hard", "hard"])
def test_triplet(batch, mining):
    x, labels = batch
    margin = 0.7
    values = []
    for a, p in pairs(labels, same=True):
        for n in range(len(labels)):
            if labels[n] == labels[a]:
                continue
            gap = d(x, a, n) - d(x, a, p)
            kept = {"all": True, "semi-hard": 0 < gap <= margin, "hard": gap <= 0}[mining]
            if kept:
                values.append(max(0.0, margin - gap))
    found = _losses.triplet(x, labels, margin=margin, mining=mining)
    close(found, mean(values))
    loss = theirs.TripletMarginLoss(margin=margin, distance=EUCLIDEAN, reducer=MEAN)
    kind = {"all": "all", "semi-hard": "semihard", "hard": "hard"}[mining]
    miner = miners.TripletMarginMiner(margin=margin, type_of_triplets=kind, distance=EUCLIDEAN)
    close(found, loss(x, labels, None if mining == "all" else miner(x, labels)))


def test_lifted_structured(batch):
    x, labels = batch
    values = []
    for i, j in pairs(labels, same=True):
        total = sum(
            math.exp(1.5 - d(x, end, k))
            for end in (i, j)
            for k in range(8)
            if labels[k] != labels[i]
        )
        values.append(max(0.0, math.log(total) + d(x, i, j)) ** 2 / 2)
    found = _losses.lifted_structured(x, labels, margin=1.5)
    close(found, mean(values))
    close(
        found,
        theirs.LiftedStructureLoss(neg_margin=1.5, distance=EUCLIDEAN, reducer=MEAN)(x, labels),
    )


def test_n_pair(batch):
    x, _ = batch
    anchors, positives = x[:4], x[4:]
    values = []
    for i in range(4):
        own = float(anchors[i] @ positives[i])
        others = [float(anchors[i] @ positives[j]) - own for j in range(4) if j != i]
        values.append(math.log(1 + sum(math.exp(o) for o in others)))
    found = _losses.n_pair(anchors, positives)
    close(found, mean(values))
    plain = theirs_distances.DotProductSimilarity(normalize_embeddings=False)
    loss = theirs.NPairsLoss(distance=plain, reducer=MEAN)
    interleaved = torch.stack([anchors, positives], 1).flatten(0, 1)
    labels = torch.arange(4).repeat_interleave(2)
    close(found, loss(interleaved, labels))


def test_noise_contrastive_is_the_logistic_loss_of_telling_data_from_noise(batch):
    x, _ = batch
    data, noise = x[:, 0], x[:, 1:]
    k = noise.shape[1]
    values = []
    for u, others in zip(data.tolist(), noise.tolist(), strict=True):
        is_data = lambda v: 1 / (1 + k * math.exp(-v))  # noqa: E731
        values.append(-math.log(is_data(u)) - sum(math.log(1 - is_data(v)) for v in others))
    close(_losses.noise_contrastive(data, noise), mean(values))
    # Places of no sample weigh nothing, and are not counted.
    padded = torch.cat([noise, torch.full_like(noise, -torch.inf)], 1)
    close(_losses.noise_contrastive(data, padded), mean(values))


def test_noise_contrastive_is_least_at_the_true_ratio():
    """The log-ratio that it settles on for two outcomes is that of their frequencies."""
    torch.manual_seed(0)
    data_share, noise_share = torch.tensor([0.8, 0.2]), torch.tensor([0.5, 0.5])
    data = torch.multinomial(data_share, 20_000, replacement=True)
    noise = torch.multinomial(noise_share, 60_000, replacement=True).view(20_000, 3)
    ratio = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.LBFGS([ratio], max_iter=50)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = _losses.noise_contrastive(ratio[data], ratio[noise])
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(ratio.detach(), (data_share / noise_share).log(), rtol=0, atol=0.03)


def test_info_nce(batch):
    x, _ = batch
    queries, keys = x[:3], x[3:]
    unit = [v / v.norm() for v in x]
    excluded = torch.zeros(3, 5, dtype=torch.bool)
    excluded[0, 1] = excluded[2, 4] = excluded[1, 1] = True  # the last is its own key, which stays
    for mask in (None, excluded):
        values = []
        for i in range(3):
            logits = [float(unit[i] @ unit[3 + j]) / 0.2 for j in range(5)]
            kept = [j for j in range(5) if mask is None or j == i or not mask[i, j]]
            values.append(-logits[i] + math.log(sum(math.exp(logits[j]) for j in kept)))
        close(_losses.info_nce(queries, keys, temperature=0.2, excluded=mask), mean(values))


def test_info_nce_both_ways_is_nt_xent_between_two_views():
    """One positive per row, all rows of the other view as negatives: theirs, with only those pairs."""
    torch.manual_seed(0)
    a, b = torch.randn(2, 6, 5, dtype=torch.float64)
    rows = torch.arange(6)
    first, second = (grid.flatten() for grid in torch.meshgrid(rows, rows, indexing="ij"))
    off = first != second
    loss = theirs.NTXentLoss(temperature=0.2, reducer=MEAN)
    pairs_of = (rows, rows + 6, first[off], second[off] + 6)
    expected = loss(torch.cat([a, b]), torch.cat([rows, rows]), pairs_of)
    close(_losses.info_nce(a, b, temperature=0.2), expected)


def test_soft_nearest_neighbour(batch):
    x, labels = batch
    values = []
    for i in range(8):
        weight = {j: math.exp(-(d(x, i, j) ** 2) / 3) for j in range(8) if j != i}
        same = sum(w for j, w in weight.items() if labels[j] == labels[i])
        if same:
            values.append(-math.log(same / sum(weight.values())))
    assert len(values) == 7  # the last label is alone
    close(_losses.soft_nearest_neighbour(x, labels, temperature=3.0), mean(values))


@pytest.mark.parametrize(
    "name", ["contrastive", "triplet", "lifted_structured", "soft_nearest_neighbour"]
)
def test_gradients_are_finite_where_rows_are_equal(name):
    x = torch.ones(4, 3, requires_grad=True)
    getattr(_losses, name)(x, torch.tensor([0, 0, 1, 1])).backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("contrastive", [0, 1, 2], "the batch needs two rows of one label"),
        ("contrastive", [0, 0, 0], "the batch needs rows of two labels"),
        ("triplet", [0, 1, 2], "two rows of one label and one of another"),
        ("lifted_structured", [0, 0, 0], "rows of two labels"),
        ("soft_nearest_neighbour", [0, 1, 2], "two rows of one label"),
        (
            "triplet",
            [0, 0],
            r"embeddings must be \(N, D\) with labels \(N,\), got \(3, 2\) and \(2,\)",
        ),
    ],
)
def test_a_batch_without_a_question_is_refused(name, labels, message):
    with pytest.raises(ValueError, match=message):
        getattr(_losses, name)(torch.randn(3, 2), torch.tensor(labels))


def test_info_nce_refuses_shapes_that_disagree():
    with pytest.raises(ValueError, match=r"queries \(3, 2\) and keys \(3, 4\) must be"):
        _losses.info_nce(torch.randn(3, 2), torch.randn(3, 4))
    with pytest.raises(ValueError, match="3 queries have but 2 keys"):
        _losses.info_nce(torch.randn(3, 2), torch.randn(2, 2))
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        _losses.info_nce(torch.randn(3, 2), torch.randn(3, 2), temperature=0)
    with pytest.raises(
        ValueError, match=r"noise must be \(3, k\) beside data \(3,\), got \(2, 4\)"
    ):
        _losses.noise_contrastive(torch.randn(3), torch.randn(2, 4))
