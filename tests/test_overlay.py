"""Masks over frames, their difference to the truth, and the video that shows them side by side."""

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from videossl.io.drawing import Rgb
from videossl.tracking.overlay import (
    CONFUSED,
    MISSED,
    SPURIOUS,
    draw_difference,
    draw_mask,
    titled,
    write_comparison,
)

FRAMES, H, W = 5, 64, 96


def frame(index: int) -> Rgb:
    return np.full((H, W, 3), 40 + 20 * index, np.uint8)


def mask(index: int) -> NDArray[np.uint8]:
    ids = np.zeros((H, W), np.uint8)
    ids[10:30, 8 * index : 8 * index + 20] = 1
    ids[40:60, 50:70] = 2
    return ids


def frames() -> Iterator[Rgb]:
    return (frame(index) for index in range(FRAMES))


def masks(shift: int = 0) -> Iterator[NDArray[np.uint8]]:
    return (mask(index + shift) for index in range(FRAMES))


def decoded(path: Path) -> list[Rgb]:
    with av.open(str(path)) as container:
        return [image.to_ndarray(format="rgb24") for image in container.decode(video=0)]


def test_each_kind_of_difference_has_its_colour():
    found = np.array([[0, 1, 1], [0, 2, 1]], np.uint8)
    truth = np.array([[0, 0, 1], [1, 1, 0]], np.uint8)
    rgb = np.full((2, 3, 3), 100, np.uint8)
    drawn = draw_difference(rgb, found, truth).astype(int)
    grey = np.array([60, 60, 60])
    for row in range(2):
        for column in range(3):
            p, t = found[row, column], truth[row, column]
            colour = None
            if p and not t:
                colour = SPURIOUS
            elif t and not p:
                colour = MISSED
            elif p != t:
                colour = CONFUSED
            expected = grey if colour is None else 0.3 * grey + 0.7 * np.array(colour)
            assert np.abs(drawn[row, column] - expected).max() <= 0.5


def test_a_title_stands_over_the_picture_and_leaves_it_whole():
    picture = frame(1)
    drawn = titled(picture, "a title that is much too long for a picture of this width")
    np.testing.assert_array_equal(drawn[-H:], picture)
    assert drawn.shape[1] == W
    assert drawn[:-H].max() > 200


def test_prediction_truth_and_difference_play_side_by_side(tmp_path: Path):
    path = tmp_path / "c.mp4"
    write_comparison(path, frames(), masks(shift=1), masks(), frames_per_second=12)
    images = decoded(path)
    assert len(images) == FRAMES
    panels = [images[3][-H:, left : left + W].astype(float) for left in (0, W + 4, 2 * W + 8)]
    expected = [
        draw_mask(frame(3), mask(4)),
        draw_mask(frame(3), mask(3)),
        draw_difference(frame(3), mask(4), mask(3)),
    ]
    for panel, wanted in zip(panels, expected, strict=True):
        distances = [np.abs(panel - other).mean() for other in expected]
        assert min(distances) == np.abs(panel - wanted).mean()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 12
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.width == 3 * W + 8


def test_without_truth_the_prediction_plays_beside_its_frame(tmp_path: Path):
    path = tmp_path / "c.mp4"
    write_comparison(path, frames(), masks(), None, frames_per_second=12)
    image = decoded(path)[0]
    assert image.shape[1] == 2 * W + 4
    assert np.abs(image[-H:, :W].astype(int) - frame(0)).mean() < 4


def test_large_frames_become_panels_of_even_sides(tmp_path: Path):
    large = [np.full((721, 405, 3), 90, np.uint8)] * 2
    ids = [np.zeros((721, 405), np.uint8)] * 2
    write_comparison(tmp_path / "c.mp4", large, ids, ids, frames_per_second=24)
    assert decoded(tmp_path / "c.mp4")[0].shape == (360 + 24, 3 * 202 + 8, 3)


def test_a_video_without_as_many_masks_as_frames_fails(tmp_path: Path):
    short = list(masks())[:-1]
    with pytest.raises(ValueError, match="shorter"):
        write_comparison(tmp_path / "c.mp4", frames(), short, masks(), frames_per_second=24)
    assert list(tmp_path.iterdir()) == []


def test_the_index_of_a_video_comes_before_its_pictures(tmp_path: Path):
    write_comparison(tmp_path / "c.mp4", frames(), masks(), None, frames_per_second=24)
    data = (tmp_path / "c.mp4").read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")
