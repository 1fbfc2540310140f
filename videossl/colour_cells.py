"""Colours of cells as classes, and how well they were copied: what the tasks that copy colour share.

Cells are (B, h, w) of one frame or (B, T, h, w) of a clip; classes are nearest centroids of normalised chroma (or Lab).
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from videossl.rng import fold
from videossl.types import Answers, tally, tally_by_class

KMEANS_SAMPLES = 50_000  # Vondrick et al., section 3.3


def fit_classes(samples: Tensor, num_classes: int, chooser: np.random.Generator) -> Tensor:
    """(classes, V) centroids of k-means on samples (N, V), seeded by `chooser`."""
    from scipy.cluster.vq import kmeans2  # scipy.cluster takes half a second to load

    centroids, _ = kmeans2(
        samples.double().cpu().numpy(), num_classes, minit="++", rng=chooser, missing="warn"
    )
    return torch.from_numpy(centroids)


def some_samples(cells: Tensor, seed: int) -> tuple[Tensor, np.random.Generator]:
    """At most KMEANS_SAMPLES rows of cells (N, V), drawn by the seed, and the generator that drew them."""
    chooser = np.random.default_rng(fold(seed, "colour classes") % 2**32)
    drawn = chooser.choice(
        cells.double().cpu().numpy(), min(KMEANS_SAMPLES, len(cells)), replace=False
    )
    return torch.from_numpy(drawn), chooser


def classify(colours: Tensor, centroids: Tensor) -> Tensor:
    """(B, V, T, h, w) colours to the index of the nearest of each row's centroids (B, classes, V): (B, T, h, w)."""
    flat = rearrange(colours.float(), "b v t h w -> b (t h w) v")
    nearest = torch.cdist(flat, centroids).argmin(-1)
    return nearest.view(colours.shape[0], *colours.shape[2:])


def one_hot(classes: Tensor, num_classes: int) -> Tensor:
    """(B, T, h, w) classes to (B, T, classes, h, w) float: what is copied of them."""
    numbers = torch.arange(num_classes, device=classes.device)
    return (classes[:, :, None] == numbers[:, None, None]).float()


def copied_loss(shares: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy of copied class shares (B, classes, h, w) at the true classes (B, h, w)."""
    # nll_loss over maps has no backward for permuted strides.
    return F.nll_loss((shares + 1e-6).log().contiguous(), classes)


class CellTruth(NamedTuple):
    """What the cells of a target frame are: `classes` (B, h, w) in a row's table, `same_cell` that of the frame before at
    the same place, `moved` whether something changed there, `table` (B,) whose classes they are of `num_tables`."""

    classes: Tensor
    same_cell: Tensor
    moved: Tensor
    table: Tensor
    num_classes: int
    num_tables: int = 1

    def labels(self, classes: Tensor) -> Tensor:
        """Each of the tables' classes as a class of its own."""
        return classes + self.num_classes * self.table[:, None, None]


def cell_tallies(predicted: Tensor, truth: CellTruth) -> dict[str, Tensor]:
    """Accuracy beside the batch's majority (`chance`) and the copy of the same cell (`cheat`), and on moving cells alone."""
    right = (predicted == truth.classes).float()
    copied = (truth.same_cell == truth.classes).float()
    moved = truth.moved.float()
    label = truth.labels(truth.classes)
    num_labels = truth.num_classes * truth.num_tables
    # The share of the batch's most frequent class: no guess made before looking can score more.
    counts = torch.zeros(num_labels, device=label.device)
    shares = counts.index_add_(0, label.flatten(), torch.ones_like(right).flatten())
    majority = shares.view(truth.num_tables, -1).amax(1).sum() / label.numel()
    return {
        "accuracy": tally(right),
        "chance": tally(majority.expand_as(right)),
        "cheat": tally(copied),
        "balanced_accuracy": tally_by_class(right, label, num_labels),
        "balanced_identity_accuracy": tally_by_class(copied, label, num_labels),
        "moving_accuracy": tally(right, moved),
        "moving_identity_accuracy": tally(copied, moved),
    }


def cell_answers(copied: Tensor, truth: CellTruth, numbers: Mapping[str, Tensor]) -> Answers:
    """Each cell is a question: `copied` (B, classes, h, w) scores the classes of the row's table."""
    rows = torch.arange(len(copied), device=copied.device)
    shape = (len(copied), truth.num_tables, *copied.shape[1:])
    scores = copied.new_full(shape, -torch.inf)
    scores[rows, truth.table] = copied
    height, width = copied.shape[2:]
    return Answers(
        rearrange(scores, "b t k h w -> (b h w) (t k)"),
        truth.labels(truth.classes).flatten(),
        repeat(rows, "b -> (b h w)", h=height, w=width),
        rivals={"same cell": truth.labels(truth.same_cell).flatten()},
        numbers={name: value.flatten() for name, value in numbers.items()},
        subsets={"moving": truth.moved.flatten()},
    )
