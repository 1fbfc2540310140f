"""Index PNGs with the DAVIS palette: how masks are exchanged."""

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from videossl.whole_file import whole_file

Palette = Literal["davis", "grey"]


def davis_palette() -> NDArray[np.uint8]:
    """The 256 colours of the DAVIS (and PASCAL VOC) palette, (256, 3): bits of the id dealt to R, G, B in turn."""
    ids = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((ids >> (3 * bit + channel)) & 1) << (7 - bit)).astype(
                np.uint8
            )
    return palette


PALETTE = davis_palette()
_PALETTE_BYTES = PALETTE.tobytes()


def write_mask(path: Path, mask: NDArray[np.uint8], *, palette: Palette = "davis") -> None:
    """Writes (H, W) object ids as an index PNG, in the DAVIS colours or as plain grey values, whole or not at all."""
    image = Image.fromarray(np.ascontiguousarray(mask, dtype=np.uint8))
    if palette == "davis":
        image.putpalette(_PALETTE_BYTES)
    with whole_file(path, sync=False) as partial:
        image.save(partial, format="PNG")
