"""Weighted nearest neighbours on frozen features, each source left out when its own videos are asked for."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from videossl.errors import UserError


@dataclass(frozen=True)
class KnnScore:
    """Top-1 accuracy over `count` videos of `num_classes` classes; `chance` is the share of the most frequent one."""

    accuracy: float
    chance: float
    count: int
    num_classes: int


def knn_score(
    features: Tensor,
    labels: Sequence[str],
    groups: Sequence[str],
    *,
    neighbours: int = 20,
    temperature: float = 0.07,
) -> KnnScore:
    """Classifies each video by the videos of all other groups: cosine similarity s, weights exp(s / temperature).

    `features` (N, C); `labels` and `groups` one per row. Weighting: Wu et al., CVPR 2018, section 3.4. Raises UserError
    if there is but one class, or one group.
    """
    names, label = np.unique(np.asarray(labels), return_inverse=True)
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2 or group.max() < 1:
        raise UserError(
            f"kNN needs two classes and two source groups at least, got {len(names)} and {group.max() + 1}"
        )
    target, source = torch.from_numpy(label), torch.from_numpy(group)
    unit = F.normalize(features.double().cpu(), dim=1)
    similarity = unit @ unit.T
    similarity.masked_fill_(source[:, None] == source, -torch.inf)  # itself among them
    nearest, index = similarity.topk(min(neighbours, len(unit) - 1), dim=1)
    weights = (nearest / temperature).exp()  # 0 for what is left out
    votes = torch.zeros(len(unit), len(names), dtype=torch.float64)
    votes.scatter_add_(1, target[index], weights)
    right = votes.argmax(1) == target
    chance = np.bincount(label).max() / len(label)
    return KnnScore(float(right.double().mean()), float(chance), len(label), len(names))
