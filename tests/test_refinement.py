import numpy as np
import pytest
import torch

from videossl.errors import UserError
from videossl.tracking.propagation import propagate, refine
from videossl.tracking.protocol import Protocol, preset

RADIUS, EPSILON = 2, 1e-3


def by_windows(values, guide, radius, epsilon):
    """The guided filter as it is defined: a ridge regression in each window, and the mean over windows."""
    height, width = values.shape
    total, count = np.zeros((height, width)), np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            rows = slice(max(y - radius, 0), y + radius + 1)
            columns = slice(max(x - radius, 0), x + radius + 1)
            colours = guide[:, rows, columns].reshape(3, -1).T
            wanted = values[rows, columns].ravel()
            centred = colours - colours.mean(0)
            matrix = centred.T @ centred / len(wanted) + epsilon * np.eye(3)
            slope = np.linalg.solve(matrix, centred.T @ (wanted - wanted.mean()) / len(wanted))
            fitted = guide[:, rows, columns].transpose(1, 2, 0) @ slope
            total[rows, columns] += fitted + wanted.mean() - colours.mean(0) @ slope
            count[rows, columns] += 1
    return total / count


def test_it_is_the_guided_filter_window_by_window():
    generator = torch.Generator().manual_seed(0)
    frame = torch.randint(0, 256, (3, 9, 11), generator=generator).to(torch.uint8)
    shares = torch.rand(3, 9, 11, generator=generator).softmax(0)
    got = refine(shares, frame, radius=RADIUS, epsilon=EPSILON, fit_size=(9, 11)).numpy()
    guide = frame.numpy().astype(np.float64) / 255
    expected = [by_windows(s, guide, RADIUS, EPSILON) for s in shares.double().numpy()]
    np.testing.assert_allclose(got, np.stack(expected), atol=2e-4)


def test_shares_of_each_pixel_sum_to_one_at_the_size_of_the_frame():
    frame = torch.randint(0, 256, (3, 40, 60), generator=torch.Generator().manual_seed(0))
    shares = torch.rand(4, 10, 15, generator=torch.Generator().manual_seed(1)).softmax(0)
    refined = refine(shares, frame.to(torch.uint8), radius=4, epsilon=0.01, fit_size=(20, 30))
    assert refined.shape == (4, 40, 60)
    torch.testing.assert_close(refined.sum(0), torch.ones(40, 60))


def test_a_frame_of_one_colour_only_smooths():
    frame = torch.full((3, 8, 8), 77, dtype=torch.uint8)
    one = torch.zeros(8, 8)
    one[2, 2] = 1
    refined = refine(torch.stack([1 - one, one]), frame, radius=1, epsilon=0.01, fit_size=(8, 8))
    expected = torch.nn.functional.conv2d(
        one[None, None], torch.full((1, 1, 3, 3), 1 / 9), padding=1
    )
    expected = torch.nn.functional.conv2d(expected, torch.full((1, 1, 3, 3), 1 / 9), padding=1)[
        0, 0
    ]
    torch.testing.assert_close(refined[1, 1:6, 1:6], expected[1:6, 1:6], atol=1e-5, rtol=0)


def disc_video():
    """A red disc on green, at 64 x 64, and features of 16 x 16 cells that tell the two apart."""
    y, x = np.mgrid[:64, :64]
    disc = (y - 31) ** 2 + (x - 30) ** 2 < 17**2
    frame = torch.from_numpy(np.where(disc, np.array([200, 20, 20])[:, None, None], 60)).to(
        torch.uint8
    )
    cells = torch.from_numpy(disc[2::4, 2::4].astype(np.float32))
    features = torch.stack([cells, 1 - cells])
    return frame, disc.astype(np.uint8), features


def test_a_mask_of_coarse_cells_comes_out_at_the_edge_of_the_object():
    frame, disc, features = disc_video()
    protocol = Protocol(source="test", radius=None, temperature=0.01)
    refining = Protocol(
        source="test", radius=None, temperature=0.01, refine_radius=4, refine_side=64
    )
    coarse = list(propagate([features] * 2, disc, protocol, object_ids=[1]))[1]
    fine = list(
        propagate([features] * 2, disc, refining, object_ids=[1], frame_at=lambda index: frame)
    )[1]
    assert (coarse != disc).sum() > 80
    assert (fine != disc).sum() < 10


def test_a_protocol_that_refines_needs_the_frames():
    _, disc, features = disc_video()
    protocol = Protocol(source="test", refine_radius=4)
    with pytest.raises(ValueError, match="needs frame_at"):
        list(propagate([features] * 2, disc, protocol, object_ids=[1]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"refine_radius": "0"}, "refine_radius must be >= 1 or none"),
        ({"refine_radius": "4", "refine_epsilon": "0"}, "refine_epsilon > 0"),
        ({"refine_radius": "4", "norm_mask": "true"}, "needs norm_mask false"),
    ],
)
def test_settings_that_cannot_be_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        preset("videossl", overrides)
