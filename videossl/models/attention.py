"""Copies values from memory frames to a query frame by attention over feature similarity.

One implementation for colorization (training: colours are copied) and for label propagation (evaluation: masks are
copied): Vondrick et al., ECCV 2018, arXiv:1806.09594, eq. 1; local window as in Lai et al., CVPR 2020 (MAST). What reads
the k strongest cells alone, without gradients, is `strongest_copy`.

Queries are cut into tiles; a tile meets only the patch of cells that its windows touch, so neither time nor memory
grows with the square of the image when a radius is given. Similarities exist one bounded block at a time.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

Window = Literal["square", "circle"]

_MAX_BYTES = 2**29  # of similarities that training may keep for the backward: chosen
# One block of similarities. On a CPU blocks that stay in the cache halve the time (measured: 256 channels, 8 frames of
# 60 x 106 cells, radius 12: 1.0 s with 128 MiB, 0.5 s with 12 MiB); a GPU wants large ones.
_CPU_BLOCK_BYTES = 12 * 2**20
_GPU_BLOCK_BYTES = 2**27
_TILE_SIDES = range(6, 17)


def attention_copy(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    temperature: float,
    radius: int | None = None,
    mask: Window = "square",
    unmasked_frames: int = 0,
    max_bytes: int = _MAX_BYTES,
) -> Tensor:
    """The values that each query cell reads from the memory: softmax(q . k / temperature) weighted, (N, V, h, w) float.

    `query` (N, D, h, w), `keys` (N, M, D, h, w) and `values` (N, M, V, h, w) are used as given: L2 normalisation is the
    caller's. A query cell sees the memory cells within `radius` cells of its own place: `square` keeps |dy|, |dx| <=
    radius, `circle` keeps Euclidean distance < radius (as CRW does); None sees everything. The first `unmasked_frames`
    memory frames are seen whole. Gradients flow to all three; above `max_bytes` of similarities, blocks are recomputed in
    the backward.

    Raises ValueError for shapes that disagree and settings out of range.
    """
    _check(query, keys, values)
    check_settings(temperature, radius, mask, None)
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    # bfloat16 similarities divided by a temperature of 0.02 would be wrong by whole units.
    with torch.autocast(query.device.type, enabled=False):
        query, keys, values = (t.to(dtype) for t in (query, keys, values))
        query = query / temperature
        unmasked_frames = keys.shape[1] if radius is None else min(unmasked_frames, keys.shape[1])
        tiling = _tiling(query, keys, radius, mask, unmasked_frames, max_bytes)
        return _copy_by_tiles(query, keys, values, tiling)


class _Tiling(NamedTuple):
    """How the query frame is cut: tiles of `height` x `width` cells, `columns` of them in one block."""

    height: int
    width: int
    columns: int
    radius: int
    mask: Window
    unmasked_frames: int
    recompute: bool


def check_settings(
    temperature: float,
    radius: int | None,
    mask: str,
    top_k: int | None,
    distance_sigma: float | None = None,
) -> None:
    """Raises ValueError for settings that no attention can have."""
    if temperature <= 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    if radius is not None and radius < (1 if mask == "circle" else 0):
        raise ValueError(f"radius must be None, >= 0 (square) or >= 1 (circle), got {radius}")
    if mask not in ("square", "circle"):
        raise ValueError(f"mask must be square or circle, got {mask!r}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be >= 1, got {top_k}")
    if distance_sigma is not None and not distance_sigma > 0:
        raise ValueError(f"distance_sigma must be None or > 0, got {distance_sigma}")


def cell_offsets(
    tile_h: int, tile_w: int, radius: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Rows and columns from each cell of the patch around a tile to each cell of the tile; they broadcast to
    (tile_h, tile_w, patch_h, patch_w)."""
    query_y, query_x = (torch.arange(side, device=device) for side in (tile_h, tile_w))
    key_y, key_x = (
        torch.arange(side + 2 * radius, device=device) - radius for side in (tile_h, tile_w)
    )
    dy = query_y[:, None, None, None] - key_y[None, None, :, None]
    dx = query_x[None, :, None, None] - key_x[None, None, None, :]
    return dy, dx


def in_window(tile_h: int, tile_w: int, radius: int, mask: Window, device: torch.device) -> Tensor:
    """Which cells of the patch around a tile each of its cells may see, (tile cells, patch cells) bool."""
    dy, dx = cell_offsets(tile_h, tile_w, radius, device)
    if mask == "square":
        window = (dy.abs() <= radius) & (dx.abs() <= radius)
    else:
        window = dy**2 + dx**2 < radius**2
    return window.flatten(0, 1).flatten(1)


def _check(query: Tensor, keys: Tensor, values: Tensor) -> None:
    num_rows, dim, height, width = query.shape
    if keys.ndim != 5 or keys.shape[0] != num_rows or keys.shape[2:] != (dim, height, width):
        raise ValueError(
            f"keys must be (N, M, D, h, w) of query {tuple(query.shape)}, got {tuple(keys.shape)}"
        )
    if values.shape[:2] != keys.shape[:2] or values.shape[3:] != keys.shape[3:]:
        raise ValueError(
            f"values must be (N, M, V, h, w) of keys {tuple(keys.shape)}, got {tuple(values.shape)}"
        )


def _tiling(
    query: Tensor,
    keys: Tensor,
    radius: int | None,
    mask: Window,
    unmasked_frames: int,
    max_bytes: int,
) -> _Tiling:
    num_rows, num_frames = keys.shape[:2]
    height, width = query.shape[2:]
    row_bytes = num_rows * query.element_size()
    block_bytes = _CPU_BLOCK_BYTES if query.device.type == "cpu" else _GPU_BLOCK_BYTES
    block_bytes = min(block_bytes, max_bytes)
    if radius is None:
        tile_h = max(
            1, min(height, block_bytes // (row_bytes * width * num_frames * height * width))
        )
        tile_w, reach = width, 0
    else:
        reach = radius
        tile_h, tile_w = (_tile_side(side, reach) for side in (height, width))
    seen = unmasked_frames * height * width
    seen += (num_frames - unmasked_frames) * (tile_h + 2 * reach) * (tile_w + 2 * reach)
    tile_bytes = row_bytes * tile_h * tile_w * seen
    num_tiles = -(-height // tile_h) * -(-width // tile_w)
    needs_grad = torch.is_grad_enabled() and (query.requires_grad or keys.requires_grad)
    return _Tiling(
        height=tile_h,
        width=tile_w,
        columns=max(1, block_bytes // tile_bytes),
        radius=reach,
        mask=mask,
        unmasked_frames=unmasked_frames,
        recompute=needs_grad and tile_bytes * num_tiles > max_bytes,
    )


def _tile_side(side: int, radius: int) -> int:
    """The tile side with the least work: padding, window overlap, and copying of key patches are all counted."""
    if side <= _TILE_SIDES.start:
        return side
    return min(
        (t for t in _TILE_SIDES if t <= side),
        key=lambda t: -(-side // t) * (t + 2 * radius) * (t + 4),
    )


def _copy_by_tiles(query: Tensor, keys: Tensor, values: Tensor, tiling: _Tiling) -> Tensor:
    height, width = query.shape[2:]
    tile_h, tile_w, radius = tiling.height, tiling.width, tiling.radius
    rows, columns = -(-height // tile_h), -(-width // tile_w)
    pad_h, pad_w = rows * tile_h - height, columns * tile_w - width
    query = functional.pad(query, (0, pad_w, 0, pad_h))
    whole = [
        rearrange(t[:, : tiling.unmasked_frames], "n m d h w -> n (m h w) d")
        for t in (keys, values)
    ]
    edges = (radius, radius + pad_w, radius, radius + pad_h)
    # Channels last: a patch is then copied in long contiguous runs. unbind once: its backward is one stack.
    local_keys, local_values = (
        [
            functional.pad(frame, edges).permute(0, 2, 3, 1).contiguous()
            for frame in t[:, tiling.unmasked_frames :].unbind(1)
        ]
        for t in (keys, values)
    )
    bands = []
    for row in range(rows):
        blocks = []
        for first in range(0, columns, tiling.columns):
            last = min(columns, first + tiling.columns)
            y, x = row * tile_h, first * tile_w
            span_y = slice(y, y + tile_h + 2 * radius)
            span_x = slice(x, last * tile_w + 2 * radius)
            inputs = (
                query[:, :, y : y + tile_h, x : last * tile_w],
                whole,
                [frame[:, span_y, span_x] for frame in local_keys],
                [frame[:, span_y, span_x] for frame in local_values],
                _allowed(tiling, y, x, last - first, height, width, query.device),
                (tile_h, tile_w, radius),
            )
            if tiling.recompute:
                blocks.append(checkpoint(_copy_block, *inputs, use_reentrant=False))
            else:
                blocks.append(_copy_block(*inputs))
        bands.append(torch.cat(blocks, 3))
    return torch.cat(bands, 2)[:, :, :height, :width]


def _allowed(
    tiling: _Tiling, y: int, x: int, num_tiles: int, height: int, width: int, device: torch.device
) -> Tensor:
    """Which patch cells each query cell may see, (tiles, tile cells, patch cells) bool."""
    tile_h, tile_w, radius = tiling.height, tiling.width, tiling.radius
    window = in_window(tile_h, tile_w, radius, tiling.mask, device)
    key_y, key_x = (
        torch.arange(side + 2 * radius, device=device) - radius for side in (tile_h, tile_w)
    )
    starts = x + tile_w * torch.arange(num_tiles, device=device)
    inside_y = (key_y + y >= 0) & (key_y + y < height)
    inside_x = (key_x + starts[:, None] >= 0) & (key_x + starts[:, None] < width)
    inside = (inside_y[None, :, None] & inside_x[:, None, :]).flatten(1)
    return window & inside[:, None]


def _copy_block(
    query: Tensor,
    whole: list[Tensor],
    local_keys: list[Tensor],
    local_values: list[Tensor],
    allowed: Tensor,
    tile: tuple[int, int, int],
) -> Tensor:
    """One row of tiles, (N, D, tile_h, tiles * tile_w) queries to (N, V, tile_h, tiles * tile_w) values."""
    tile_h, tile_w, radius = tile
    queries = rearrange(query, "n d y (g x) -> n g (y x) d", x=tile_w)
    whole_keys, whole_values = whole
    pieces: list[
        tuple[Tensor, Tensor]
    ] = []  # similarities (N, G, q, cells), values (N, G or 1, cells, V)
    if whole_keys.shape[1]:
        logits = (queries.flatten(1, 2) @ whole_keys.mT).unflatten(1, queries.shape[1:3])
        pieces.append((logits, whole_values[:, None]))
    if local_keys:
        logits = torch.stack(
            [queries @ _patches(frame, tile_w, radius).mT for frame in local_keys], 3
        )  # (N, G, q, M, P)
        cells = torch.cat([_patches(frame, tile_w, radius) for frame in local_values], 2)
        logits = logits.masked_fill(~allowed[None, :, :, None], torch.finfo(logits.dtype).min)
        pieces.append((logits.flatten(3), cells))
    return rearrange(_weigh(pieces), "n g (y x) v -> n v y (g x)", y=tile_h)


def _patches(frame: Tensor, tile_w: int, radius: int) -> Tensor:
    """Overlapping patches of a padded band (N, y, x, D), one per tile: (N, G, patch cells, D)."""
    windows = frame.unfold(2, tile_w + 2 * radius, tile_w)  # (N, y, G, D, x)
    return rearrange(windows, "n y g d x -> n g (y x) d")


def _weigh(pieces: list[tuple[Tensor, Tensor]]) -> Tensor:
    weights = torch.cat([logits for logits, _ in pieces], -1).softmax(-1)
    parts = weights.split([logits.shape[-1] for logits, _ in pieces], -1)
    copied = [part @ cells for part, (_, cells) in zip(parts, pieces, strict=True)]
    return copied[0] if len(copied) == 1 else copied[0] + copied[1]


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
    """For each query cell the entropy of its weights, in nats, and their mean distance to its own place, in cells.

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


# of sampled keys at a time; chosen


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
