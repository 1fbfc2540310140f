"""What a frame is recognized by: 64 numbers that outlast another size, shape, bit rate, brightness and frame rate.

They are the lowest spatial frequencies (DCT) of its luma, each times its frequency, as signed square roots, so that no
single edge decides; scaled to length 1. The distance of two frames is 1 minus the product of their numbers.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from videossl.data.bars import find_bars
from videossl.data.phash import MIN_CONTRAST, spectra

NUM_VALUES = 64
# The frequencies that share its sizes, in effect: a plain gradient has few and is like every other one. Of 8,500 frames of
# 578 real videos none has below 15.
MIN_DETAIL = 8.0
CROPS = (1.0, 0.9, 0.81, 0.73, 0.66, 0.6)  # of the sides; one between two is near to both
SHAPES = (4 / 3, 1.0)  # long side to short side
THIN_DISTANCE = 0.005  # a frame nearer to the one kept before it tells nothing new; 1/40 of what is called the same
FRAMES_PER_SECOND = 4.0  # of a video; chosen: of an excerpt of 0.75 s three frames are looked at
SCALE = 127.0

_PLACES = sorted(itertools.product(range(NUM_VALUES), repeat=2), key=lambda p: (sum(p), p))
_ROWS, _COLUMNS = np.array(_PLACES[1 : NUM_VALUES + 1]).T
_SIZE = int(max(_ROWS.max(), _COLUMNS.max())) + 1
_FREQUENCIES = np.hypot(_ROWS, _COLUMNS).astype(np.float32)
_MIRROR = np.where(_COLUMNS % 2, -1, 1).astype(np.float32)


@dataclass(frozen=True, eq=False)
class FrameSignatures:
    """The signatures of the frames of a video or of a folder of pictures; a frame may have several."""

    num_frames: int  # looked at, those that cannot be told apart left out
    seconds: np.ndarray  # (n,) float64, in order; of pictures, their numbers
    values: np.ndarray  # (n, 64) int8

    def unit(self) -> np.ndarray:
        """(n, 64) float32 of length 1."""
        values = self.values.astype(np.float32)
        return values / np.linalg.norm(values, axis=1, keepdims=True)


def signatures(pictures: np.ndarray) -> np.ndarray:
    """(n, 64) int8 of (n, h, w) uint8 luma; zeros for a picture that is uniform or a mere gradient."""
    lowest = spectra(pictures, _SIZE)[:, _ROWS, _COLUMNS]
    contrast = np.sqrt((lowest**2).sum(axis=1))
    sizes = np.abs(lowest * _FREQUENCIES)
    total = sizes.sum(axis=1)
    # How many numbers share the sum: 64 if all are alike, 1 if one is alone.
    detail = total**2 / np.maximum((sizes**2).sum(axis=1), 1e-9)
    is_told = (contrast >= MIN_CONTRAST) & (detail >= MIN_DETAIL)
    roots = np.sign(lowest) * np.sqrt(sizes / np.maximum(total, 1e-9)[:, None])
    return (roots * SCALE * is_told[:, None]).round().astype(np.int8)


def mirrored(unit: np.ndarray) -> np.ndarray:
    """The signatures of the pictures mirrored left to right."""
    return unit * _MIRROR


def without_bars(picture: np.ndarray) -> np.ndarray:
    """The (h, w) picture, without the black bars around it where it has some."""
    top, bottom, left, right = find_bars(picture, picture)
    height, width = picture.shape
    return picture[top : height - bottom, left : width - right]


def views(picture: np.ndarray) -> list[np.ndarray]:
    """What a copy of the picture may show: all of it, and all without its bars."""
    inside = without_bars(picture)
    return [picture] if inside.shape == picture.shape else [picture, inside]


def centre_crops(picture: np.ndarray) -> Iterator[np.ndarray]:
    """The (h, w) picture cut around its centre: to CROPS of its sides, in its own shape and in SHAPES."""
    height, width = picture.shape
    long_side, short_side = max(height, width), min(height, width)
    own = long_side / short_side
    for shape in (own, *(shape for shape in SHAPES if shape < own)):
        for share in CROPS:
            long_part, short_part = round(shape * short_side * share), round(short_side * share)
            rows, columns = (short_part, long_part) if width >= height else (long_part, short_part)
            top, left = (height - rows) // 2, (width - columns) // 2
            yield picture[top : top + rows, left : left + columns]


class SignatureList:
    """Gathers the signatures of frames, one after the other."""

    def __init__(self, *, frames_per_second: float | None, with_crops: bool = False) -> None:
        """`frames_per_second` are wanted, None: all; `with_crops`: of their centre crops too, and of no frame that hardly
        differs from the one before."""
        self._rate, self._with_crops = frames_per_second, with_crops
        self._seconds: list[float] = []
        self._rows: list[np.ndarray] = []
        self._num_frames = 0
        self._begin: float | None = None
        self._slot = -1
        self._kept: np.ndarray | None = None  # the signature of the last frame taken

    def wants(self, seconds: float) -> bool:
        """Whether the next frame, at this time, is one to add: asked once for each."""
        if self._rate is None:
            return True
        self._begin = seconds if self._begin is None else self._begin
        slot = int((seconds - self._begin) * self._rate + 1e-6)
        is_new = slot > self._slot
        self._slot = max(slot, self._slot)
        return is_new

    def add(self, seconds: float, picture: np.ndarray) -> None:
        """Takes an (h, w) uint8 picture, upright."""
        first, *others = views(picture)
        whole = signatures(first[None])[0]
        if not whole.any():
            return
        self._num_frames += 1
        if not self._with_crops:
            rows = [whole, *(signatures(other[None])[0] for other in others)]
        elif self._is_like_the_last(whole):
            return
        else:
            inside = others[0] if others else first
            rows = [signatures(crop[None])[0] for crop in centre_crops(inside)]
            rows += [whole] if others else []
        rows = [row for row in rows if row.any()]
        self._rows += rows
        self._seconds += [seconds] * len(rows)

    def result(self) -> FrameSignatures:
        """All of them."""
        values = np.stack(self._rows) if self._rows else np.empty((0, NUM_VALUES), np.int8)
        return FrameSignatures(self._num_frames, np.array(self._seconds, np.float64), values)

    def _is_like_the_last(self, whole: np.ndarray) -> bool:
        unit = whole / np.linalg.norm(whole.astype(np.float32))
        if self._kept is not None and 1 - float(unit @ self._kept) < THIN_DISTANCE:
            return True
        self._kept = unit
        return False
