"""What a tracked sequence looks like: masks over its frames, contact sheets, and where a pixel looks."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from videossl.io.drawing import Rgb, Strip, as_array, contact_sheet, write_png
from videossl.io.index_masks import IndexMask, read_mask
from videossl.io.pictures import write_video
from videossl.models.attention import attention_map
from videossl.tracking.davis import DavisSequence
from videossl.tracking.memory import LabelMemory
from videossl.tracking.protocol import Protocol
from videossl.tracking.sequence import Footage, FrameSource

# Distinct for colour-blind eyes too (Okabe and Ito), brightest first; ids beyond them start again.
COLOURS = np.array(
    [
        (230, 60, 40),
        (86, 180, 233),
        (240, 228, 66),
        (0, 180, 120),
        (204, 121, 167),
        (255, 160, 0),
        (60, 90, 220),
    ],
    np.uint8,
)
_OPACITY = 0.5

# Of the difference between prediction and truth: where the eye should go, not which object it is.
SPURIOUS, MISSED, CONFUSED = (230, 60, 40), (60, 130, 255), (240, 228, 66)

PANEL_HEIGHT = (
    360  # pixels at most: three panels of a 16:9 video stay within what every H.264 player takes
)
_PANEL_GAP = 4
_TITLE_HEIGHT = 24
_TITLE_SIZE = 14
_COMPARISON_CRF = "26"  # of x264; chosen: text stays sharp, a DAVIS sequence takes 1-3 MB


def draw_mask(rgb: Rgb, mask: IndexMask) -> Rgb:
    """The frame with each object tinted in its colour and outlined in white and its colour, (H, W, 3) uint8."""
    out = rgb.copy()
    objects = mask > 0
    if not objects.any():
        return out
    colours = COLOURS[(mask.astype(int) - 1) % len(COLOURS)]
    tinted = (1 - _OPACITY) * rgb[objects] + _OPACITY * colours[objects]
    out[objects] = tinted.round().astype(np.uint8)
    from scipy import ndimage  # half a second to load

    inside = ndimage.grey_erosion(mask, size=3) == ndimage.grey_dilation(mask, size=3)
    line = ~inside
    out[line & objects] = colours[line & objects]
    out[line & ~objects] = 255
    return out


def write_contact_sheet(
    path: Path, rows: Sequence[tuple[str, Sequence[Rgb]]], *, height: int = 160
) -> None:
    """Writes a PNG with one titled row of pictures per entry, each scaled to `height` pixels."""
    write_png(path, contact_sheet([Strip(*row) for row in rows], height=height))


def draw_difference(rgb: Rgb, mask: IndexMask, truth: IndexMask) -> Rgb:
    """The frame in grey with the wrong pixels in colour, (H, W, 3) uint8.

    SPURIOUS where only the prediction has an object, MISSED where only the truth has one, CONFUSED where the object is
    another one.
    """
    grey = rgb.mean(2, keepdims=True).repeat(3, 2) * 0.6  # dark, so that the tints stand out
    for wrong, colour in (
        ((mask > 0) & (truth == 0), SPURIOUS),
        ((mask == 0) & (truth > 0), MISSED),
        ((mask > 0) & (truth > 0) & (mask != truth), CONFUSED),
    ):
        grey[wrong] = 0.3 * grey[wrong] + 0.7 * np.array(colour)
    return grey.round().astype(np.uint8)


def titled(picture: Rgb, title: str) -> Rgb:
    """The picture under a dark bar with a title, which ends where the picture ends."""
    image = Image.new("RGB", (picture.shape[1], picture.shape[0] + _TITLE_HEIGHT), (24, 26, 30))
    font = ImageFont.load_default(_TITLE_SIZE)
    ImageDraw.Draw(image).text((6, 3), title, fill=(235, 235, 235), font=font)
    image.paste(Image.fromarray(picture), (0, _TITLE_HEIGHT))
    return np.asarray(image)


def write_comparison(
    path: Path,
    frames: Iterable[Rgb],
    masks: Iterable[IndexMask],
    truths: Iterable[IndexMask] | None,
    *,
    frames_per_second: float,
) -> None:
    """Writes an mp4 of prediction, ground truth and difference side by side; without truths, of frame and prediction.

    `frames` are of native size (H, W, 3) uint8, `masks` and `truths` their object ids (H, W). Raises UserError if the file
    cannot be written, ValueError if there are not as many masks as frames.
    """
    compared = _compared(frames, masks, truths)
    options = {"crf": _COMPARISON_CRF}
    write_video(path, compared, frames_per_second=frames_per_second, options=options)


def _compared(
    frames: Iterable[Rgb], masks: Iterable[IndexMask], truths: Iterable[IndexMask] | None
) -> Iterator[Rgb]:
    if truths is None:
        for index, (rgb, mask) in enumerate(zip(frames, masks, strict=True)):
            yield _beside([(f"frame {index}", rgb), ("prediction", draw_mask(rgb, mask))])
        return
    for index, (rgb, mask, truth) in enumerate(zip(frames, masks, truths, strict=True)):
        yield _beside(
            [
                (f"prediction, frame {index}", draw_mask(rgb, mask)),
                ("ground truth", draw_mask(rgb, truth)),
                (
                    "red: too much, blue: missed, yellow: other object",
                    draw_difference(rgb, mask, truth),
                ),
            ]
        )


def _beside(panels: Sequence[tuple[str, Rgb]]) -> Rgb:
    """Titled panels in a row, with even sides so that yuv420p loses none of them."""
    height, width = panels[0][1].shape[:2]
    scale = min(1.0, PANEL_HEIGHT / height)
    size = (_even(width * scale), _even(height * scale))
    pictures = []
    for title, rgb in panels:
        scaled = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BILINEAR))
        gap = np.zeros((size[1] + _TITLE_HEIGHT, _PANEL_GAP, 3), np.uint8)
        pictures += [titled(scaled, title), gap]
    return np.concatenate(pictures[:-1], 1)


def _even(length: float) -> int:
    return max(2, 2 * round(length / 2))


SHEET_FRAMES = 6
_CHUNK_FRAMES = 16  # of native size in memory while a video is drawn: chosen


def write_footage_pictures(
    out: Path, footage: Footage, truth: DavisSequence | None, *, row_names: Sequence[str], main: str
) -> None:
    """Writes `overlay/<name>.mp4` and `.png` and `comparison/<name>.mp4` of the row `main`, with the truth if it is known.

    The masks of each row lie in `out/<row>/<name>`.
    """
    masks = out / main / footage.name
    overlay = out / "overlay" / f"{footage.name}.mp4"
    drawn = map(draw_mask, _native_frames(footage.source), _masks(footage, masks))
    write_video(overlay, drawn, frames_per_second=footage.frames_per_second)
    folders = [out / name for name in row_names]
    _write_sheet(footage, folders, truth, overlay.with_suffix(".png"))
    write_comparison(
        out / "comparison" / overlay.name,
        _native_frames(footage.source),
        _masks(footage, masks),
        None if truth is None else map(truth.mask, range(len(footage.frame_names))),
        frames_per_second=footage.frames_per_second,
    )


def _masks(footage: Footage, folder: Path) -> Iterator[IndexMask]:
    return (read_mask(folder / f"{name}.png", form="2017") for name in footage.frame_names)


def _native_frames(source: FrameSource) -> Iterator[Rgb]:
    for start in range(0, source.num_frames, _CHUNK_FRAMES):
        yield from _native(source, range(start, min(start + _CHUNK_FRAMES, source.num_frames)))


def _native(source: FrameSource, indices: Sequence[int]) -> Rgb:
    frames = source.read(indices, source.native_size)
    return np.ascontiguousarray(frames.permute(0, 2, 3, 1).numpy())


def _write_sheet(
    footage: Footage, row_folders: Sequence[Path], truth: DavisSequence | None, path: Path
) -> None:
    """A few frames of each row, under the ground truth where there is one."""
    count = min(SHEET_FRAMES, footage.source.num_frames)
    indices = [int(i) for i in np.linspace(0, footage.source.num_frames - 1, count).round()]
    frames = _native(footage.source, indices)
    rows: list[tuple[str, list[Rgb]]] = []
    if truth is not None:
        drawn = [draw_mask(rgb, truth.mask(i)) for i, rgb in zip(indices, frames, strict=True)]
        rows.append((f"{footage.name}: ground truth", drawn))
    for folder in row_folders:
        paths = [folder / footage.name / f"{footage.frame_names[i]}.png" for i in indices]
        masks = [read_mask(mask, form="2017") for mask in paths]
        drawn = [draw_mask(rgb, mask) for rgb, mask in zip(frames, masks, strict=True)]
        rows.append((f"{footage.name}: {folder.name}", drawn))
    write_contact_sheet(path, rows)


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
