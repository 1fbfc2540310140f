"""Where a cell looks: the frames and weights of propagation itself, drawn in the right places."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from videossl.tracking.memory import LabelMemory
from videossl.tracking.overlay import (
    TILE_HEIGHT,
    cell_of_pixel,
    draw_attention,
    draw_heat,
    draw_object_attention,
    gather_reading,
    reading_weights,
)
from videossl.tracking.protocol import PRESETS, preset

T, D, H, W = 9, 6, 4, 5
READABLE = [name for name, protocol in PRESETS.items() if protocol.align_after is None]


def features() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(T, D, H, W, generator=generator)
    return list(functional.normalize(maps, dim=1))


class GreyFrames:
    """Frames of 40 x 50 pixels, all of one grey."""

    num_frames = T
    native_size = (40, 50)

    def read(self, indices: Sequence[int], size: tuple[int, int]) -> Tensor:
        return torch.full((len(indices), 3, *size), 100, dtype=torch.uint8)


@pytest.mark.parametrize("name", READABLE)
@pytest.mark.parametrize("query_index", [1, 3, 8])
@pytest.mark.parametrize("radius", ["2", "none"])
def test_weights_are_what_the_memory_of_propagation_reads(name, query_index, radius):
    protocol = preset(name, {"radius": radius})
    maps = features()
    memory = LabelMemory(protocol)
    names = torch.eye(T * H * W).view(T * H * W, T, H, W)  # labels that name frame and cell
    for index in range(query_index):
        memory.add(maps[index], names[:, index])
    copied = memory.read(maps[query_index]).view(T, H, W, H, W)
    reading = gather_reading(maps, query_index, protocol)
    for cell in [(0, 0), (2, 3), (3, 4)]:
        weights = reading_weights(reading, cell, protocol)
        found = torch.zeros(T, H, W)
        for index, part in weights.items():
            found[index] = part
        torch.testing.assert_close(found, copied[:, :, :, cell[0], cell[1]])


@pytest.mark.parametrize("native_size", [(48, 72), (33, 47), (480, 854)])
def test_a_pixel_lies_in_the_cell_that_covers_it(native_size):
    cells = (12, 18)
    numbers = torch.arange(12 * 18.0).view(1, 1, *cells)
    covered = functional.interpolate(numbers, native_size, mode="nearest-exact")[0, 0]
    height, width = native_size
    for y in (0, 1, height // 2, height - 1):
        for x in (0, 3, width // 3, width - 1):
            row, column = cell_of_pixel((x, y), native_size, cells)
            assert row * 18 + column == covered[y, x]


def test_heat_lies_on_the_cells_with_weight_alone():
    shares = torch.zeros(H, W)
    shares[1, 2], shares[3, 4] = 1.0, 0.25
    drawn = draw_heat(np.full((10 * H, 10 * W, 3), 100, np.uint8), shares)
    is_grey = (drawn == 60).all(2)
    expected = shares.repeat_interleave(10, 0).repeat_interleave(10, 1).numpy() == 0
    np.testing.assert_array_equal(is_grey, expected)
    assert drawn[15, 25].sum() > drawn[35, 45].sum()


def test_the_picture_shows_the_query_and_each_frame_it_reads():
    weights = {0: torch.zeros(H, W), 2: torch.zeros(H, W), 3: torch.zeros(H, W)}
    weights[2][0, 0] = 1.0
    picture = draw_attention(GreyFrames(), 4, (25, 20), weights)
    tile_width = 50 * TILE_HEIGHT // 40
    assert picture.shape[1] == 4 * tile_width + 3 * 4
    tiles = [
        picture[-TILE_HEIGHT:, left : left + tile_width]
        for left in range(0, picture.shape[1], tile_width + 4)
    ]
    assert (tiles[0][: TILE_HEIGHT // 3] == 100).all()
    assert (tiles[0][TILE_HEIGHT // 2 - 10 : TILE_HEIGHT // 2 + 10] != 100).any()  # the mark
    assert (tiles[1] == 60).all()
    assert (tiles[3] == 60).all()
    assert (tiles[2] != 60).any(2).sum() == (TILE_HEIGHT // H) * (tile_width // W)


def test_the_innermost_pixel_of_the_largest_object_is_the_one_that_looks(tmp_path):
    mask = np.zeros((40, 50), np.uint8)
    mask[1:4, 1:4] = 1  # smaller
    mask[10:31, 20:41] = 2
    protocol = preset("crw", {"radius": "none"})
    draw_object_attention(tmp_path / "clip", GreyFrames(), features()[:5], mask, protocol)
    drawn = np.asarray(Image.open(tmp_path / "clip" / "frame 4.png"))
    reading = gather_reading(features(), 4, protocol)
    weights = reading_weights(reading, cell_of_pixel((30, 20), (40, 50), (H, W)), protocol)
    np.testing.assert_array_equal(drawn, draw_attention(GreyFrames(), 4, (30, 20), weights))


@pytest.mark.parametrize(
    ("num_frames", "objects", "protocol"), [(1, 1, "crw"), (5, 0, "crw"), (5, 1, "mast")]
)
def test_nothing_is_drawn_where_nothing_is_read(tmp_path, num_frames, objects, protocol):
    mask = np.full((40, 50), objects, np.uint8)
    given = features()[:num_frames]
    draw_object_attention(tmp_path / "clip", GreyFrames(), given, mask, preset(protocol))
    assert not (tmp_path / "clip").exists()
