"""Where a pixel of a frame looks: the weights with which label propagation reads for it, as heat over the frames read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from videossl.drawing import Rgb, as_array, write_png
from videossl.eval.frames import FrameSource
from videossl.eval.mask_files import IndexMask
from videossl.eval.memory import LabelMemory
from videossl.eval.overlay import titled
from videossl.eval.protocol import Protocol
from videossl.models.attention_map import attention_map

TILE_HEIGHT = 200  # pixels of a frame in the picture
_COLUMNS = 4
_GAP = 4


@dataclass(frozen=True)
class Reading:
    """A frame and those it reads: features (D, h, w), prepared as for propagation."""

    query_index: int
    query: Tensor
    read_indices: tuple[int, ...]  # in the order of the memory; a frame may be read more than once
    keys: Mapping[int, Tensor]  # by frame index


def gather_reading(features: Sequence[Tensor], query_index: int, protocol: Protocol) -> Reading:
    """What frame `query_index`, from 1 on, reads if propagation began at frame 0, whose features come first.

    The protocol must not move its windows (`align_after`): which cells it reads then depends on the frames.
    """
    assert query_index >= 1
    assert protocol.align_after is None
    memory = LabelMemory(protocol)
    nothing = torch.zeros(1, 1, 1)
    for _ in range(query_index):
        memory.add(nothing, nothing)
    # What lies before the video is a copy of its first frame.
    read_indices = tuple(max(0, index) for index in memory.context_indices())
    keys = {index: features[index] for index in sorted(set(read_indices))}
    return Reading(query_index, features[query_index], read_indices, keys)


def cell_of_pixel(
    pixel: tuple[int, int], native_size: tuple[int, int], cells: tuple[int, int]
) -> tuple[int, int]:
    """The (row, column) among (h, w) cells that pixel (x, y) of an (H, W) frame lies in."""
    (x, y), (height, width) = pixel, native_size
    # By its centre: the sides of a cell need not be whole pixels.
    return int((y + 0.5) * cells[0] / height), int((x + 0.5) * cells[1] / width)


def draw_object_attention(
    folder: Path,
    source: FrameSource,
    features: Sequence[Tensor],
    mask: IndexMask,
    protocol: Protocol,
) -> None:
    """Writes `folder/frame N.png`: where the innermost pixel of the largest object looks in the last of these frames.

    `features` are those of all frames from the first on, `mask` (H, W) is that of the last. Nothing is drawn of a single
    frame or an empty mask, nor for protocols whose windows move.
    """
    query_index = len(features) - 1
    if query_index < 1 or not mask.any() or protocol.align_after is not None:
        return
    reading = gather_reading(features, query_index, protocol)
    pixel = _innermost(mask)
    height, width = reading.query.shape[1:]
    cell = cell_of_pixel(pixel, source.native_size, (height, width))
    weights = reading_weights(reading, cell, protocol)
    write_png(
        folder / f"frame {query_index}.png", draw_attention(source, query_index, pixel, weights)
    )


def _innermost(mask: IndexMask) -> tuple[int, int]:
    """The pixel (x, y) of the largest object that is farthest from the object's border."""
    largest = int(np.bincount(mask[mask > 0]).argmax())
    inside = np.pad(mask == largest, 1)  # what lies at the rim of the frame ends there
    depth = distance_transform_edt(inside)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(x), int(y)


def reading_weights(
    reading: Reading, cell: tuple[int, int], protocol: Protocol
) -> dict[int, Tensor]:
    """By frame index the weights (h, w) with which one cell (row, column) of the query reads; together 1.

    Less than 1 where the protocol does not renormalize. What is read twice counts twice.
    """
    groups = [reading.read_indices]
    if protocol.top_k_of == "frame":
        groups = [(index,) for index in reading.read_indices]
    found: dict[int, Tensor] = {}
    for indices in groups:
        weights = attention_map(
            reading.query,
            cell,
            torch.stack([reading.keys[index] for index in indices]),
            temperature=protocol.temperature,
            radius=protocol.radius,
            mask=protocol.window,
            top_k=protocol.top_k,
            unmasked_frames=int(protocol.first_unmasked and protocol.keep_first),
            renormalize=protocol.renormalize,
            distance_sigma=protocol.distance_sigma,
        )
        for index, part in zip(indices, weights / len(groups), strict=True):
            found[index] = found[index] + part if index in found else part
    return dict(sorted(found.items()))


def draw_attention(
    source: FrameSource, query_index: int, pixel: tuple[int, int], weights: Mapping[int, Tensor]
) -> Rgb:
    """The query frame with the pixel (x, y) marked, then each frame it reads under the heat of its weights.

    (H, W, 3) uint8. All frames share one scale, and each title says the frame's share of the weight.
    """
    height, width = source.native_size
    size = (TILE_HEIGHT, max(1, round(width * TILE_HEIGHT / height)))
    frames = {i: _frame(source, i, size) for i in (query_index, *weights)}
    centre = ((pixel[0] + 0.5) * size[1] / width, (pixel[1] + 0.5) * size[0] / height)
    title = f"frame {query_index}, pixel {pixel[0]},{pixel[1]}"
    tiles = [titled(_marked(frames[query_index], centre), title)]
    peak = max(float(part.max()) for part in weights.values())
    for index, part in weights.items():
        drawn = draw_heat(frames[index], part / peak)
        tiles.append(titled(drawn, f"frame {index}: {100 * float(part.sum()):.1f} %"))
    return _grid(tiles)


def draw_heat(rgb: Rgb, shares: Tensor) -> Rgb:
    """The frame, grey and dark, with each cell of `shares` (h, w) in [0, 1] from red to yellow where it is not 0."""
    # The root, since most of the weight lies in a few cells and the others should be seen too.
    small = shares.float().clamp(0, 1).sqrt().cpu().numpy()
    cells = Image.fromarray((255 * small).round().astype(np.uint8))
    large = cells.resize((rgb.shape[1], rgb.shape[0]), Image.Resampling.NEAREST)
    heat = np.asarray(large)[:, :, None] / 255
    colour = np.array([235, 40, 30]) * (1 - heat) + np.array([255, 225, 60]) * heat
    opacity = np.where(heat > 0, 0.35 + 0.6 * heat, 0)
    grey = 0.6 * rgb.mean(2, keepdims=True)
    return ((1 - opacity) * grey + opacity * colour).round().astype(np.uint8)


def _frame(source: FrameSource, index: int, size: tuple[int, int]) -> Rgb:
    return as_array(source.read([index], size)[0].cpu())


def _marked(rgb: Rgb, centre: tuple[float, float]) -> Rgb:
    image = Image.fromarray(rgb)
    draw = ImageDraw.Draw(image)
    x, y = centre
    for radius, colour in ((8, "black"), (7, "white"), (6, "black"), (1, "white")):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour)
    return np.asarray(image)


def _grid(tiles: list[Rgb]) -> Rgb:
    """Tiles of one size in rows of four."""
    height, width = tiles[0].shape[:2]
    columns = min(_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    shape = (rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3)
    sheet = np.full(shape, 255, np.uint8)
    for place, tile in enumerate(tiles):
        top, left = (place // columns) * (height + _GAP), (place % columns) * (width + _GAP)
        sheet[top : top + height, left : left + width] = tile
    return sheet
