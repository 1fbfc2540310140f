"""Nearest neighbours on frozen features: weighted votes, and retrieval. Cosine similarity, nothing is learned."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from videossl.errors import UserError

NUM_NEIGHBOURS, TEMPERATURE = 20, 0.07  # Wu et al., CVPR 2018, section 3.4
RECALLS = (1, 5, 10, 20, 50)


@dataclass(frozen=True)
class KnnScore:
    """Top-1 accuracy over `count` videos of `num_classes` classes; `chance` is the share of the most frequent one."""

    accuracy: float
    chance: float
    count: int
    num_classes: int


def similarities(queries: Tensor, gallery: Tensor) -> Tensor:
    """(Q, G) float64 cosines of (Q, C) and (G, C)."""
    return F.normalize(queries.double(), dim=1) @ F.normalize(gallery.double(), dim=1).T


def votes(
    similarity: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    neighbours: int = NUM_NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """(Q, L) shares of the votes of the nearest of G videos, each weighted by exp(s / temperature); -inf never votes.

    Wu et al., CVPR 2018, section 3.4. `similarity` (Q, G), `labels` (G,).
    """
    nearest, index = similarity.topk(min(neighbours, similarity.shape[1]), dim=1)
    weights = ((nearest - nearest[:, :1]) / temperature).exp()  # the same shares, and no overflow
    found = torch.zeros(len(similarity), num_classes, dtype=similarity.dtype)
    found.scatter_add_(1, labels[index], weights)
    return found / found.sum(1, keepdim=True)


def knn_score(
    features: Tensor,
    labels: Sequence[str],
    groups: Sequence[str],
    *,
    neighbours: int = NUM_NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> KnnScore:
    """Classifies each video by the videos of all other groups.

    `features` (N, C); `labels` and `groups` one per row. Raises UserError if there is but one class, or one group.
    """
    names, label = np.unique(np.asarray(labels), return_inverse=True)
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2 or group.max() < 1:
        raise UserError(
            f"kNN needs two classes and two source groups at least, got {len(names)} and {group.max() + 1}"
        )
    target, source = torch.from_numpy(label), torch.from_numpy(group)
    similarity = similarities(features.cpu(), features.cpu())
    similarity.masked_fill_(source[:, None] == source, -torch.inf)  # itself among them
    found = votes(
        similarity, target, num_classes=len(names), neighbours=neighbours, temperature=temperature
    )
    right = found.argmax(1) == target
    chance = np.bincount(label).max() / len(label)
    return KnnScore(float(right.double().mean()), float(chance), len(label), len(names))


def hits(similarity: Tensor, queries: Tensor, gallery: Tensor, k: int) -> Tensor:
    """(Q,) 1 where any of the k most similar gallery videos has the query's class, else 0.

    Büchler et al., ECCV 2018, section 4.2. `similarity` (Q, G), class numbers `queries` (Q,) and `gallery` (G,).
    """
    from torchmetrics.functional.retrieval import (
        retrieval_hit_rate,
    )  # slow to import, and `train` does not ask

    return torch.stack(
        [
            retrieval_hit_rate(cosines, gallery == query, top_k=min(k, len(gallery)))
            for cosines, query in zip(similarity, queries, strict=True)
        ]
    ).double()


def chance_of_hit(queries: Tensor, gallery: Tensor, k: int) -> float:
    """What `hits` has on average where the gallery is in random order (hypergeometric)."""
    from scipy.stats import hypergeom  # scipy.stats takes a second to load

    counts = np.bincount(gallery.numpy(), minlength=int(queries.max()) + 1)
    drawn = min(k, len(gallery))
    missed = hypergeom.pmf(0, len(gallery), counts[queries.numpy()], drawn)
    return float((1 - missed).mean())
