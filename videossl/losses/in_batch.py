"""Questions whose answers are rows of the global batch: which key is mine?

Row i of the queries owns key i; behind the N own keys come those of everyone, of which each query's mask leaves some out.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from videossl.losses.metric import info_nce_of_scores, information_bound


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
