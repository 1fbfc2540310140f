"""Masks painted in colours: RGB or RGBA pixels in, object ids out, with what each colour was taken for."""

import numpy as np
from numpy.typing import NDArray

from videossl.masks import PALETTE

MAX_COLOURS = 32  # of a mask that somebody painted; chosen: anti-aliased edges have hundreds
_BLACK = 0
_VOID_ID = 255


def ids_of_colours(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], dict[str, int]]:
    """Object ids (H, W) of pixels (H, W, 3) or (H, W, 4), and the id of each colour, `{"#800000": 1}`.

    If all colours are of the DAVIS palette they have the ids that they have there. Else each colour but black is an id: 1
    for the one met first, row by row, 2 for the next. Black, fully transparent pixels and the void colour of DAVIS
    (224, 224, 192) are background. Raises ValueError for more than 32 colours that are not of the palette.
    """
    colours, first, inverse = np.unique(
        _packed(pixels).ravel(), return_index=True, return_inverse=True
    )
    of_palette = {int(colour): number for number, colour in enumerate(_packed(PALETTE[None])[0])}
    void = next(colour for colour, number in of_palette.items() if number == _VOID_ID)
    if all(int(colour) in of_palette for colour in colours):
        numbers = {int(colour): of_palette[int(colour)] for colour in colours}
    else:
        met = [int(colours[i]) for i in np.argsort(first)]
        painted = [colour for colour in met if colour not in (_BLACK, void)]
        if len(painted) > MAX_COLOURS:
            raise ValueError(
                f"has {len(painted)} colours, and each would be an object (at most {MAX_COLOURS}); edges are smoothed, or "
                "this is no mask: paint with hard edges, scale with nearest neighbour, save as PNG"
            )
        numbers = {colour: number for number, colour in enumerate(painted, start=1)}
    numbers = {colour: numbers.get(colour, 0) % _VOID_ID for colour in map(int, colours)}
    ids = np.array(list(numbers.values()), np.uint8)[inverse].reshape(pixels.shape[:2])
    return ids, {f"#{c:06x}": number for c, number in numbers.items() if c != _BLACK}


def _packed(pixels: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """One number 0xRRGGBB per pixel; what is fully transparent is black."""
    packed = np.zeros(pixels.shape[:-1], np.uint32)
    for channel in range(3):
        packed = packed << np.uint32(8) | pixels[..., channel]
    if pixels.shape[-1] == 4:
        packed[pixels[..., 3] == 0] = _BLACK
    return packed
