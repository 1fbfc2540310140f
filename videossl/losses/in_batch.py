"""Questions whose answers are rows of the global batch: which key is mine?

Row i of the queries owns key i; behind the N own keys come those of everyone, of which each query's mask leaves some out.
"""

import torch
from torch import Tensor


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


def finds_own(scores: Tensor, excluded: Tensor) -> Tensor:
    """(N,) float: 1 where key i has the best of row i's scores (N, M) that are not excluded."""
    best = scores.detach().masked_fill(excluded, -torch.inf).argmax(1)
    return (best == torch.arange(len(scores), device=scores.device)).float()


def own_first(scores: Tensor, excluded: Tensor) -> Tensor:
    """(N, 1 + M): of scores (N, N + M) that of each query's own key, then everyone's, -inf where excluded."""
    own = scores.diagonal()[:, None]
    return torch.cat([own, scores.masked_fill(excluded, -torch.inf)[:, len(scores) :]], 1)
