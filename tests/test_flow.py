"""Masks carried by optical flow: rendered motion that is known, and what joins or has no OpenCV."""

import sys
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from videossl.errors import UserError
from videossl.tracking.baselines import backward_flows, flow_masks, warp
from videossl.tracking.sequence import resize_rgb

pytest.importorskip("cv2")

H, W, FRAMES = 96, 128, 6


class Rendered:
    """Frames in memory as a FrameSource."""

    def __init__(self, frames: Sequence[NDArray[np.uint8]]) -> None:
        self.frames, self.num_frames = frames, len(frames)
        self.native_size = frames[0].shape[:2]

    def read(self, indices: Sequence[int], size: tuple[int, int]) -> Tensor:
        resized = [resize_rgb(Image.fromarray(self.frames[i]), size) for i in indices]
        return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)


def texture(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """Smooth enough for flow, with structure everywhere."""
    coarse = np.random.default_rng(seed).integers(0, 255, (height // 8, width // 8, 3))
    image = Image.fromarray(coarse.astype(np.uint8))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def panned(
    step: tuple[int, int], *, objects: int = 1
) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]:
    """A textured scene that moves (x, y) pixels a frame through the picture, and squares of it as objects."""
    margin = 24
    scene = texture(H + 2 * margin, W + 2 * margin, seed=0)
    known = np.zeros(scene.shape[:2], np.uint8)
    for number in range(1, objects + 1):
        x = margin + 22 + 24 * (number - 1)
        known[margin + 36 : margin + 60, x : x + 20] = number
    places = [(margin - step[1] * t, margin - step[0] * t) for t in range(FRAMES)]
    windows = [(slice(y, y + H), slice(x, x + W)) for y, x in places]
    return [scene[window] for window in windows], [known[window] for window in windows]


def pasted(step: int) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]:
    """A textured square that moves to the right over a ground of its own."""
    frames, masks = [], []
    for t in range(FRAMES):
        frame, mask = texture(H, W, seed=0).copy(), np.zeros((H, W), np.uint8)
        window = slice(24, 72), slice(12 + step * t, 60 + step * t)
        frame[window], mask[window] = texture(48, 48, seed=1), 1
        frames.append(frame)
        masks.append(mask)
    return frames, masks


def overlap(mask: NDArray[np.uint8], truth: NDArray[np.uint8], number: int = 1) -> float:
    found, known = mask == number, truth == number
    return float((found & known).sum() / (found | known).sum())


@pytest.mark.parametrize("step", [(3, 0), (-2, 2), (0, -3)])
def test_a_mask_follows_a_translation(step: tuple[int, int]) -> None:
    frames, masks = panned(step)
    found = list(flow_masks(Rendered(frames), masks[0], object_ids=[1]))
    assert len(found) == FRAMES
    np.testing.assert_array_equal(found[0], masks[0])
    assert overlap(masks[0], masks[-1]) < 0.5  # standing still would not do
    assert min(overlap(f, m) for f, m in zip(found, masks, strict=True)) > 0.93


def test_an_object_before_a_still_ground_is_followed() -> None:
    frames, masks = pasted(step=3)
    *_, last = flow_masks(Rendered(frames), masks[0], object_ids=[1])
    assert overlap(last, masks[-1]) > overlap(masks[0], masks[-1]) + 0.2


def test_the_flow_of_a_shifted_picture_points_back_by_the_shift() -> None:
    wide = texture(H, W + 40, seed=3)
    frames = [wide[:, 4 * t : 4 * t + W] for t in range(3)]  # moves 4 pixels to the left
    for flow in backward_flows(Rendered(frames)):
        inner = flow[16:-16, 16:-16]
        assert np.median(inner[..., 0]) == pytest.approx(4, abs=0.1)
        assert np.median(inner[..., 1]) == pytest.approx(0, abs=0.1)


def test_frames_above_480_pixels_have_flow_in_their_own_pixels() -> None:
    wide = texture(960, 1000 + 24, seed=4)
    frames = [wide[:, :1000], wide[:, 12 : 12 + 1000]]
    (flow,) = backward_flows(Rendered(frames))
    assert flow.shape == (960, 1000, 2)
    assert np.median(flow[100:-100, 100:-100, 0]) == pytest.approx(12, abs=0.3)


def test_several_objects_travel_with_their_own_ids() -> None:
    frames, masks = panned((0, 2), objects=4)
    ids = np.array([0, 9, 4, 200, 1], np.uint8)
    found = list(flow_masks(Rendered(frames), ids[masks[0]], object_ids=[1, 4, 9, 200]))
    for number in (1, 4, 9, 200):
        assert overlap(found[-1], ids[masks[-1]], number) > 0.8
    assert set(np.unique(found[-1])) <= {0, 1, 4, 9, 200}


def test_an_object_that_joins_later_is_taken_as_given_and_followed() -> None:
    frames, masks = panned((0, 2), objects=2)
    first, joined = np.where(masks[0] == 1, masks[0], 0), np.where(masks[2] == 2, masks[2], 0)
    found = list(flow_masks(Rendered(frames), first, object_ids=[1, 2], later_masks={2: joined}))
    assert not (found[1] == 2).any()
    np.testing.assert_array_equal(found[2] == 2, joined == 2)
    assert overlap(found[-1], masks[-1], 2) > 0.85
    assert overlap(found[-1], masks[-1], 1) > 0.85


def test_warped_shares_come_from_where_the_flow_points() -> None:
    shares = np.random.default_rng(0).random((3, 5, 7)).astype(np.float32)
    flow = np.zeros((5, 7, 2), np.float32)
    np.testing.assert_allclose(warp(shares, flow), shares, atol=1e-6)
    flow[..., 0], flow[..., 1] = 2, -1
    warped = warp(shares, flow)
    for y in range(5):
        for x in range(7):
            expected = shares[:, max(0, y - 1), min(6, x + 2)]
            np.testing.assert_allclose(warped[:, y, x], expected, atol=1e-6)
    flow[..., 0], flow[..., 1] = 0.5, 0
    np.testing.assert_allclose(
        warp(shares, flow)[:, :, :-1], (shares[..., :-1] + shares[..., 1:]) / 2, atol=1e-6
    )


def test_without_opencv_flow_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    frames, masks = panned((3, 0))
    with pytest.raises(UserError, match=r"optical flow needs OpenCV: pip install"):
        list(flow_masks(Rendered(frames), masks[0], object_ids=[1]))
