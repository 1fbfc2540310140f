"""Black bars: rows and columns at the rim that are black in every picture and end in one straight line.

A dark scene is spared by three conditions. Bars are black and constant to a few levels, where a dark sensor is noisy;
where a bar ends, most columns become bright at the same row, where the edge of a dark thing is ragged; and what is left
is at least a quarter of the picture, where a lamp in the night is less.
"""

import numpy as np

from videossl.decode.orientation import Orientation

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
