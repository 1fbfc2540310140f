"""Videos whose law is the same forward and backward, exactly: whoever tells the direction on them looks at something else.

A textured background and four textured discs move on stationary Gaussian paths: AR(1) smoothed by a symmetric kernel, of
which only the part that the kernel covers whole is kept. Such a path and its reversal have one law, and a frame is a
function of the places in it alone. Nothing is reflected at a border: reflected path ends gave heads of files away (85.7 %).
"""

import itertools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from videossl.rng import fold
from videossl.video_writer import write_video

NUM_DISCS = 4
FRAMES_PER_SECOND = 24
# Chosen: discs cross a quarter of the picture within two seconds, and frames differ by about a pixel of motion.
AR_COEFFICIENT = 0.95  # per frame
KERNEL_FRAMES = 3.0  # standard deviation of the smoothing
BACKGROUND_SPREAD, DISC_SPREAD = 0.06, 0.16  # standard deviation of a place, of the picture's side

Frames = NDArray[np.uint8]  # (T, H, W, 3)


def stationary_paths(random: np.random.Generator, num_paths: int, num_frames: int) -> np.ndarray:
    """(num_paths, num_frames) float64 Gaussian paths of mean 0 and variance 1, time-reversible and independent."""
    reach = round(4 * KERNEL_FRAMES)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / KERNEL_FRAMES) ** 2)
    noise = random.standard_normal((num_paths, num_frames + 2 * reach))
    walk = (
        noise.copy()
    )  # the first value is drawn from the stationary law, so there is nothing to warm up
    for t in range(1, walk.shape[1]):
        walk[:, t] = AR_COEFFICIENT * walk[:, t - 1] + np.sqrt(1 - AR_COEFFICIENT**2) * noise[:, t]
    lags = np.abs(np.subtract.outer(np.arange(len(kernel)), np.arange(len(kernel))))
    variance = kernel @ AR_COEFFICIENT**lags @ kernel
    return np.stack([np.convolve(path, kernel, mode="valid") for path in walk]) / np.sqrt(variance)


class ReversibleScene:
    """One video of the control set. `frames(paths)` draws it along any paths, reversed ones too."""

    def __init__(self, seed: int, *, size: int = 112) -> None:
        random = np.random.default_rng(fold(seed, "reversible"))
        self.size = size
        self._random = random
        self._background = _texture(random, size)
        self._textures = [_texture(random, size) for _ in range(NUM_DISCS)]
        self._radii = random.uniform(0.08, 0.2, NUM_DISCS) * size
        self._centres = random.uniform(0.2, 0.8, (NUM_DISCS, 2)) * size

    def paths(self, num_frames: int) -> np.ndarray:
        """(NUM_DISCS + 1, 2, num_frames) places in pixels, the background's first; each call draws anew."""
        paths = stationary_paths(self._random, 2 * (NUM_DISCS + 1), num_frames)
        spread = np.array([BACKGROUND_SPREAD, *[DISC_SPREAD] * NUM_DISCS]) * self.size
        return paths.reshape(NUM_DISCS + 1, 2, num_frames) * spread[:, None, None]

    def frames(self, paths: np.ndarray) -> Frames:
        """(T, size, size, 3) uint8: each frame drawn from its own places alone."""
        return np.stack([self._frame(paths[:, :, t]) for t in range(paths.shape[2])])

    def _frame(self, places: np.ndarray) -> NDArray[np.uint8]:
        image = _moved(self._background, places[0])
        rows, columns = np.mgrid[: self.size, : self.size]
        for disc, texture in enumerate(self._textures):
            y, x = self._centres[disc] + places[disc + 1]
            distance = np.hypot(rows - y, columns - x)
            cover = (self._radii[disc] - distance + 0.5).clip(0, 1)[..., None]
            image = image + cover * (_moved(texture, places[disc + 1]) - image)
        return image.round().clip(0, 255).astype(np.uint8)


def _moved(texture: np.ndarray, place: np.ndarray) -> np.ndarray:
    """The periodic texture (S, S, 3) moved by `place` (row, column), bilinear."""
    whole = np.floor(place).astype(int)
    part = place - whole
    moved = np.zeros_like(texture)
    for down, right in itertools.product((0, 1), (0, 1)):
        weight = (part[0] if down else 1 - part[0]) * (part[1] if right else 1 - part[1])
        shift = (int(whole[0]) + down, int(whole[1]) + right)
        moved += weight * np.roll(texture, shift, axis=(0, 1))
    return moved


def _texture(random: np.random.Generator, size: int) -> np.ndarray:
    """(size, size, 3) float64: a base colour with periodic noise, mostly grey, whose amplitude falls with frequency."""
    frequencies = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size), indexing="ij"))
    shape = 1 / (frequencies * size + 2) ** 1.2
    spectrum = np.fft.fft2(random.standard_normal((size, size, 4)), axes=(0, 1)) * shape[..., None]
    noise = np.fft.ifft2(spectrum, axes=(0, 1)).real
    noise /= noise.std(axis=(0, 1))
    return random.uniform(70, 185, 3) + 28 * noise[..., :1] + 10 * noise[..., 1:]


def reversible_frames(seed: int, *, num_frames: int = 48, size: int = 112) -> Frames:
    """The raw frames of the video of that seed."""
    scene = ReversibleScene(seed, size=size)
    return scene.frames(scene.paths(num_frames))


def render_reversible(path: Path, *, seed: int, num_frames: int = 48, size: int = 112) -> None:
    """Writes those frames by the encoder that writes all our videos."""
    frames = reversible_frames(seed, num_frames=num_frames, size=size)
    write_video(path, frames, frames_per_second=FRAMES_PER_SECOND)
