"""The embedded default: real mp4 files and a DAVIS-layout tree, rendered from a seed, so that nothing must be downloaded.

Textured objects obey physics that look wrong backward (falling and bouncing lower each time, sliding to a halt, growing,
leaving fading trails) before a textured background that pans to and fro, which looks the same both ways. Masks are exact:
they come from the renderer, nearer objects hide farther ones.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from videossl.io.index_masks import write_mask
from videossl.io.pictures import write_video
from videossl.rng import fold

KINDS = ("fall", "slide", "grow", "trail")
TRAIL_FADE = 0.85  # of a trail's strength per frame; chosen
GRAVITY = 2.4  # frame heights per second squared; chosen so that a fall takes about a second


@dataclass
class _Body:
    """One object: its outline, texture and state; positions in pixels, angles in radians."""

    kind: str
    y: float
    x: float
    radius: float
    lobes: int
    lobe_depth: float
    texture: np.ndarray  # (S, S, 3) float in [0, 255]
    vy: float = 0.0
    vx: float = 0.0
    angle: float = 0.0
    spin: float = 0.0
    final_radius: float = 0.0
    bounce: float = 0.7
    friction: float = 1.2  # per second

    def advance(self, seconds: float, height: int, width: int) -> None:
        """Moves the body by one frame; walls reflect it, the floor takes energy from it."""
        if self.kind == "fall":
            self.vy += GRAVITY * height * seconds
        elif self.kind == "slide":
            decay = np.exp(-self.friction * seconds)
            self.vx, self.vy, self.spin = self.vx * decay, self.vy * decay, self.spin * decay
        elif self.kind == "grow":
            self.radius += (self.final_radius - self.radius) * (1 - np.exp(-0.8 * seconds))
        self.y, self.x = self.y + self.vy * seconds, self.x + self.vx * seconds
        self.angle += self.spin * seconds
        if self.y > height - self.radius and self.vy > 0:
            self.y, self.vy = height - self.radius, -self.bounce * self.vy
            self.vx, self.spin = 0.9 * self.vx, 0.8 * self.spin
        if self.y < self.radius and self.vy < 0:
            self.vy = -self.vy
        if (self.x < self.radius and self.vx < 0) or (self.x > width - self.radius and self.vx > 0):
            self.vx = -self.vx

    def cover(self, height: int, width: int) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
        """The box it may touch, which pixels of the box it covers, and its colours there."""
        reach = self.radius * (1 + self.lobe_depth) + 1
        top, bottom = max(int(self.y - reach), 0), min(int(self.y + reach) + 2, height)
        left, right = max(int(self.x - reach), 0), min(int(self.x + reach) + 2, width)
        dy, dx = np.mgrid[top : max(bottom, top), left : max(right, left)]
        dy, dx = dy - self.y, dx - self.x
        theta = np.arctan2(dy, dx) - self.angle
        inside = np.hypot(dy, dx) <= self.radius * (
            1 + self.lobe_depth * np.cos(self.lobes * theta)
        )
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        size = len(self.texture)
        scale = size / (2.6 * self.radius)  # the texture grows with the body
        v = ((-sin * dx + cos * dy) * scale + size / 2).astype(int) % size
        u = ((cos * dx + sin * dy) * scale + size / 2).astype(int) % size
        return (slice(top, bottom), slice(left, right)), inside, self.texture[v, u]


@dataclass
class Scene:
    """A seeded scene of `num_objects` bodies; iterate `frames()` for images and exact masks.

    Every body is in view in the first frame. Sizes are pixels, `fps` frames per second.
    """

    seed: int
    height: int = 144
    width: int = 192
    fps: int = 24
    num_objects: int = 2
    _bodies: list[_Body] = field(init=False)

    def __post_init__(self) -> None:
        random = np.random.default_rng(fold(self.seed, "scene"))
        self._background = _texture(random, max(self.height, self.width) * 2, contrast=45)
        self._sway = (
            random.uniform(0.05, 0.25, 2) * self.height,
            random.uniform(0.15, 0.4, 2),
            random.uniform(0, 6.3, 2),
        )
        self._bodies = [self._body(random) for _ in range(self.num_objects)]

    def _body(self, random: np.random.Generator) -> _Body:
        kind = str(random.choice(KINDS))
        radius = random.uniform(0.10, 0.18) * self.height
        speed = random.uniform(0.5, 1.1) * self.height
        direction = random.uniform(0, 2 * np.pi)
        vy, vx = (
            (0.0, 0.6 * speed * np.cos(direction))
            if kind == "fall"
            else speed * np.array([0.4 * np.sin(direction), np.cos(direction)])
        )
        grows = kind == "grow"
        return _Body(
            kind=kind,
            y=random.uniform(0.2, 0.45 if kind == "fall" else 0.75) * self.height,
            x=random.uniform(0.15, 0.85) * self.width,
            radius=0.6 * radius if grows else radius,
            lobes=int(random.integers(2, 6)),
            lobe_depth=random.uniform(0.05, 0.3),
            texture=_texture(random, 96, contrast=70),
            vy=0.2 * vy if grows else float(vy),
            vx=0.2 * vx if grows else float(vx),
            spin=random.uniform(-3, 3),
            final_radius=random.uniform(1.2, 1.8) * radius,
            bounce=random.uniform(0.55, 0.8),
        )

    def frames(self, num_frames: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields (H, W, 3) uint8 images and (H, W) uint8 object ids, 0 the background and 1 the farthest body."""
        trail = np.zeros((self.height, self.width, 4), np.float32)  # colour and strength
        for t in range(num_frames):
            image = self._background_at(t / self.fps)
            trail[..., 3] *= TRAIL_FADE
            image = image + trail[..., 3:] * (trail[..., :3] - image)
            ids = np.zeros((self.height, self.width), np.uint8)
            for index, body in enumerate(self._bodies, start=1):
                box, inside, colours = body.cover(self.height, self.width)
                image[box][inside] = colours[inside]
                ids[box][inside] = index
                if body.kind == "trail":
                    trail[box][inside] = np.concatenate(
                        [colours, np.full((*inside.shape, 1), 0.8)], -1
                    )[inside]
                body.advance(1 / self.fps, self.height, self.width)
            yield image.clip(0, 255).astype(np.uint8), ids

    def _background_at(self, seconds: float) -> np.ndarray:
        amplitude, frequency, phase = self._sway
        offset = amplitude * (1 + np.sin(2 * np.pi * frequency * seconds + phase))
        top, left = int(offset[0]), int(offset[1])
        return self._background[top : top + self.height, left : left + self.width].astype(
            np.float32
        )


def _texture(random: np.random.Generator, size: int, *, contrast: float) -> np.ndarray:
    """(size, size, 3) float32: a base colour with smooth coloured noise of four octaves."""
    base = random.uniform(60, 195, 3)
    texture = np.zeros((size, size, 3), np.float32)
    for octave in range(4):
        cells = max(2, size // (6 * 2**octave))
        grid = random.normal(0, 1, (cells, cells, 3)).astype(np.float32)
        layers = [
            np.asarray(Image.fromarray(grid[..., c]).resize((size, size), Image.Resampling.BICUBIC))
            for c in range(3)
        ]
        texture += np.stack(layers, -1) * 0.6 ** (3 - octave)
    return (base + contrast * texture).clip(0, 255).astype(np.float32)


def render_video(
    path: Path, *, seed: int, seconds: float = 4.0, height: int = 144, width: int = 192
) -> None:
    """Writes one scene of two bodies as an mp4."""
    scene = Scene(seed, height=height, width=width)
    images = (image for image, _ in scene.frames(round(seconds * scene.fps)))
    write_video(path, images, frames_per_second=scene.fps)


def render_davis(
    root: Path,
    *,
    seed: int,
    num_sequences: int = 3,
    num_frames: int = 24,
    height: int = 240,
    width: int = 428,
) -> list[str]:
    """Writes a DAVIS-2017 tree of scenes of 1 to 3 bodies (`val` lists them all); returns the sequence names."""
    names = [f"synthetic-{index:02d}" for index in range(num_sequences)]
    for index, name in enumerate(names):
        images, masks = root / "JPEGImages/480p" / name, root / "Annotations/480p" / name
        images.mkdir(parents=True, exist_ok=True)
        masks.mkdir(parents=True, exist_ok=True)
        scene = Scene(
            fold(seed, "davis", index), height=height, width=width, num_objects=1 + index % 3
        )
        for t, (image, ids) in enumerate(scene.frames(num_frames)):
            Image.fromarray(image).save(images / f"{t:05d}.jpg", quality=95)
            write_mask(masks / f"{t:05d}.png", ids)
    lists = root / "ImageSets/2017"
    lists.mkdir(parents=True, exist_ok=True)
    (lists / "val.txt").write_text("".join(f"{name}\n" for name in names))
    return names


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
        self._background = _periodic_texture(random, size)
        self._textures = [_periodic_texture(random, size) for _ in range(NUM_DISCS)]
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


def _periodic_texture(random: np.random.Generator, size: int) -> np.ndarray:
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
