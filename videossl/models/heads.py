"""Small heads on pooled features."""

import copy
from collections.abc import Sequence
from itertools import combinations
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_SIMILARITIES = 4  # learned cosines of each pair; chosen
SIMILARITY_CHANNELS = 32  # each compares; chosen


def mlp(dim_in: int, dim_hidden: int, dim_out: int, *, dropout: float = 0.0) -> nn.Sequential:
    """Two linear layers with ReLU and dropout between, on standardised inputs: (N, dim_in) to (N, dim_out).

    Globally pooled features of two clips of a video differ by a percent of their common mean; without the first
    normalisation a head sees that mean, and temporal tasks stay at chance for thousands of steps (measured).
    """
    return nn.Sequential(
        nn.BatchNorm1d(dim_in),
        nn.Linear(dim_in, dim_hidden),
        nn.BatchNorm1d(dim_hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(dim_hidden, dim_out),
    )


def pool_grid(maps: Tensor, *, groups: int, cells: int) -> Tensor:
    """(N, C, T, h, w) to (N, C * groups * cells * cells): means over `groups` parts in time and a grid of cells in space.

    Where something is, and when, is what order and direction show: one mean over all of it hides most of it.
    """
    return F.adaptive_avg_pool3d(maps, (groups, cells, cells)).flatten(1)


class TupleHead(nn.Module):
    """Judges tuples of a window's K vectors by their pairs: (B, K, C) to (B, tuples, answers), float.

    Pairwise features before all are joined, as in OPN (Lee et al., ICCV 2017, section 3.3) and VCOP (Xu et al., CVPR 2019,
    section 3.3): the relation of two is easier than that of three. What differs is given beside what they are, on
    standardised vectors (see `mlp`). A few learned cosines of each pair have a short way of their own to the answer: which
    two are far apart is most of what order shows, and 3 C numbers a pair hide it from a small corpus (measured).
    """

    def __init__(
        self,
        channels: int,
        tuples: Sequence[Sequence[int]],
        *,
        hidden: int,
        num_answers: int,
        dropout: float,
    ) -> None:
        super().__init__()
        # Made once: a tensor made of numbers in each step would make a GPU wait for its transfer.
        self.register_buffer("tuples", torch.tensor(tuples), persistent=False)
        self.tuples: Tensor
        num_pairs = len(tuples[0]) * (len(tuples[0]) - 1) // 2
        self.standardize = nn.BatchNorm1d(channels)
        self.pair = nn.Linear(3 * channels, hidden)
        self.answer = mlp(num_pairs * hidden, hidden, num_answers, dropout=dropout)
        self.project = nn.Linear(channels, NUM_SIMILARITIES * SIMILARITY_CHANNELS, bias=False)
        self.compare = mlp(num_pairs * NUM_SIMILARITIES, hidden, num_answers)

    def forward(self, vectors: Tensor) -> Tensor:
        """See the class."""
        standard = self.standardize(vectors.flatten(0, 1)).view_as(vectors)
        first, second = standard[:, :, None], standard[:, None]  # of all K x K pairs
        first, second = torch.broadcast_tensors(first, second)
        relation = torch.cat([first, second, (first - second).abs()], -1)
        related = F.relu(self.pair(relation))  # (B, K, K, hidden)
        projected = self.project(standard).unflatten(-1, (NUM_SIMILARITIES, SIMILARITY_CHANNELS))
        projected = F.normalize(projected.float(), dim=-1)
        cosines = torch.einsum("bisc,bjsc->bijs", projected, projected)
        chosen = [
            (self.tuples[:, i], self.tuples[:, j])
            for i, j in combinations(range(self.tuples.shape[1]), 2)
        ]
        logits = 0.0
        for pairs, judge in ((related, self.answer), (cosines, self.compare)):
            rows = torch.cat([pairs[:, i, j] for i, j in chosen], -1)  # (B, tuples, pairs * size)
            logits = logits + judge(rows.flatten(0, 1)).view(*rows.shape[:2], -1)
        assert isinstance(logits, Tensor)
        return logits.float()


class LateFusion(nn.Module):
    """T-CAM's head: (N, C, h, w), the groups' maps side by side in C, to (N, 1).

    Two 3x3 convolutions with batch normalisation and dropout, the mean over space, one linear layer: Wei et al., CVPR 2018,
    section 3.2 (1024 channels there).
    """

    def __init__(self, channels: int, hidden: int, *, dropout: float) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            *(
                layer
                for dim_in in (channels, hidden)
                for layer in (
                    nn.Conv2d(dim_in, hidden, 3, padding=1, bias=False),
                    nn.BatchNorm2d(hidden),
                    nn.ReLU(inplace=True),
                    nn.Dropout2d(dropout),
                )
            )
        )
        self.score = nn.Linear(hidden, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """See the class."""
        score: Tensor = self.score(self.convolutions(maps).mean((2, 3)))
        return score


Module = TypeVar("Module", bound=nn.Module)


def slow_copy(module: Module) -> Module:
    """A copy that no gradient reaches: it follows by `follow` alone."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def follow(slow: nn.Module, module: nn.Module, momentum: float, skipped: Tensor) -> None:
    """Moves each parameter by 1 - `momentum` of the way to the module's (equation 2); not where `skipped`, a bool scalar."""
    for parameter, target in zip(slow.parameters(), module.parameters(), strict=True):
        step = torch.where(skipped, 0.0, 1 - momentum).to(parameter.dtype)
        parameter.lerp_(target.detach(), step)


class KeyQueue(nn.Module):
    """The last `length` keys of all ranks, with the video of each and what a rule without a network compares.

    `keys` (length, D) start as random directions of no video (-1), as in the paper. All are buffers: a checkpoint has them.
    """

    def __init__(self, length: int, channels: int, rival_channels: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(length, channels), dim=1))
        self.register_buffer("rival_keys", torch.randn(length, rival_channels))
        self.register_buffer("videos", torch.full((length,), -1))
        self.register_buffer("next_place", torch.zeros((), dtype=torch.int64))
        self.keys: Tensor
        self.rival_keys: Tensor
        self.videos: Tensor
        self.next_place: Tensor

    @torch.no_grad()
    def push(self, keys: Tensor, rival_keys: Tensor, videos: Tensor, skipped: Tensor) -> None:
        """Puts rows, of more than `length` the last, in the place of the oldest; nothing where `skipped`, a bool scalar."""
        keys, rival_keys, videos = (rows[-len(self.keys) :] for rows in (keys, rival_keys, videos))
        steps = torch.arange(len(keys), device=keys.device)
        places = (self.next_place + steps) % len(self.keys)
        for held, new in ((self.keys, keys), (self.rival_keys, rival_keys), (self.videos, videos)):
            held[places] = torch.where(skipped, held[places], new.to(held.dtype))
        moved = torch.where(skipped, 0, len(keys))
        self.next_place.copy_((self.next_place + moved) % len(self.keys))
