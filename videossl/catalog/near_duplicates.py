"""A 64-bit perceptual hash of a video, and the groups of videos whose hashes are close.

40 bits are the signs of the lowest spatial frequencies (DCT) of the mean picture, 24 of those of how the four quarters
of the video differ. Signs survive another brightness, contrast, size and bit rate; a difference below CHANGE, which is
coding noise, counts as none. Measured on 195 real clips against copies of 0.33-0.75 times the size at CRF 30-38:
distance 1 (median), 4 (95 %), at most 6; among 18,915 pairs of different clips 12 are that close, all of them the same
scene before the same still camera.
"""

import base64
import functools
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from videossl.catalog.cuts_and_bars import find_bars
from videossl.errors import UserError

NEAR_BITS = 6  # hashes this far apart or less are near-duplicates
QUARTERS = 4
FREQUENCIES = 8
MEAN_BITS, CHANGE_BITS = 40, 8  # 40 + 3 * 8 = 64
CHANGE = 0.5  # of 255
MIN_CONTRAST = 1.0  # of 255, root mean square: below, all there is to hash is noise
BAND_BITS, NUM_BANDS = 16, 4

_DIAGONALS = sorted(
    itertools.product(range(FREQUENCIES), range(FREQUENCIES)), key=lambda p: (sum(p), p)
)


def spectra(pictures: np.ndarray, size: int = FREQUENCIES) -> np.ndarray:
    """(n, size, size) float32 lowest DCT coefficients of (n, h, w) pictures; of 1 where a picture is 1 everywhere."""
    rows, columns = _cosines(pictures.shape[1], size), _cosines(pictures.shape[2], size)
    return rows @ pictures.astype(np.float32) @ columns.T


def video_hash(quarters: np.ndarray) -> int | None:
    """The hash of the (4, 8, 8) mean spectra of a video's quarters; None for a video that is nearly uniform."""
    mean = quarters.mean(axis=0)
    spatial = np.array([mean[p] for p in _DIAGONALS[1:]])
    if np.sqrt((spatial**2).sum()) < MIN_CONTRAST:
        return None
    first, second, third, fourth = quarters
    changes = ((first + second - third - fourth) / 2, first - second, third - fourth)
    bits = [spatial[:MEAN_BITS] > 0]
    for change in changes:
        bits.append(np.array([change[p] for p in _DIAGONALS[:CHANGE_BITS]]) > CHANGE)
    # Dealt out in turn, or the videos in which nothing changes would all agree in one band of `near_pairs`.
    dealt = np.concatenate(bits).reshape(BAND_BITS, NUM_BANDS).T.ravel()
    return int(np.packbits(dealt).view(">u8")[0])


def near_groups(hashes: np.ndarray) -> np.ndarray:
    """(n,) int64: of each of the (n,) uint64 hashes, the first index of those it is linked to by near pairs."""
    values, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    parent = np.arange(len(values))
    for one, other in near_pairs(values):
        _join(parent, one, other)
    roots = np.array([_root(parent, i) for i in range(len(values))], dtype=np.int64)
    smallest = np.full(len(values), len(hashes), dtype=np.int64)
    np.minimum.at(smallest, roots, first)
    return smallest[roots][inverse.ravel()]


def near_pairs(values: np.ndarray) -> "list[tuple[int, int]]":
    """All pairs of indices of the distinct (n,) uint64 values that are at most NEAR_BITS apart; some come twice.

    Two hashes 7 bits apart or less differ in at most one bit of one of their four bands, so only those that do are
    compared: about n * 68 * n / 65536 comparisons in place of n * n / 2.
    """
    pairs: list[tuple[int, int]] = []
    for band in range(NUM_BANDS if len(values) else 0):
        keys = ((values >> np.uint64(BAND_BITS * band)) & np.uint64(0xFFFF)).astype(np.int64)
        order = np.argsort(keys, kind="stable")
        present, starts = np.unique(keys[order], return_index=True)
        members = dict(zip(present.tolist(), np.split(order, starts[1:]), strict=True))
        for key, ours in members.items():
            # One bit more, never one less: each pair of buckets once.
            flips = (key | 1 << bit for bit in range(BAND_BITS) if not key >> bit & 1)
            nearby = [ours, *(members[flip] for flip in flips if flip in members)]
            others = np.concatenate(nearby)
            if len(others) > 1:
                pairs += _pairs_between(values, ours, others)
    return pairs


def distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Number of bits in which uint64 hashes differ, broadcast."""
    different = np.ascontiguousarray(one ^ other)
    return _ONES[different.view(np.uint16).reshape(*different.shape, 4)].sum(axis=-1)


_ONES = np.array([bin(value).count("1") for value in range(1 << 16)], dtype=np.uint8)


def _pairs_between(
    values: np.ndarray, ours: np.ndarray, others: np.ndarray
) -> list[tuple[int, int]]:
    found = []
    for one in ours.tolist():  # row by row: a bucket can be large
        near = others[distances(values[one], values[others]) <= NEAR_BITS]
        found += [(one, other) for other in near.tolist() if other != one]
    return found


def _root(parent: np.ndarray, index: int) -> int:
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = int(parent[index])
    return index


def _join(parent: np.ndarray, one: int, other: int) -> None:
    roots = sorted((_root(parent, one), _root(parent, other)))
    parent[roots[1]] = roots[0]


@functools.lru_cache(maxsize=256)
def _cosines(size: int, num: int) -> np.ndarray:
    """(num, size) float32 orthogonal cosines of mean square 1 / size^2."""
    positions = (np.arange(size) + 0.5) / size
    scale = np.array([1.0, *[np.sqrt(2)] * (num - 1)])[:, None] / size
    return (scale * np.cos(np.pi * np.outer(np.arange(num), positions))).astype(np.float32)


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


FORMAT = 2  # to be raised with whatever changes the signature of a file
_HEADER = json.dumps({"videossl_signatures": FORMAT}).encode() + b"\n"


@dataclass(frozen=True)
class FileKey:
    """A file or folder, and what must not have changed for its signatures to be true."""

    path: str
    bytes: int
    modified: int  # nanoseconds since 1970; 0 where unknown
    with_crops: bool = False  # footage has the signatures of its crops too


class SignatureFile:
    """Signatures by file, appended; a hidden file beside the manifest at `manifest`.

    They stay on disk; a million keys take a few hundred MB here. Raises UserError if it cannot be written.
    """

    def __init__(self, manifest: str | Path, *, fresh: bool = False) -> None:
        """`fresh` forgets all earlier ones."""
        manifest = Path(manifest)
        self.path = manifest.with_name(f".{manifest.name}.signatures")
        self._at: dict[FileKey, int] = {}
        try:
            manifest.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("w+b" if fresh else "a+b")
            self._load()
        except OSError as error:
            raise self._unwritable(error) from None

    def __contains__(self, key: FileKey) -> bool:
        return key in self._at

    def __getitem__(self, key: FileKey) -> FrameSignatures:
        self._file.seek(self._at[key])
        row = json.loads(self._file.readline())
        seconds = np.frombuffer(base64.b64decode(row["seconds"]), np.dtype("<f8"))
        values = np.frombuffer(base64.b64decode(row["values"]), np.int8).reshape(-1, NUM_VALUES)
        return FrameSignatures(row["num_frames"], seconds, values)

    def append(self, key: FileKey, frames: FrameSignatures) -> None:
        """Adds those of one file and hands them to the system. Raises UserError where the disk is full."""
        row = {
            "path": key.path,
            "bytes": key.bytes,
            "modified": key.modified,
            "with_crops": key.with_crops,
            "num_frames": frames.num_frames,
            "seconds": base64.b64encode(frames.seconds.astype("<f8").tobytes()).decode(),
            "values": base64.b64encode(frames.values.tobytes()).decode(),
        }
        try:
            self._file.seek(0, os.SEEK_END)
            at = self._file.tell()
            self._file.write(json.dumps(row).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise self._unwritable(error) from None
        self._at[key] = at

    def close(self) -> None:
        """Keeps them for the next scan."""
        self._file.close()

    def _load(self) -> None:
        self._file.seek(0)
        if self._file.readline() != _HEADER:  # new, or of another version
            self._file.truncate(0)
            self._file.write(_HEADER)
            self._file.flush()
            return
        at = len(_HEADER)
        for line in iter(self._file.readline, b""):
            if not line.endswith(b"\n"):
                break  # torn when the last scan was cut off
            row = json.loads(line)
            key = FileKey(row["path"], row["bytes"], row["modified"], row["with_crops"])
            self._at[key] = at
            at += len(line)
        self._file.truncate(at)

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"cannot write {self.path}: {error.strerror or error}")
