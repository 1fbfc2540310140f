"""Pictures for people to look at: strips of frames, contact sheets, marked cells, and arrays in and out of tensors."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from videossl.color import picture
from videossl.io.output_files import whole_file

Rgb = NDArray[np.uint8]  # (H, W, 3)


NUM_DRAWN = 4  # rows of a batch


_GAP = 4  # pixels between pictures


_TITLE = 20  # pixels


class Strip(NamedTuple):
    """A title and the pictures beside each other under it."""

    title: str
    pictures: Sequence[Rgb]


def contact_sheet(strips: Sequence[Strip], *, height: int) -> Rgb:
    """All strips, one below the other on white, each picture scaled to `height` pixels: (H, W, 3) uint8."""
    rows = [_draw(strip, height) for strip in strips]
    sheet = Image.new("RGB", (max(r.width for r in rows), sum(r.height for r in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return np.asarray(sheet)


def write_png(path: Path, picture: Rgb) -> None:
    """Writes a picture whole or not at all."""
    with whole_file(path, sync=False) as partial:
        Image.fromarray(picture).save(partial, format="PNG")


def _draw(strip: Strip, height: int) -> Image.Image:
    scaled = [
        Image.fromarray(picture).resize(
            (round(picture.shape[1] * height / picture.shape[0]), height)
        )
        for picture in strip.pictures
    ]
    text = ImageDraw.Draw(Image.new("RGB", (1, 1))).textlength(strip.title)
    width = max(sum(p.width + _GAP for p in scaled), round(text) + 2 * _GAP)
    row = Image.new("RGB", (width, height + _TITLE), "white")
    ImageDraw.Draw(row).text((_GAP, _GAP), strip.title, fill="black")
    left = 0
    for image in scaled:
        row.paste(image, (left, _TITLE))
        left += image.width + _GAP
    return row


def as_array(image: Tensor) -> Rgb:
    """(3, H, W) to (H, W, 3)."""
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def from_array(image: Rgb) -> Tensor:
    """(H, W, 3) to (3, H, W)."""
    return torch.from_numpy(image.copy()).permute(2, 0, 1)


def film(clip: Tensor) -> list[Rgb]:
    """The frames of a normalised Lab clip (3, T, H, W)."""
    return [as_array(picture(frame)) for frame in clip.unbind(1)]


def mark_cell(image: Tensor, cell: tuple[int, int], pixels: int) -> Tensor:
    """The picture with a red frame around a cell (row, column) of `pixels` a side."""
    marked = image.clone()
    top, left = (max(0, place * pixels - 1) for place in cell)
    box = marked[:, top : top + pixels + 2, left : left + pixels + 2]
    red = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None]
    box[:, 0], box[:, -1], box[:, :, 0], box[:, :, -1] = red, red, red, red
    return marked


def brighten(image: Tensor, weights: Tensor) -> Tensor:
    """The picture darkened to a quarter where the weights (h, w) are 0, tinted red where they are greatest."""
    large = F.interpolate(weights[None, None].float().cpu(), image.shape[1:])[0]
    share = large / large.max().clamp_min(1e-12)
    red = torch.tensor([255.0, 0.0, 0.0])[:, None, None]
    return (image * 0.25 * (1 - share) + red * share).round().to(torch.uint8)
