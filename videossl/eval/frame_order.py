"""In which order files that are named after frames come."""

from collections.abc import Iterable
from pathlib import Path


def in_frame_order(paths: Iterable[Path]) -> list[Path]:
    """By name; by number where all names are numbers, so that frame 2 comes before frame 10."""
    found = sorted(paths)
    if all(path.stem.isdecimal() for path in found):
        found.sort(key=lambda path: (int(path.stem), path.stem))
    return found
