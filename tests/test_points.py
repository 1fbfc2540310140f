"""Points as labels and back, followed over footage whose motion is known, and what is said of hidden ones."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from videossl.errors import UserError
from videossl.tracking.points import (
    Queries,
    Reading,
    point_labels,
    read_places,
    standing_still,
    track_points,
)
from videossl.tracking.protocol import PRESETS

PROTOCOL = replace(PRESETS["videossl"], short_side=None, radius=3)
CELL = 4  # pixels


def queries(*points: tuple[int, float, float]) -> Queries:
    """Each (frame, x, y)."""
    return Queries(
        np.array([frame for frame, _, _ in points]), np.array([(x, y) for _, x, y in points], float)
    )


def moving_texture(num_frames: int, dx: int, dy: int, height: int = 16, width: int = 24) -> Tensor:
    """Unit features (T, D, h, w) of a random texture that moves by (dx, dy) cells a frame."""
    generator = torch.Generator().manual_seed(0)
    large = torch.randn((16, 80, 80), generator=generator)
    frames = [
        large[:, 30 - dy * t : 30 - dy * t + height, 30 - dx * t : 30 - dx * t + width]
        for t in range(num_frames)
    ]
    return functional.normalize(torch.stack(frames), dim=1)


def test_a_label_is_the_gaussian_of_the_distance_in_cells() -> None:
    labels = point_labels(np.array([[10.0, 6.0], [8.0, 4.0]]), (4, 6), size=(16, 24))
    assert labels.shape == (2, 4, 6)
    # (10, 6) is the centre of cell (1, 2), whose own size is 4 pixels: e^(-d^2 / 2 / 0.25) at 0, 1 and sqrt 2 cells.
    assert labels[0, 1, 2] == 1
    assert labels[0, 1, 3].item() == pytest.approx(np.exp(-2))
    assert labels[0, 0, 1].item() == pytest.approx(np.exp(-4))
    assert labels[0, 1, 4] == 0  # 2 cells are beyond 3 sigma
    # (8, 4) is the corner of four cells.
    np.testing.assert_allclose(labels[1, :2, 1:3], np.full((2, 2), np.exp(-1)), rtol=1e-6)


def test_cells_need_not_be_square() -> None:
    labels = point_labels(np.array([[15.0, 50.0]]), (2, 4), size=(200, 40))
    assert labels[0].argmax() == 1  # 10 x 100 pixels a cell: row 0, column 1
    assert labels[0].max() == 1
    np.testing.assert_allclose(read_places(labels, size=(200, 40), top_cells=1), [[15, 50]])


def test_a_place_is_the_weighted_mean_of_the_highest_cells() -> None:
    labels = torch.zeros(1, 3, 5)
    labels[0, 0, 0], labels[0, 0, 1], labels[0, 2, 4], labels[0, 1, 1] = 0.5, 0.3, 0.2, 0.1
    # Centres 2, 6, 18 in x and 2, 2, 10 in y.
    expected = [0.5 * 2 + 0.3 * 6 + 0.2 * 18, 0.5 * 2 + 0.3 * 2 + 0.2 * 10]
    np.testing.assert_allclose(read_places(labels, size=(12, 20)), [expected], rtol=1e-6)
    np.testing.assert_allclose(read_places(labels, size=(12, 20), top_cells=1), [[2, 2]])
    of_four = [(10 * expected[0] + 6) / 11, (10 * expected[1] + 6) / 11]
    np.testing.assert_allclose(read_places(labels, size=(12, 20), top_cells=4), [of_four])


def test_an_empty_plane_has_no_place() -> None:
    assert np.isnan(read_places(torch.zeros(2, 3, 3), size=(12, 12))).all()


@pytest.mark.parametrize("top_cells", [3, 5])
def test_places_come_back_within_a_third_of_a_cell(top_cells: int) -> None:
    points = np.random.default_rng(0).uniform(8, 56, (200, 2))
    labels = point_labels(points, (16, 16), size=(64, 64))
    error = np.abs(read_places(labels, size=(64, 64), top_cells=top_cells) - points)
    assert error.max() < CELL / 3
    assert np.abs(np.mean(read_places(labels, size=(64, 64)) - points)) < 0.1  # no side is favoured


@pytest.mark.parametrize("name", ["videossl", "crw", "dino"])
def test_a_moving_texture_takes_its_points_along(name: str) -> None:
    # Cells that come in at the border copy what looks most like them in reach, which may be a point: none is in reach.
    protocol = replace(PRESETS[name], temperature=0.02, radius=3, first_unmasked=False)
    asked = queries((0, 26.0, 36.5), (0, 50.0, 30.0), (2, 40.0, 33.0))
    tracks = track_points(iter(moving_texture(6, 1, -1)), asked, protocol, size=(64, 96))
    for n, (frame, place) in enumerate(zip(*asked, strict=True)):
        for t in range(frame, 6):
            expected = place + np.array([1, -1]) * CELL * (t - frame)
            assert np.abs(tracks.places[n, t] - expected).max() < CELL
            assert not tracks.occluded[n, t]
    np.testing.assert_array_equal(tracks.places[2, :3], np.repeat(asked.places[2:], 3, 0))
    assert tracks.occluded[2].tolist() == [True, True, False, False, False, False]


def test_points_are_followed_back_in_time_too() -> None:
    asked = queries((3, 40.0, 30.0), (0, 40.0, 30.0), (5, 67.0, 20.0))
    tracks = track_points(moving_texture(6, 1, 0), asked, PROTOCOL, size=(64, 96), both_ways=True)
    for n, (frame, place) in enumerate(zip(*asked, strict=True)):
        expected = place + np.array([[CELL * (t - frame), 0] for t in range(6)])
        assert np.abs(tracks.places[n] - expected).max() < CELL
        np.testing.assert_array_equal(tracks.places[n, frame], place)
    assert not tracks.occluded.any()


def test_a_covered_point_is_hidden_until_it_is_seen_again() -> None:
    features = moving_texture(1, 0, 0, 24, 40).repeat(5, 1, 1, 1)
    for t in (2, 3):  # what covers it looks like a place far to the right
        features[t, :, 6:19, 4:17] = features[0, :, 6:19, 24:37]
    asked = queries((0, 10.5 * CELL, 12.5 * CELL), (0, 20.5 * CELL, 3.5 * CELL))
    tracks = track_points(features, asked, PROTOCOL, size=(24 * CELL, 40 * CELL))
    assert tracks.occluded[0].tolist() == [False, False, True, True, False]
    assert not tracks.occluded[1].any()
    np.testing.assert_allclose(tracks.places[0, 4], asked.places[0], atol=CELL)
    patient = Reading(cycle_cells=100)
    tracks = track_points(features, asked, PROTOCOL, size=(24 * CELL, 40 * CELL), reading=patient)
    assert not tracks.occluded.any()


def test_a_point_outside_the_frame_stays_there_hidden() -> None:
    asked = queries((0, -30.0, 20.0), (0, 20.0, 20.0))
    tracks = track_points(moving_texture(3, 0, 0), asked, PROTOCOL, size=(64, 96))
    np.testing.assert_array_equal(tracks.places[0], np.repeat([[-30.0, 20.0]], 3, 0))
    assert tracks.occluded[0].tolist() == [False, True, True]
    assert not tracks.occluded[1].any()


def test_other_points_do_not_change_a_track() -> None:
    features = moving_texture(4, 1, 1)
    alone = track_points(features, queries((0, 30.0, 30.0)), PROTOCOL, size=(64, 96))
    pair = track_points(
        features, queries((0, 30.0, 30.0), (0, 31.0, 30.0)), PROTOCOL, size=(64, 96)
    )
    np.testing.assert_allclose(pair.places[0], alone.places[0], atol=1e-4)


def test_standing_still_repeats_the_queries() -> None:
    tracks = standing_still(queries((0, 1.0, 2.0), (3, 4.0, 5.0)), 4)
    np.testing.assert_array_equal(tracks.places[1], np.repeat([[4.0, 5.0]], 4, 0))
    assert not tracks.occluded.any()


def test_hard_labels_are_refused() -> None:
    with pytest.raises(UserError, match=r"points need soft labels.*--set hard_labels=false"):
        track_points([], queries((0, 1.0, 1.0)), PRESETS["mast"], size=(8, 8))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma": 0.1}, "sigma must be >= 0.25, got 0.1"),
        ({"top_cells": 0}, "top_cells must be >= 1, got 0"),
        ({"cycle_cells": 0}, "cycle_cells must be > 0, got 0"),
    ],
)
def test_a_reading_out_of_range_fails(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Reading(**settings)
