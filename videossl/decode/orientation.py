"""How stored pictures are shown: mirrored or not, then turned by a multiple of 90 degrees.

A display matrix (ISO 14496-12, 6.2.2) can state eight such orientations; an angle alone tells only four of them apart.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import av
import numpy as np
from av.sidedata.sidedata import Type

_NUM_MATRIX_BYTES = 36  # nine 32-bit numbers: a, b, u, c, d, v, x, y, w
# Clockwise quarter turns as FFmpeg's filters.
_TURNS: tuple[list[str], ...] = (
    [],
    ["transpose=clock"],
    ["hflip", "vflip"],
    ["transpose=cclock"],
)


@dataclass(frozen=True)
class Orientation:
    """What turns a stored picture into the one shown: a mirror image left to right first, then quarter turns."""

    quarter_turns: int = 0  # clockwise: 0, 1, 2 or 3
    is_mirrored: bool = False

    @property
    def is_on_its_side(self) -> bool:
        """Whether width and height change places."""
        return bool(self.quarter_turns % 2)

    def stored(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) as stored of a picture shown at this size."""
        return (width, height) if self.is_on_its_side else (height, width)

    def upright(self, pictures: np.ndarray, *, rows: int) -> np.ndarray:
        """A view of stored pictures as they are shown; axis `rows` and the one after it are height and width."""
        if self.is_mirrored:
            pictures = np.flip(pictures, rows + 1)
        return np.rot90(pictures, -self.quarter_turns, axes=(rows, rows + 1))

    def filters(self) -> list[str]:
        """FFmpeg's filters that do the same."""
        return ["hflip"] * self.is_mirrored + _TURNS[self.quarter_turns]

    def stored_sides(self, shown: Sequence[int]) -> tuple[int, int, int, int]:
        """What lies at (top, bottom, left, right) of the stored picture, of what lies there as shown."""
        top, bottom, left, right = shown
        for _ in range(
            self.quarter_turns
        ):  # undone one by one: what is shown at the top was at the left
            top, bottom, left, right = right, left, top, bottom
        return (top, bottom, right, left) if self.is_mirrored else (top, bottom, left, right)


def orientation_of(frame: "av.VideoFrame") -> Orientation:
    """The orientation that the display matrix of a decoded frame states; the stored one where there is none.

    Raises ValueError for an angle that is no multiple of 90 degrees.
    """
    matrix = frame.side_data.get(
        Type.DISPLAYMATRIX
    )  # iterating gives keys from PyAV 19 on, and items before
    if matrix is None or matrix.buffer_size < _NUM_MATRIX_BYTES:
        return Orientation()
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix)[:_NUM_MATRIX_BYTES])
    return _of_matrix(a, b, c, d)


def _of_matrix(a: int, b: int, c: int, d: int) -> Orientation:
    """The orientation that x' = a x + c y and y' = b x + d y states, with y downward."""
    is_mirrored = a * d - b * c < 0
    if is_mirrored:  # what is left to do after x -> -x
        a, b = -a, -b
    degrees = math.degrees(math.atan2(b, a)) % 360 if (a, b) != (0, 0) else 0.0
    turns = round(degrees / 90)
    if abs(degrees - 90 * turns) > 0.5:
        cause = f"rotated by {degrees:.0f} degrees"
        raise ValueError(f"{cause}; only multiples of 90 can be shown upright")
    return Orientation(turns % 4, is_mirrored)
