"""Small heads on pooled features."""

from torch import nn


def mlp(dim_in: int, dim_hidden: int, dim_out: int, *, dropout: float = 0.0) -> nn.Sequential:
    """Two linear layers with ReLU and dropout between: (..., dim_in) to (..., dim_out)."""
    return nn.Sequential(
        nn.Linear(dim_in, dim_hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(dim_hidden, dim_out),
    )
