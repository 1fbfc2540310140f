"""A 64-bit perceptual hash of a video, and the groups of videos whose hashes are close.

40 bits are the signs of the lowest spatial frequencies (DCT) of the mean picture, 24 of those of how the four quarters
of the video differ. Signs survive another brightness, contrast, size and bit rate; a difference below CHANGE, which is
coding noise, counts as none. Measured on 195 real clips against copies of 0.33-0.75 times the size at CRF 30-38:
distance 1 (median), 4 (95 %), at most 6; among 18,915 pairs of different clips 12 are that close, all of them the same
scene before the same still camera.
"""

import functools
import itertools

import numpy as np

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
