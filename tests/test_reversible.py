import numpy as np
import pytest

from videossl.data.synthetic import (
    AR_COEFFICIENT,
    FRAMES_PER_SECOND,
    KERNEL_FRAMES,
    ReversibleScene,
    reversible_frames,
    stationary_paths,
)
from videossl.decode.backends import open_video
from videossl.io.pictures import write_video


def test_paths_have_the_covariance_of_a_smoothed_ar1_at_every_moment():
    """Against the closed form; a Gaussian path whose covariance depends on the lag alone is reversible."""
    paths = stationary_paths(np.random.default_rng(0), 20_000, 24)
    reach = round(4 * KERNEL_FRAMES)
    kernel = [np.exp(-0.5 * (k / KERNEL_FRAMES) ** 2) for k in range(-reach, reach + 1)]

    def covariance(lag: int) -> float:
        return sum(
            a * b * AR_COEFFICIENT ** abs(lag + i - j)
            for i, a in enumerate(kernel)
            for j, b in enumerate(kernel)
        )

    found = paths.T @ paths / len(paths)
    for lag in (0, 1, 5, 12):
        expected = covariance(lag) / covariance(0)
        assert np.diagonal(found, lag) == pytest.approx(expected, abs=0.035)
    assert np.abs(paths.mean(0)).max() < 0.035


def test_a_frame_is_a_function_of_its_places():
    """So the frames along a reversed path are the reversed frames, bit for bit."""
    scene = ReversibleScene(3, size=48)
    paths = scene.paths(6)
    assert np.array_equal(scene.frames(paths[:, :, ::-1]), scene.frames(paths)[::-1])


def test_frames_are_a_function_of_the_seed_and_move_about_a_pixel():
    frames = [reversible_frames(seed, num_frames=12, size=64) for seed in (1, 1, 2)]
    assert np.array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[0], frames[2])
    steps = np.abs(np.diff(frames[0].astype(float), axis=0)).mean(axis=(1, 2, 3))
    assert (steps > 1).all()


def test_files_hold_the_frames(tmp_path):
    raw = reversible_frames(5, num_frames=10, size=64)
    write_video(tmp_path / "a.mp4", raw, frames_per_second=FRAMES_PER_SECOND)
    with open_video(tmp_path / "a.mp4") as reader:
        decoded = reader.frames_at(range(10)).data.permute(0, 2, 3, 1).numpy()
    assert np.abs(decoded.astype(float) - raw).mean() < 8
