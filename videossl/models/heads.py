"""Small heads on pooled features."""

import torch.nn.functional as F
from torch import Tensor, nn


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
