"""Losses of pairs, triplets and InfoNCE, with the negatives of all processes."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive(embeddings: Tensor, labels: Tensor, *, margin: float = 1.0) -> Tensor:
    """Mean over positive pairs of d^2, plus mean over negative pairs of max(0, margin - d)^2.

    Hadsell, Chopra, LeCun, CVPR 2006, equation 4 (Chopra et al., CVPR 2005, section 2), each kind of pair weighing alike.
    """
    positive, negative = _pairs(embeddings, labels)
    _require(positive, "two rows of one label")
    _require(negative, "rows of two labels")
    distance = distances(embeddings, embeddings)
    return distance[positive].square().mean() + F.relu(margin - distance[negative]).square().mean()


def triplet(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: float = 0.2,
    mining: Literal["all", "semi-hard", "hard"] = "semi-hard",
) -> Tensor:
    """Mean over triplets (a, p, n) of max(0, d(a, p) - d(a, n) + margin). Schroff et al., CVPR 2015, section 3.1.

    `semi-hard` keeps the triplets whose negative is further than the positive and inside the margin (section 3.2), `hard`
    those whose negative is nearer than the positive; 0, with a gradient of 0, where none is left.
    """
    positive, negative = _pairs(embeddings, labels)
    is_triplet = positive[:, :, None] & negative[:, None, :]  # (a, p, n)
    _require(is_triplet, "two rows of one label and one of another")
    distance = distances(embeddings, embeddings)
    gap = distance[:, None, :] - distance[:, :, None]  # d(a, n) - d(a, p)
    if mining == "semi-hard":
        is_triplet = is_triplet & (gap > 0) & (gap <= margin)
    elif mining == "hard":
        is_triplet = is_triplet & (gap <= 0)
    elif mining != "all":
        raise ValueError(f"mining must be all, semi-hard or hard, got {mining!r}")
    losses = F.relu(margin - gap) * is_triplet
    return losses.sum() / is_triplet.sum().clamp_min(1)


def lifted_structured(embeddings: Tensor, labels: Tensor, *, margin: float = 1.0) -> Tensor:
    """Half the mean over positive pairs (i, j) of max(0, log sum_n exp(margin - d) + d(i, j))^2, n the negatives of both.

    Song, Xiang, Jegelka, Savarese, CVPR 2016, equation 4.
    """
    positive, negative = _pairs(embeddings, labels)
    _require(positive, "two rows of one label")
    _require(negative, "rows of two labels")
    distance = distances(embeddings, embeddings)
    pushed = (margin - distance).masked_fill(~negative, -torch.inf).logsumexp(1)  # of each row
    losses = F.relu(torch.logaddexp(pushed[:, None], pushed[None, :]) + distance).square() / 2
    return losses[positive].mean()


def n_pair(anchors: Tensor, positives: Tensor, excluded: Tensor | None = None) -> Tensor:
    """Mean over i of log(1 + sum_{j != i} exp(s(a_i, p_j) - s(a_i, p_i))): (N, D) each, row i of a class of its own.

    `excluded` (N, N) marks rows j that are of i's class after all. Sohn, NeurIPS 2016, equation 4 (N-pair-mc), without the
    penalty on the embeddings' norm.
    """
    return info_nce(anchors, positives, temperature=1.0, normalize=False, excluded=excluded)


def noise_contrastive(data: Tensor, noise: Tensor) -> Tensor:
    """Mean over data of -log sigma(u - log k) - sum over its k noise samples of log sigma(log k - u).

    `data` (N,) and `noise` (N, K) hold u, the log-ratio of the model's density to the noise's; -inf marks places of no
    sample, k is the number of the others in each row. Gutmann and Hyvarinen, JMLR 2012, equation 10, divided by the number
    of data samples.
    """
    if noise.ndim != 2 or len(noise) != len(data):
        raise ValueError(
            f"noise must be ({len(data)}, k) beside data {tuple(data.shape)}, got {tuple(noise.shape)}"
        )
    log_k = (noise > -torch.inf).sum(1).clamp_min(1).to(data.dtype).log()
    return (F.softplus(log_k - data) + F.softplus(noise - log_k[:, None]).sum(1)).mean()


def info_nce(
    queries: Tensor,
    keys: Tensor,
    *,
    temperature: float = 0.07,
    normalize: bool = True,
    excluded: Tensor | None = None,
) -> Tensor:
    """Mean over i of -log(exp(s_ii / t) / sum_j exp(s_ij / t)): row i of `queries` (N, D) belongs to row i of `keys` (M, D).

    van den Oord et al., arXiv:1807.03748, equation 4; with cosines and a temperature as in SimCLR (Chen et al., ICML 2020).
    Keys beyond N are negatives of all; `excluded` (N, M) marks keys that are none of a query's, as clips of its video.
    """
    if queries.ndim != 2 or keys.ndim != 2 or queries.shape[1] != keys.shape[1]:
        raise ValueError(
            f"queries {tuple(queries.shape)} and keys {tuple(keys.shape)} must be (N, D) and (M, D)"
        )
    if len(keys) < len(queries):
        raise ValueError(f"{len(queries)} queries have but {len(keys)} keys")
    if temperature <= 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    if normalize:
        queries, keys = F.normalize(queries, dim=1), F.normalize(keys, dim=1)
    # In bfloat16, as autocast would have it, cosines divided by a temperature of 0.05 are wrong by tenths.
    with torch.autocast(queries.device.type, enabled=False):
        scores = queries @ keys.T
    return info_nce_of_scores(scores, temperature=temperature, excluded=excluded)


def info_nce_of_scores(
    scores: Tensor, *, temperature: float, excluded: Tensor | None = None
) -> Tensor:
    """The same of scores (N, M) that are there already, column i being query i's own."""
    logits = scores / temperature
    own = torch.arange(len(scores), device=scores.device)
    if excluded is not None:
        is_own = own[:, None] == torch.arange(scores.shape[1], device=scores.device)
        logits = logits.masked_fill(excluded & ~is_own, -torch.inf)
    return F.cross_entropy(logits, own)


def information_bound(loss: Tensor, num_terms: Tensor) -> tuple[Tensor, Tensor]:
    """Scalars, in nats: the lower bound log N - `loss` that InfoNCE gives on the mutual information, and its ceiling log N.

    `num_terms` (B,) are the N of each row, all terms of the denominator; their mean logarithm counts. van den Oord et al.,
    arXiv:1807.03748, section 2.3 and appendix A.1. A bound only if the negatives are drawn independently of the query.
    """
    ceiling = num_terms.float().log().mean()
    return ceiling - loss, ceiling


def soft_nearest_neighbour(
    embeddings: Tensor, labels: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """Mean over i of -log(sum_{j of i's label} exp(-d_ij^2 / t) / sum_{j != i} exp(-d_ij^2 / t)).

    Frosst, Papernot, Hinton, ICML 2019, equation 1; rows without another of their label are left out.
    """
    positive, negative = _pairs(embeddings, labels)
    _require(positive, "two rows of one label")
    if temperature <= 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    logits = -distances(embeddings, embeddings).square() / temperature
    same = logits.masked_fill(~positive, -torch.inf).logsumexp(1)
    everyone = logits.masked_fill(~(positive | negative), -torch.inf).logsumexp(1)
    return (everyone - same)[positive.any(1)].mean()


def distances(a: Tensor, b: Tensor) -> Tensor:
    """(N, D) and (M, D) to Euclidean distances (N, M), whose gradient at 0 is 0."""
    squared = (a[:, None] - b[None]).square().sum(-1)
    is_zero = squared == 0
    return squared.masked_fill(is_zero, 1.0).sqrt().masked_fill(is_zero, 0.0)


def _pairs(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(N, N) whether two different rows have one label, and whether they have two."""
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"embeddings must be (N, D) with labels (N,), got {tuple(embeddings.shape)} and {tuple(labels.shape)}"
        )
    same = labels[:, None] == labels
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return same & ~itself, ~same


def _require(pairs: Tensor, what: str) -> None:
    if not pairs.any():
        raise ValueError(f"the batch needs {what}")


def candidates(own: Tensor, everyone: Tensor, excluded: Tensor) -> tuple[Tensor, Tensor]:
    """The keys of N queries, `own` (N, D) then `everyone` (M, D): (N + M, D), and which are none of a query's.

    The mask is (N, N + M): own keys but for the query's, then `excluded` (N, M), which must hold the query's own key too.
    Written first, each own key is at a place that needs no rank to know.
    """
    others = ~torch.eye(len(own), dtype=torch.bool, device=own.device)
    return torch.cat([own, everyone]), torch.cat([others, excluded], 1)


def similarities(queries: Tensor, keys: Tensor) -> Tensor:
    """(N, M) inner products, in the precision of the rows under autocast too: the loss sees them as they are."""
    with torch.autocast(queries.device.type, enabled=False):
        return queries @ keys.T


class Matches(NamedTuple):
    """How N queries found their own keys: the loss; of each query whether it did, and what a guess does; the bound on
    mutual information and its ceiling, in nats."""

    loss: Tensor
    found: Tensor
    chance: Tensor
    information: Tensor
    ceiling: Tensor


def match(queries: Tensor, keys: Tensor, excluded: Tensor, *, temperature: float) -> Matches:
    """InfoNCE of queries (N, D) among keys and the mask that `candidates` gives, all products taken once."""
    scores = similarities(queries, keys)
    loss = info_nce_of_scores(scores, temperature=temperature, excluded=excluded)
    num_terms = (~excluded).sum(1)
    found = finds_own(scores, excluded)
    return Matches(loss, found, 1 / num_terms, *information_bound(loss.detach(), num_terms))


def finds_own(scores: Tensor, excluded: Tensor) -> Tensor:
    """(N,) float: 1 where key i has the best of row i's scores (N, M) that are not excluded, a share of it in a tie.

    Embeddings that have collapsed tie with all: they find nothing, and must not score as if they did.
    """
    candidates = scores.detach().masked_fill(excluded, -torch.inf)
    own, best = candidates.diagonal(), candidates.amax(1)
    return (own == best).float() / (candidates == best[:, None]).sum(1)


def own_last(scores: Tensor, excluded: Tensor) -> Tensor:
    """(N, M + 1): of scores (N, N + M) everyone's, -inf where excluded, then that of each query's own key.

    Last, since the first of equal scores counts as the answer: a tie is not a find.
    """
    own = scores.diagonal()[:, None]
    return torch.cat([scores.masked_fill(excluded, -torch.inf)[:, len(scores) :], own], 1)


def own_place(scores: Tensor) -> Tensor:
    """(N,) int64: where `own_last` puts a query's own key."""
    return torch.full((len(scores),), scores.shape[1] - 1, device=scores.device)


def chance_of(scores: Tensor) -> Tensor:
    """(N,) what a guess among a row's keys finds: scores as `own_last` gives them."""
    return 1 / scores.isfinite().sum(1)
