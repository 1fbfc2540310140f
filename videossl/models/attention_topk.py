"""Copies values from the k memory cells most similar to each query cell: what label propagation reads with.

The top-k form of `attention_copy`, without gradients and several times faster: Jabri et al., NeurIPS 2020 (CRW, top-k over
the whole memory); Li et al., NeurIPS 2019 (UVC, top-k of each frame). Frames are channels last and cut into strips of
columns: the window of a tile is then one run of memory, so similarities are plain matrix products and nothing is copied
per tile. The k largest are found among the groups whose maximum is among the k largest, which leaves little to sort.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from videossl.models.attention import Window, cell_offsets, check_settings, in_window

# Similarities and a strip of keys at a time. On a CPU what stays in its caches is quickest (measured: 256 channels, 8 frames
# of 60 x 106 cells, radius 12: 0.25 s with 48 MiB, 0.31 s with 256 MiB); a GPU wants large pieces.
CPU_BYTES = 48 * 2**20
GPU_BYTES = 2**29
_TILE_SIDES = range(4, 17)


def strongest_copy(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    *,
    temperature: float,
    top_k: int,
    radius: int | None = None,
    mask: Window = "square",
    unmasked_frames: int = 0,
    renormalize: bool = True,
    distance_sigma: float | None = None,
    max_bytes: int | None = None,
) -> Tensor:
    """What each query cell reads from its `top_k` most similar memory cells, (h, w, V).

    `query` (h, w, D), `keys` M frames (h, w, D), `values` M frames (h, w, V), as given: L2 normalisation is the caller's.
    `radius`, `mask` and `unmasked_frames` are those of `attention_copy`. The weights are the softmax of similarity over
    temperature among the k; without `renormalize` among all cells seen, so that those kept sum to less than 1.
    With `distance_sigma` a cell d cells away weighs exp(-d^2 / (2 sigma^2)) times as much, before the strongest are chosen;
    in the `unmasked_frames` it does not. `max_bytes` bounds similarities and keys at a time, down to one row of tiles;
    what selecting takes comes on top.

    Raises ValueError for shapes that disagree and settings out of range.
    """
    _check(query, keys, values)
    check_settings(temperature, radius, mask, top_k, distance_sigma)
    if max_bytes is None:
        max_bytes = CPU_BYTES if query.device.type == "cpu" else GPU_BYTES
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    num_whole = len(keys) if radius is None else min(unmasked_frames, len(keys))
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        query = query.to(dtype) / temperature
        keys, values = ([frame.to(dtype) for frame in frames] for frames in (keys, values))
        cut = _cut(query, len(keys) - num_whole, num_whole, radius, mask, distance_sigma, max_bytes)
        whole_keys, whole_values = (_stacked(frames[:num_whole]) for frames in (keys, values))
        copied = query.new_empty(cut.rows * cut.height, cut.columns * cut.width, values[0].shape[2])
        work = _Work(query, keys[num_whole:], values[num_whole:], cut)
        for block in work.blocks():
            found = []
            if whole_keys is not None and whole_values is not None:
                falloff = _falloff(query, block.y, cut) if radius is None else None
                whole = _whole_similarities(block.queries, whole_keys, falloff, unmasked_frames)
                found.append(_of_whole(whole, whole_values, top_k, renormalize))
            if block.keys is not None:
                found.append(_of_strip(block, work, top_k, renormalize))
            tiles = _weigh(found, top_k, renormalize).unflatten(1, (cut.height, cut.width))
            rows = tiles.flatten(0, 1)  # (tile rows * height, width, V)
            copied[block.y : block.y + len(rows), block.x : block.x + cut.width] = rows
    return copied[: query.shape[0], : query.shape[1]]


def _check(query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    if not keys or any(key.shape != query.shape for key in keys):
        shapes = ", ".join(str(tuple(key.shape)) for key in keys) or "none"
        raise ValueError(
            f"keys must be frames (h, w, D) of query {tuple(query.shape)}, got {shapes}"
        )
    sizes = {(*query.shape[:2], values[0].shape[-1])} if values else set()
    if len(values) != len(keys) or {tuple(value.shape) for value in values} != sizes:
        shapes = ", ".join(str(tuple(value.shape)) for value in values) or "none"
        raise ValueError(f"values must be (h, w, V) of each of {len(keys)} keys, got {shapes}")


class _Cut(NamedTuple):
    """The query frame as `rows` x `columns` tiles of `height` x `width` cells; `rows_at_once` of them in one block."""

    height: int
    width: int
    rows: int
    columns: int
    rows_at_once: int
    radius: int
    mask: Window
    sigma: float | None


class _Block(NamedTuple):
    """Tiles above each other: queries (R, q, D) at row y, column x; of the local frames the strip of cells around them."""

    y: int
    x: int
    queries: Tensor
    keys: Tensor | None  # (M, cells, D), cells row by row
    values: Tensor | None  # (M, cells, V)
    penalty: Tensor | None  # (R, q, P): 0 where a query may look, else -inf


def _cut(
    query: Tensor,
    num_local: int,
    num_whole: int,
    radius: int | None,
    mask: Window,
    sigma: float | None,
    max_bytes: int,
) -> _Cut:
    height, width, dim = query.shape
    reach = 0 if radius is None else radius
    if num_local:
        # Rows cost no copy, so their tiles are low; columns are copied once per strip.
        tile_h = min(_TILE_SIDES, key=lambda t: -(-height // t) * (t + 2 * reach) * (t + 2))
        tile_w = min(_TILE_SIDES, key=lambda t: -(-width // t) * (t + 2 * reach) * (t + 8))
        tile_h, tile_w = min(tile_h, height), min(tile_w, width)
    else:
        tile_h, tile_w = 1, width
    wide = tile_w + 2 * reach
    similarities = num_local * (tile_h + 2 * reach) * wide + num_whole * height * width
    row_bytes = (similarities * tile_w + num_local * wide * dim) * tile_h * query.element_size()
    rows = -(-height // tile_h)
    at_once = max(1, min(rows, max_bytes // max(1, row_bytes)))
    return _Cut(tile_h, tile_w, rows, -(-width // tile_w), at_once, reach, mask, sigma)


class _Work:
    """Cuts frames into blocks, one after the other in the same memory: fresh pages cost more than what is done on them."""

    def __init__(
        self, query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], cut: _Cut
    ) -> None:
        self.query, self.keys, self.values, self.cut = query, keys, values, cut
        if keys:
            num_frames, rows = len(keys), cut.rows_at_once
            high, wide = rows * cut.height + 2 * cut.radius, cut.width + 2 * cut.radius
            self._key_strip, self._value_strip = (
                frames[0].new_empty(num_frames, high, wide, frames[0].shape[2])
                for frames in (keys, values)
            )
            num_places = (cut.height + 2 * cut.radius) * wide
            shape = (num_frames, rows, cut.height * cut.width, num_places)
            self.similarities, self.best = query.new_empty(shape), query.new_empty(shape[1:])
        self._places: dict[int, tuple[int, ...]] = {}  # of the frames in each strip
        self._penalties: dict[tuple[int, ...], Tensor] = {}

    def blocks(self) -> Iterator[_Block]:
        """All blocks; each is overwritten by the next."""
        cut = self.cut
        height, width, dim = self.query.shape
        pad = (0, 0, 0, cut.columns * cut.width - width, 0, cut.rows * cut.height - height)
        shape = (cut.rows, cut.height, cut.columns, cut.width, dim)
        tiles = functional.pad(self.query, pad).view(shape)
        for column in range(cut.columns):
            x = column * cut.width
            for row in range(0, cut.rows, cut.rows_at_once):
                num_rows = min(cut.rows_at_once, cut.rows - row)
                y = row * cut.height
                queries = tiles[row : row + num_rows, :, column].flatten(1, 2)
                if not self.keys:
                    yield _Block(y, x, queries, None, None, None)
                    continue
                keys = self._strip(self.keys, self._key_strip, y, x)
                values = self._strip(self.values, self._value_strip, y, x)
                yield _Block(y, x, queries, keys, values, self._penalty(y, x, num_rows))

    def _strip(self, frames: Sequence[Tensor], strip: Tensor, y: int, x: int) -> Tensor:
        """The cells around a block in each frame, zeros outside: (M, rows * columns, channels)."""
        height, width = frames[0].shape[:2]
        high, wide = strip.shape[1:3]
        top, left = y - self.cut.radius, x - self.cut.radius
        rows = slice(max(0, top), min(height, top + high))
        columns = slice(max(0, left), min(width, left + wide))
        place = (rows.start - top, rows.stop - top, columns.start - left, columns.stop - left)
        if self._places.get(strip.data_ptr()) != place:  # else zeros are where they have to be
            strip.zero_()
            self._places[strip.data_ptr()] = place
        inside = strip[:, place[0] : place[1], place[2] : place[3]]
        for part, frame in zip(inside, frames, strict=True):
            part.copy_(frame[rows, columns])
        return strip.flatten(1, 2)

    def _penalty(self, y: int, x: int, num_rows: int) -> Tensor:
        """What is added to similarities for where a cell of the patch lies, -inf for those not seen: (R, q, P)."""
        cut, query = self.cut, self.query
        # Blocks that stick out of the frame alike have the same.
        out_y = (min(y, cut.radius), min(query.shape[0] - y, num_rows * cut.height + cut.radius))
        out_x = (min(x, cut.radius), min(query.shape[1] - x, cut.width + cut.radius))
        key = (*out_y, *out_x, num_rows)
        if key not in self._penalties:
            self._penalties[key] = _penalty(query, y, x, num_rows, cut)
        return self._penalties[key]


def _stacked(frames: Sequence[Tensor]) -> Tensor | None:
    return torch.stack(list(frames)).flatten(1, 2) if frames else None


def _penalty(query: Tensor, y: int, x: int, num_rows: int, cut: _Cut) -> Tensor:
    high, wide = cut.height + 2 * cut.radius, cut.width + 2 * cut.radius
    rows = torch.arange(high, device=query.device) - cut.radius
    columns = torch.arange(wide, device=query.device) - cut.radius
    window = in_window(cut.height, cut.width, cut.radius, cut.mask, query.device)  # (q, P)
    starts = y + cut.height * torch.arange(num_rows, device=query.device)
    inside_y = (rows + starts[:, None] >= 0) & (rows + starts[:, None] < query.shape[0])
    inside_x = (columns + x >= 0) & (columns + x < query.shape[1])
    inside = (inside_y[:, :, None] & inside_x).flatten(1)  # (R, P)
    # A query beyond the frame's edge is dropped later; it needs one cell to look at, or it would read nan.
    seen = window & inside[:, None]
    seen[..., 0] |= ~seen.any(-1)
    penalty = torch.zeros(seen.shape, dtype=query.dtype, device=query.device)
    if cut.sigma is not None:
        dy, dx = cell_offsets(cut.height, cut.width, cut.radius, query.device)
        penalty -= (dy**2 + dx**2).flatten(0, 1).flatten(1) / (2 * cut.sigma**2)
    return penalty.masked_fill_(~seen, -torch.inf)


class _Found(NamedTuple):
    """The largest similarities (R, q, k), their values (R, q, k, V), and log sum exp of all seen (R, q, 1) if asked for."""

    similarities: Tensor
    values: Tensor
    total: Tensor | None


def _falloff(query: Tensor, y: int, cut: _Cut) -> Tensor | None:
    """What distance takes from similarities to a whole frame, (R, q, cells), of a block that begins at row y."""
    if cut.sigma is None:
        return None
    height, width = query.shape[:2]
    # Where every frame is seen whole, a tile is a row of cells.
    down = y + torch.arange(min(cut.rows_at_once, height - y), device=query.device)
    down = down[:, None] - torch.arange(height, device=query.device)  # (R, h)
    across = torch.arange(width, device=query.device)
    across = across[:, None] - across  # (q, w)
    squares = down[:, None, :, None] ** 2 + across[:, None] ** 2
    return squares.flatten(2) / (2 * cut.sigma**2)


def _whole_similarities(
    queries: Tensor, keys: Tensor, falloff: Tensor | None, unmasked_frames: int
) -> Tensor:
    """To all cells of frames (M, cells, D), (M, R, q, cells)."""
    similarities = (queries.flatten(0, 1) @ keys.mT).unflatten(1, queries.shape[:2])
    if falloff is not None:
        similarities[unmasked_frames:] -= falloff
    return similarities


def _of_whole(similarities: Tensor, values: Tensor, top_k: int, renormalize: bool) -> _Found:
    """The best cells where frames are seen whole."""
    kept, frames, places = _largest(similarities, similarities.amax(0), None, top_k)
    total = None if renormalize else similarities.logsumexp((0, 3))[..., None]
    return _Found(kept, values.flatten(0, 1)[frames * values.shape[1] + places], total)


def _of_strip(block: _Block, work: _Work, top_k: int, renormalize: bool) -> _Found:
    """The best cells within a strip: each tile's patch is a run of the strip that begins where the tile above ends."""
    assert block.keys is not None
    assert block.values is not None
    assert block.penalty is not None
    num_frames, num_cells, dim = block.keys.shape
    num_rows, _, num_places = block.penalty.shape
    step = work.cut.height * (work.cut.width + 2 * work.cut.radius)  # cells from patch to patch
    patches = block.keys.as_strided(
        (num_frames, num_rows, dim, num_places), (num_cells * dim, step * dim, 1, dim)
    )
    similarities, best = work.similarities[:, :num_rows], work.best[:num_rows]
    for frame in range(num_frames):
        torch.bmm(block.queries, patches[frame], out=similarities[frame])
        if frame == 0:
            best.copy_(similarities[0])
        else:
            torch.maximum(best, similarities[frame], out=best)
    best += block.penalty
    kept, frames, places = _largest(similarities, best, block.penalty, top_k)
    firsts = step * torch.arange(num_rows, device=places.device)[:, None, None]
    total = None if renormalize else (similarities + block.penalty).logsumexp((0, 3))[..., None]
    return _Found(kept, block.values.flatten(0, 1)[frames * num_cells + firsts + places], total)


def _largest(
    similarities: Tensor, best: Tensor, penalty: Tensor | None, top_k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest of (M, R, q, P) per query, with their frames and places, (R, q, k) each; `best` is over the frames."""
    num_frames, num_places = similarities.shape[0], similarities.shape[3]
    pieces = _pieces(num_places, num_frames, top_k)
    size = num_places // pieces
    groups = best.unflatten(2, (pieces, size)).amax(2).topk(min(top_k, size), sorted=False).indices
    starts = size * torch.arange(pieces, device=best.device)
    places = (groups[..., None, :] + starts[:, None]).flatten(2)  # (R, q, pieces * k)
    candidates = similarities.gather(3, places.expand(num_frames, -1, -1, -1))
    if penalty is not None:
        candidates = candidates + penalty.gather(2, places)
    candidates = candidates.movedim(0, 2).flatten(2)
    kept, order = candidates.topk(min(top_k, candidates.shape[2]), sorted=False)
    num_kept = places.shape[2]
    return kept, order // num_kept, places.gather(2, order % num_kept)


def _pieces(num_places: int, num_frames: int, top_k: int) -> int:
    """How many places share a group: a divisor that balances searching groups and searching within those found."""
    ideal = (num_places / (top_k * num_frames)) ** 0.5
    return max(n for n in range(1, max(1, int(ideal)) + 1) if num_places % n == 0)


def _weigh(found: Sequence[_Found], top_k: int, renormalize: bool) -> Tensor:
    """(R, q, V) of the k strongest among all pieces."""
    similarities = torch.cat([part.similarities for part in found], 2)
    values = torch.cat([part.values for part in found], 2)
    if similarities.shape[2] > top_k:
        similarities, order = similarities.topk(top_k, sorted=False)
        values = values.gather(2, order[..., None].expand(-1, -1, -1, values.shape[3]))
    if renormalize:
        weights = similarities.softmax(2)
    else:
        totals = [part.total for part in found if part.total is not None]
        weights = (similarities - torch.cat(totals, 2).logsumexp(2, keepdim=True)).exp()
    return (weights[..., None, :] @ values).squeeze(2)
