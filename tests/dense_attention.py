"""Attention by its definition, one query cell at a time: what the fast forms are held against."""

import itertools

import torch
from torch import Tensor


def dense_loop(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    temperature: float,
    radius: int | None,
    mask: str,
    top_k: int | None,
    unmasked_frames: int,
    distance_sigma: float | None = None,
) -> Tensor:
    """The definition, one query cell at a time."""
    num_rows, num_frames, num_values, height, width = values.shape
    out = torch.zeros(num_rows, num_values, height, width, dtype=query.dtype)
    for n, y, x in itertools.product(range(num_rows), range(height), range(width)):
        logits, read = [], []
        similarity = torch.einsum("d,mdij->mij", query[n, :, y, x], keys[n]) / temperature
        for m, i, j in itertools.product(range(num_frames), range(height), range(width)):
            if radius is not None and m >= unmasked_frames:
                if mask == "square" and max(abs(i - y), abs(j - x)) > radius:
                    continue
                if mask == "circle" and (i - y) ** 2 + (j - x) ** 2 >= radius**2:
                    continue
            logit = similarity[m, i, j]
            if distance_sigma is not None:
                logit = logit - ((i - y) ** 2 + (j - x) ** 2) / (2 * distance_sigma**2)
            logits.append(logit)
            read.append(values[n, m, :, i, j])
        weights, cells = torch.stack(logits), torch.stack(read)
        if top_k is not None and top_k < len(weights):
            weights, order = weights.topk(top_k)
            cells = cells[order]
        out[n, :, y, x] = weights.softmax(0) @ cells
    return out


def random_inputs(
    num_rows: int = 2,
    num_frames: int = 3,
    dim: int = 5,
    num_values: int = 2,
    height: int = 7,
    width: int = 8,
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(num_rows, dim, height, width, generator=generator)
    keys = torch.randn(num_rows, num_frames, dim, height, width, generator=generator)
    values = torch.randn(num_rows, num_frames, num_values, height, width, generator=generator)
    return query, keys, values
