"""Rows and footage below the command: what is repeated, what a user's own mask may look like."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from videossl.errors import UserError
from videossl.io.index_masks import read_mask
from videossl.io.pictures import write_video
from videossl.tracking.protocol import PRESETS
from videossl.tracking.sequence import Footage, video_footage
from videossl.tracking.tracking import Row, track_row


class BlackFrames:
    """Frames without content."""

    num_frames, native_size = 4, (16, 24)

    def read(self, indices: Sequence[int], size: tuple[int, int]) -> Tensor:
        return torch.zeros(len(indices), 3, *size, dtype=torch.uint8)


def test_repeating_masks_repeats_those_of_objects_that_appear_later(tmp_path: Path) -> None:
    first, late = np.zeros((16, 24), np.uint8), np.zeros((16, 24), np.uint8)
    first[2:8, 2:8] = 1
    late[4:10, 4:10] = 2
    footage = Footage("bee", BlackFrames(), tuple("0123"), first, (1, 2), 25.0, {2: late})
    track_row(Row("identity", PRESETS["videossl"], None), [footage], tmp_path)
    for index in range(4):
        expected = first if index < 2 else np.where(late, late, first)
        np.testing.assert_array_equal(read_mask(tmp_path / f"bee/{index}.png"), expected)


@pytest.mark.parametrize("palette", ["davis", "grey"])
def test_masks_are_written_in_the_colours_of_the_protocol(tmp_path: Path, palette: str) -> None:
    first = np.zeros((16, 24), np.uint8)
    first[2:8, 2:8] = 3
    footage = Footage("bee", BlackFrames(), tuple("0123"), first, (3,), 25.0)
    protocol = PRESETS["videossl"].__class__(source="test", palette=palette)
    track_row(Row("identity", protocol, None), [footage], tmp_path)
    with Image.open(tmp_path / "bee/3.png") as image:
        assert image.mode == {"davis": "P", "grey": "L"}[palette]
    np.testing.assert_array_equal(read_mask(tmp_path / "bee/3.png"), first)


def test_the_first_mask_of_a_video_may_be_painted_in_colours(tmp_path: Path) -> None:
    frames = [np.full((32, 48, 3), 40 * t, np.uint8) for t in range(3)]
    write_video(tmp_path / "mine.mkv", frames, frames_per_second=5)
    painted = np.zeros((32, 48, 3), np.uint8)
    painted[4:12, 4:12], painted[20:28, 20:40] = (255, 0, 0), (0, 0, 255)
    Image.fromarray(painted).save(tmp_path / "first.png")
    footage = video_footage(tmp_path / "mine.mkv", tmp_path / "first.png")
    assert footage.object_ids == (1, 2)
    assert (footage.first_mask[4:12, 4:12] == 1).all()
    assert (footage.first_mask[20:28, 20:40] == 2).all()
    assert footage.frames_per_second == pytest.approx(5)
    Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(tmp_path / "empty.png")
    with pytest.raises(UserError, match="holds no object"):
        video_footage(tmp_path / "mine.mkv", tmp_path / "empty.png")
