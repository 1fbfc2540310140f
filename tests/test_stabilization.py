"""The camera's motion is taken out where it can be: against clips whose motion is known."""

import builtins

import cv2
import numpy as np
import pytest
import torch

from videossl.models.encoder import Encoder, EncoderSpec
from videossl.pretext._views import camera_motion, covers, stabilize
from videossl.pretext.arrow_of_time import ArrowOfTimeConfig, Task
from videossl.rng import row_random
from videossl.types import ClipBatch, metric_mean

SIDE, FRAMES, MARGIN = 96, 5, 10


def texture(seed: int = 0, side: int = 200) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(side, side)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.0)
    return 128 + 40 * smooth / smooth.std()


def seen_by_a_camera(homographies: list[np.ndarray], seed: int = 0) -> np.ndarray:
    """What a camera that moves over a texture sees: (T, SIDE, SIDE) float."""
    centre = np.array([[1, 0, -52], [0, 1, -52], [0, 0, 1.0]])
    return np.stack(
        [cv2.warpPerspective(texture(seed), h @ centre, (SIDE, SIDE)) for h in homographies]
    )


def zoom_and_pan(t: float) -> np.ndarray:
    """About the middle of the frame."""
    scale, shift = 1 + 0.02 * t, 1.5 * t
    offset = SIDE / 2 * (1 - scale) + shift
    return np.array([[scale, 0, offset], [0, scale, offset / 2], [0, 0, 1.0]])


TRUE_MOTION = [zoom_and_pan(t) for t in range(-2, 3)]


def as_clip(frames: np.ndarray) -> torch.Tensor:
    lightness = torch.from_numpy(frames).float() / 50 - 2
    return torch.stack([lightness, 0.5 * lightness, -lightness])[None]  # (1, 3, T, S, S)


def test_the_motion_found_is_the_motion_made():
    frames = seen_by_a_camera(TRUE_MOTION).clip(0, 255).astype(np.uint8)
    found = camera_motion(frames)
    points = np.array([[20, 20, 1], [70, 30, 1], [40, 75, 1.0]]).T
    for mine, true in zip(found, TRUE_MOTION, strict=True):
        got, expected = (h @ points for h in (mine, true))
        assert np.abs(got[:2] / got[2] - expected[:2] / expected[2]).max() < 0.3


def test_stabilised_frames_show_what_the_centre_shows():
    clip = as_clip(seen_by_a_camera(TRUE_MOTION))
    stabilised, stable = stabilize(clip, MARGIN)
    assert stable.tolist() == [True]
    inner = clip[..., MARGIN:-MARGIN, MARGIN:-MARGIN]
    centre = inner[:, :, 2:3]
    assert stabilised.shape == inner.shape
    torch.testing.assert_close(stabilised[:, :, 2:3], centre, atol=1e-4, rtol=0)
    before, after = ((c - centre).abs().mean() for c in (inner, stabilised))
    assert after < 0.1 * before


def test_clips_that_cannot_be_followed_are_left_as_they_are():
    noise = np.random.default_rng(0).uniform(0, 255, (FRAMES, SIDE, SIDE))
    flat = np.full((FRAMES, SIDE, SIDE), 100.0)
    far = seen_by_a_camera([zoom_and_pan(6 * t) for t in range(-2, 3)])  # shows other things
    clips = torch.cat([as_clip(frames) for frames in (noise, flat, far)])
    stabilised, stable = stabilize(clips, MARGIN)
    assert stable.tolist() == [False, False, False]
    torch.testing.assert_close(
        stabilised, clips[..., MARGIN:-MARGIN, MARGIN:-MARGIN], atol=1e-4, rtol=0
    )


def test_a_frame_must_show_all_that_is_inside_the_margin():
    moved = np.eye(3)
    moved[0, 2] = 9.0
    still = np.eye(3)
    assert covers(np.stack([still, moved]), SIDE, margin=10)
    assert not covers(np.stack([still, moved]), SIDE, margin=8)


def test_both_directions_are_resampled_alike():
    """Reversed in time and then stabilised is stabilised and then reversed: the centre frame is in the middle both ways."""
    clip = as_clip(seen_by_a_camera(TRUE_MOTION))
    forward, _ = stabilize(clip, MARGIN)
    backward, _ = stabilize(clip.flip(2), MARGIN)
    torch.testing.assert_close(backward.flip(2), forward, atol=2e-3, rtol=0)
    with pytest.raises(ValueError, match="num_frames must be odd to be stabilised, got 4"):
        stabilize(clip[:, :, :4], MARGIN)


def task_of(**settings) -> Task:
    config = ArrowOfTimeConfig(
        crop_size=SIDE - 2 * MARGIN, num_frames=FRAMES, stabilize=True, stabilize_margin=MARGIN,
        **settings,
    )  # fmt: skip
    return Task(config, Encoder(EncoderSpec("tiny")).stages)


def test_the_arrow_leaves_out_what_cannot_be_stabilised_and_what_then_stands_still():
    task = task_of(min_motion=0.05)
    moving = seen_by_a_camera(TRUE_MOTION)
    with_object = moving.copy()
    for t, frame in enumerate(with_object):
        frame[40:52, 30 + 5 * t : 42 + 5 * t] = 250
    noise = np.random.default_rng(0).uniform(0, 255, moving.shape)
    clips = torch.stack([as_clip(f) for f in (moving, with_object, noise)])  # (3, 1, 3, T, S, S)
    spec = task.clip_spec
    batch = ClipBatch({spec: clips}, {spec: torch.zeros(3, 1, FRAMES).double()}, torch.arange(3))
    rows = row_random(0, "v", rank=0, world_size=1, num_rows=3, device=torch.device("cpu"))
    views = task.make_views(batch, rows)
    assert views.targets["moving"].tolist() == [0, 1, 0]
    assert views.targets["stable"].tolist() == [1, 1, 0]
    encoder = Encoder(EncoderSpec("tiny"))
    features = {name: encoder(views.clips(name))["res5"] for name in views.names}
    result = task(features, views.targets)
    assert metric_mean(result.metric_sums["stable_share"]) == pytest.approx(2 / 3)


def test_an_even_number_of_frames_fails():
    with pytest.raises(ValueError, match=r"num_frames must be odd to be stabilised.*got 4"):
        Task(ArrowOfTimeConfig(num_frames=4, stabilize=True), Encoder(EncoderSpec("tiny")).stages)


def test_without_opencv_the_remedy_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "cv2":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"pip install 'videossl\[stabilization\]'"):
        task_of()
