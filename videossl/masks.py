"""Index PNGs with the DAVIS palette: how masks are exchanged."""

from pathlib import Path

import numpy as np
from PIL import Image


def davis_palette() -> np.ndarray:
    """(256, 3) uint8: the colour of each id (bit k of an id sets a high bit of channel k mod 3, as in PASCAL VOC)."""
    palette = np.zeros((256, 3), np.uint8)
    ids = np.arange(256)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((ids >> channel) & 1) << (7 - bit)).astype(np.uint8)
        ids = ids >> 3
    return palette


def write_mask(path: Path, ids: np.ndarray) -> None:
    """Writes (H, W) uint8 object ids as a palette PNG, under a temporary name first."""
    image = Image.fromarray(ids.astype(np.uint8))
    image.putpalette(davis_palette().ravel().tolist())
    temporary = path.with_suffix(".partial.png")
    image.save(temporary)
    temporary.replace(path)
