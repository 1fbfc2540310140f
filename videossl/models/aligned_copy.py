"""Copies labels by attention whose windows follow what has moved far: MAST's memory. Lai, Lu, Xie, CVPR 2020, section 3.2.

A frame shown long ago is first searched coarsely: a window whose cells lie `dilation` apart, softmax, and the mean place it
points to. Around that place, between cells if need be, lies the fine window (ROI alignment). All fine windows of all memory
frames share one softmax. As in the authors' code, what lies outside of a frame has similarity 0 and no label, and counts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK_BYTES = 2**26  # of sampled keys at a time; chosen


class MemoryFrame(NamedTuple):
    """Key (D, h, w) and label shares (V, h, w) of a frame; `dilation` of its coarse search, 0 for none."""

    key: Tensor
    value: Tensor
    dilation: int


def aligned_copy(
    query: Tensor,
    memory: Sequence[MemoryFrame],
    *,
    radius: int,
    search_radius: int,
    temperature: float = 1.0,
) -> Tensor:
    """What each cell of `query` (D, h, w) reads of the memory: (V, h, w); shares sum to less than 1 at the border.

    `radius` is that of the fine windows, `search_radius` that of the coarse ones, both in cells of their own spacing.
    """
    dim, height, width = query.shape
    side = 2 * radius + 1
    rows_at_once = max(1, _BLOCK_BYTES // (4 * dim * side**2 * width))
    centres = [_centres(query, frame, search_radius, temperature) for frame in memory]
    fine = _window(radius, 1, query.device)
    blocks = []
    for first in range(0, height, rows_at_once):
        rows = slice(first, first + rows_at_once)
        part = query[:, rows] / temperature
        logits, labels = [], []
        for frame, centre in zip(memory, centres, strict=True):
            places = centre[rows, :, None] + fine  # (rows, w, P P, 2)
            keys = _sample(frame.key, places)
            logits.append(torch.einsum("drw,drwp->rwp", part, keys))
            labels.append(_sample(frame.value, places))
        weights = torch.cat(logits, -1).softmax(-1)
        blocks.append(torch.einsum("rwp,vrwp->vrw", weights, torch.cat(labels, -1)))
    return torch.cat(blocks, 1)


def _centres(query: Tensor, frame: MemoryFrame, radius: int, temperature: float) -> Tensor:
    """(h, w, 2) rows and columns around which each cell looks in a memory frame: its own place, or what the search found."""
    _, height, width = query.shape
    y, x = torch.meshgrid(
        torch.arange(height, device=query.device, dtype=query.dtype),
        torch.arange(width, device=query.device, dtype=query.dtype),
        indexing="ij",
    )
    own = torch.stack([y, x], -1)
    if frame.dilation == 0:
        return own
    coarse = _window(radius, frame.dilation, query.device)
    rows_at_once = max(1, _BLOCK_BYTES // (4 * len(query) * len(coarse) * width))
    found = []
    for first in range(0, height, rows_at_once):
        rows = slice(first, first + rows_at_once)
        keys = _sample(frame.key, own[rows, :, None] + coarse)
        similarity = torch.einsum("drw,drwp->rwp", query[:, rows] / temperature, keys)
        found.append(similarity.softmax(-1) @ coarse)
    return own + torch.cat(found)


def _window(radius: int, dilation: int, device: torch.device) -> Tensor:
    """(P P, 2) offsets of a window's cells, rows and columns."""
    steps = dilation * torch.arange(-radius, radius + 1, device=device, dtype=torch.float32)
    return torch.cartesian_prod(steps, steps)


def _sample(frame: Tensor, places: Tensor) -> Tensor:
    """(C, h, w) at places (rows, w, P P, 2) in cells, bilinear, 0 outside: (C, rows, w, P P)."""
    size = torch.tensor(frame.shape[1:], device=frame.device, dtype=frame.dtype)
    grid = (2 * places / (size - 1).clamp_min(1) - 1).flip(-1)  # columns first
    flat = grid.flatten(0, 1)[None]
    sampled = F.grid_sample(frame[None], flat, align_corners=True, padding_mode="zeros")[0]
    return sampled.unflatten(1, places.shape[:2])
