"""Where cells look: the weights that `attention_copy` reads with, for one cell as a map, for all as two numbers.

A dense form, a block of query cells at a time: for pictures and for evaluation, not for training.
"""

import torch
from torch import Tensor

from videossl.models.attention_copy import Window, check_settings

_BLOCK_BYTES = 2**26  # of similarities at a time; chosen


def attention_map(
    query: Tensor,
    cell: tuple[int, int],
    keys: Tensor,
    *,
    temperature: float,
    radius: int | None = None,
    mask: Window = "square",
    top_k: int | None = None,
    unmasked_frames: int = 0,
    renormalize: bool = True,
    distance_sigma: float | None = None,
) -> Tensor:
    """Where one cell (row, column) of the query (D, h, w) looks in the memory (M, D, h, w): (M, h, w), its sum 1.

    The weights with which `attention_copy` or, with `top_k`, `strongest_copy` reads for that cell; their settings mean the
    same here. Without `renormalize` the sum over the strongest is less than 1. Raises ValueError for settings out of range.
    """
    check_settings(temperature, radius, mask, top_k, distance_sigma)
    height, width = query.shape[1:]
    similarity = (query[:, cell[0], cell[1], None, None] * keys).sum(1) / temperature  # (M, h, w)
    down = (torch.arange(height, device=query.device) - cell[0])[:, None]
    across = torch.arange(width, device=query.device) - cell[1]
    if distance_sigma is not None:
        similarity[unmasked_frames:] -= (down**2 + across**2) / (2 * distance_sigma**2)
    if radius is not None:
        if mask == "square":
            outside = torch.maximum(down.abs(), across.abs()) > radius
        else:
            outside = down**2 + across**2 >= radius**2
        hidden = outside.repeat(len(keys), 1, 1)
        hidden[:unmasked_frames] = False
        similarity = similarity.masked_fill(hidden, -torch.inf)
    flat = similarity.flatten()
    weights = flat.softmax(0)
    if top_k is not None and top_k < len(flat):
        strongest = flat.topk(top_k).indices
        kept = flat[strongest].softmax(0) if renormalize else weights[strongest]
        weights = torch.zeros_like(flat).index_copy(0, strongest, kept)
    return weights.view_as(similarity)


@torch.no_grad()
def attention_statistics(
    query: Tensor, keys: Tensor, *, temperature: float, radius: int | None = None
) -> tuple[Tensor, Tensor]:
    """Of each query cell the entropy of its weights, in nats, and their mean distance to its own place, in cells.

    `query` (N, D, h, w), `keys` (N, M, D, h, w) as in `attention_copy`, with the square window; both results (N, h, w).
    """
    num_rows, _, height, width = query.shape
    device = query.device
    rows = torch.arange(height, device=device).repeat_interleave(width)
    columns = torch.arange(width, device=device).repeat(height)
    queries = query.float().flatten(2).transpose(1, 2) / temperature  # (N, h w, D)
    memory = keys.float().movedim(2, 1).flatten(2)  # (N, D, M h w)
    num_frames = keys.shape[1]
    block = max(1, _BLOCK_BYTES // (4 * num_rows * memory.shape[2]))
    entropies, distances = [], []
    for first in range(0, height * width, block):
        cells = slice(first, first + block)
        down = rows[cells, None] - rows
        across = columns[cells, None] - columns  # (q, h w)
        similarity = (queries[:, cells] @ memory).unflatten(2, (num_frames, -1))
        if radius is not None:
            outside = torch.maximum(down.abs(), across.abs()) > radius
            similarity = similarity.masked_fill(outside[:, None], -torch.inf)
        weights = similarity.flatten(2).softmax(-1)
        entropies.append(torch.special.entr(weights).sum(-1))
        distance = torch.hypot(down.float(), across.float()).repeat(1, num_frames)
        distances.append((weights * distance).sum(-1))
    entropy, offset = torch.cat(entropies, 1), torch.cat(distances, 1)
    return entropy.view(-1, height, width), offset.view(-1, height, width)
