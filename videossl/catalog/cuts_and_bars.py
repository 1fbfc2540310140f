"""Cuts between shots and black bars at the rim, found in small grey pictures of a video."""

from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import ColorRange

from videossl.decode.container import filter_graph, plane_rows
from videossl.decode.index import Orientation

WINDOW = 8  # transitions on each side that a cut is compared with; chosen
BLOCKS, LEVELS = 3, 16  # histograms of LEVELS bins in BLOCKS x BLOCKS parts of the picture
# Tuned on 600 joins of 210 real clips: 97.5 % of the joins found; in the clips themselves 20 of 21 finds are true cuts.
MIN_DIFFERENCE = 10.0  # mean, of 255
MIN_HISTOGRAM = 0.25  # share of the pixels that change their bin
MIN_LASTING = 0.7  # of the difference, between the neighbours of the two pictures
MIN_OVER_MEDIAN = 2.8  # times the differences thereabouts
MIN_OVER_SECOND = 1.5  # times the second largest of them: there may be one other cut
QUIET = 0.5  # added to the differences thereabouts: noise of a still picture

# A transition is judged by the three pictures before it and the three from it on.
BEFORE, AFTER = 3, 2


class CutFinder:
    """Takes all pictures of a video in order, in batches, and keeps three numbers of each."""

    def __init__(self) -> None:
        self._tail: np.ndarray | None = None  # the last pictures, needed by the next transitions
        self._scores: list[np.ndarray] = []  # (n, 3): difference, histogram, lasting

    def add(self, pictures: np.ndarray) -> None:
        """Takes the next (n, h, w) uint8 pictures, n >= 1."""
        if self._tail is None:
            self._tail = np.repeat(pictures[:1], BEFORE, axis=0)
        self._score(np.concatenate([self._tail, pictures]))

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """(n,) float32 mean difference of each picture from the one before, 0 for the first; (cuts,) indices of the
        first picture of each new shot, ascending."""
        if self._tail is None:
            return np.empty(0, np.float32), np.empty(0, np.int64)
        self._score(np.concatenate([self._tail, np.repeat(self._tail[-1:], AFTER, axis=0)]))
        scores = np.concatenate(self._scores)
        return scores[:, 0], find_cuts(scores)

    def _score(self, block: np.ndarray) -> None:
        """Scores the transitions whose neighbours are all in the block, each exactly once."""
        last = len(block) - AFTER
        if last > BEFORE:
            self._scores.append(_scores(block, last))
        self._tail = block[max(last - BEFORE, 0) :]


def find_cuts(scores: np.ndarray) -> np.ndarray:
    """Indices of the rows of (n, 3) scores that are cuts."""
    difference, histogram, lasting = scores.T
    candidates = np.flatnonzero(
        (difference >= MIN_DIFFERENCE)
        & (histogram >= MIN_HISTOGRAM)
        & (lasting >= MIN_LASTING * difference)
    )
    return np.array([t for t in candidates if _stands_out(difference, int(t))], dtype=np.int64)


def _stands_out(difference: np.ndarray, at: int) -> bool:
    # Row 0 is no transition.
    around = np.sort(
        np.concatenate([difference[max(1, at - WINDOW) : at], difference[at + 1 : at + 1 + WINDOW]])
    )
    if len(around) == 0:
        return True
    second = around[-2] if len(around) > 1 else 0.0
    value = difference[at]
    return bool(
        value >= MIN_OVER_MEDIAN * (np.median(around) + QUIET)
        and value >= MIN_OVER_SECOND * (second + QUIET)
    )


def _scores(block: np.ndarray, last: int) -> np.ndarray:
    """(last - BEFORE, 3) float32 scores of the transitions into pictures BEFORE, ..., last - 1.

    The second and the third are 0 where the first alone says that there is no cut, which is nearly everywhere.
    """
    scores = np.zeros((last - BEFORE, 3), np.float32)
    scores[:, 0] = _differences(block[BEFORE:last], block[BEFORE - 1 : last - 1])
    (candidates,) = np.nonzero(scores[:, 0] >= MIN_DIFFERENCE)
    if len(candidates):
        at = candidates + BEFORE
        before, after = _histograms(block[at - 1]), _histograms(block[at])
        scores[candidates, 1] = np.abs(after - before).sum(axis=2).mean(axis=1) / 2
        near = _differences(block[at + 1], block[at - 2])
        scores[candidates, 2] = np.minimum(near, _differences(block[at + 2], block[at - 3]))
    return scores


def _differences(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n,) float64 mean absolute difference of pairs of (n, h, w) uint8 pictures."""
    apart = np.maximum(some, others) - np.minimum(some, others)
    return apart.reshape(len(apart), -1).sum(axis=1, dtype=np.uint32) / apart[0].size


def _histograms(pictures: np.ndarray) -> np.ndarray:
    """(n, BLOCKS^2, LEVELS) float32 shares of the pixels of each part."""
    n, height, width = pictures.shape
    levels = (pictures >> 4).astype(np.int64) + LEVELS * np.arange(n)[:, None, None]
    parts = []
    for rows in np.array_split(np.arange(height), BLOCKS):
        for columns in np.array_split(np.arange(width), BLOCKS):
            if len(rows) and len(columns):
                part = levels[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
                counts = np.bincount(part.ravel(), minlength=n * LEVELS).reshape(n, LEVELS)
                parts.append(counts / (len(rows) * len(columns)))
    return np.stack(parts, axis=1).astype(np.float32)


AS_STORED = Orientation()
BLACK = 12  # the brightest that a bar may be, of 255 (full range); coding leaves 0-4
MAX_SWING = 8  # between its brightest and its darkest, over the video
BLACK_SHARE = 0.99  # of the pixels of a row that must be so: logos and specks are let pass
EDGE_ROWS, EDGE_SHARE = 4, 0.5  # so many of the columns become bright within so many rows
MIN_BAR = 2  # pixels; a single dark row is an encoder's
MIN_LEFT_SHARE = 0.25  # of the picture, without its bars


class BarFinder:
    """Takes whole pictures of a video and keeps the brightest and the darkest of each pixel."""

    def __init__(self) -> None:
        self._brightest: np.ndarray | None = None
        self._darkest: np.ndarray | None = None
        # Whether no further picture can make a bar: once something lit the outermost rows and columns, they stay lit.
        self.has_none = False

    def add(self, picture: np.ndarray) -> None:
        """Takes one (H, W) uint8 picture of full range; all of one size."""
        if self._brightest is None or self._darkest is None:
            self._brightest, self._darkest = picture.copy(), picture.copy()
        else:
            np.maximum(self._brightest, picture, out=self._brightest)
            np.minimum(self._darkest, picture, out=self._darkest)
        rim = (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1])
        lit = [_is_lit(self._brightest[side], self._darkest[side]).mean() for side in rim]
        self.has_none = min(lit) > 1 - BLACK_SHARE

    def find(self, orientation: Orientation = AS_STORED) -> tuple[int, int, int, int]:
        """Rows and columns at (top, bottom, left, right) of the pictures made upright."""
        if self._brightest is None or self._darkest is None:
            return (0, 0, 0, 0)
        brightest = orientation.upright(self._brightest, rows=0)
        darkest = orientation.upright(self._darkest, rows=0)
        return find_bars(brightest, darkest)


def find_bars(brightest: np.ndarray, darkest: np.ndarray) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) pixels of bars, from the (H, W) extremes of each pixel over time."""
    is_lit = _is_lit(brightest, darkest)
    height, width = is_lit.shape
    top, bottom = _dark_runs(is_lit)
    if top == height:  # nothing but black
        return (0, 0, 0, 0)
    # A column crosses the bars above and below, which are dark: judge it between them.
    left, right = _dark_runs(is_lit[top : height - bottom].T)
    inside = is_lit[top : height - bottom, left : width - right]
    if inside.size < MIN_LEFT_SHARE * is_lit.size:
        return (0, 0, 0, 0)
    edges = (inside, inside[::-1], inside.T, inside.T[::-1])
    bars = (top, bottom, left, right)
    kept = [
        bar if bar >= MIN_BAR and _is_straight(edge) else 0
        for bar, edge in zip(bars, edges, strict=True)
    ]
    return kept[0], kept[1], kept[2], kept[3]


def _is_lit(brightest: np.ndarray, darkest: np.ndarray) -> np.ndarray:
    """Which pixels are too bright for a bar, or change too much."""
    return (brightest > BLACK) | (brightest - darkest > MAX_SWING)


def _dark_runs(is_lit: np.ndarray) -> tuple[int, int]:
    """Rows without light at the top and at the bottom of (H, W); (H, 0) where there is none at all."""
    lit_rows = np.flatnonzero(is_lit.mean(axis=1) > 1 - BLACK_SHARE)
    if len(lit_rows) == 0:
        return is_lit.shape[0], 0
    return int(lit_rows[0]), int(is_lit.shape[0] - 1 - lit_rows[-1])


def _is_straight(inside: np.ndarray) -> bool:
    """Whether most columns are lit in one of the first rows of (H, W)."""
    return bool(inside[:EDGE_ROWS].any(axis=0).mean() >= EDGE_SHARE)


STUDIO_BLACK = np.uint8(16)  # of a luma of limited range


class FilterChain:
    """Runs frames of one size through filters like "scale=64:48", on one thread."""

    def __init__(self, first: "av.VideoFrame", time_base: Fraction, filters: Sequence[str]) -> None:
        self.size = (first.width, first.height)
        # Untold, swscale takes the output for another matrix than the input, and shifts colours by up to 4 of 255.
        source = (
            "video_size={}x{}:".format(*self.size)
            + f"pix_fmt={first.format.name}:time_base={time_base}:"
            f"colorspace={int(first.colorspace)}:range={int(first.color_range)}"
        )
        self._graph = filter_graph(source, filters)

    def __call__(self, frame: "av.VideoFrame") -> "av.VideoFrame":
        """The filtered frame. Raises ValueError for a frame of another size than the first."""
        if (frame.width, frame.height) != self.size:
            sizes = "{}x{} to {}x{}".format(*self.size, frame.width, frame.height)
            raise ValueError(f"the frame size changes from {sizes} inside the file")
        self._graph.push(frame)
        return self._graph.pull()


def luma_of(frame: "av.VideoFrame") -> np.ndarray:
    """(H, W) uint8 view of the first plane of an 8-bit frame."""
    return plane_rows(frame.planes[0])[: frame.height, : frame.width]


def full_luma_of(frame: "av.VideoFrame") -> np.ndarray:
    """(H, W) uint8 luma of any frame, with black at 0."""
    layout = frame.format
    if layout.is_rgb or not layout.is_planar or layout.components[0].bits != 8:
        return luma_of(frame.reformat(format="gray"))
    luma = luma_of(frame)  # 15 times quicker than converting it
    is_full = frame.color_range == ColorRange.JPEG or layout.name.startswith("yuvj")
    return luma if is_full else np.maximum(luma, STUDIO_BLACK) - STUDIO_BLACK
