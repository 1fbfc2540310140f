"""Which files of a folder are frames, and in which order files that are named after frames come."""

import itertools
import re
from collections.abc import Iterable
from pathlib import Path

from videossl.errors import UserError
from videossl.picture_files import is_picture


def in_frame_order(paths: Iterable[Path]) -> list[Path]:
    """By the numbers in the names, so that frame_2 comes before frame_10, whatever they begin at; else by name."""
    return sorted(paths, key=_frame_key)


def pictures_of(folder: Path) -> list[Path]:
    """The pictures of a folder in the order of their frames; none where there is no such folder.

    Raises UserError for two pictures of one frame, say 00000.jpg and 00000.png.
    """
    found = in_frame_order(filter(is_picture, folder.glob("*")))
    for one, other in itertools.pairwise(found):
        if one.stem == other.stem:
            raise UserError(
                f"{folder} holds both {one.name} and {other.name}: which is the frame? keep one of them"
            )
    return found


def _frame_key(path: Path) -> tuple[list[tuple[str, int]], str]:
    """Texts and numbers of the name in turn, then the name itself: 007 and 7 are two names."""
    parts = re.findall(r"([^0-9]*)([0-9]*)", path.stem)
    return [(text, int(number or -1)) for text, number in parts], path.name
