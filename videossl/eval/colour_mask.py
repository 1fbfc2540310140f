"""Masks painted in colours: RGB or RGBA pixels in, object ids out, with what each colour was taken for."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from videossl.masks import PALETTE

MAX_COLOURS = 32  # of a mask that somebody painted; chosen: anti-aliased edges have hundreds
_BLACK = 0
_VOID_ID = 255
# Of colours 0 to 255. Two that were painted differ by more; what JPEG makes of one differs by less. All chosen.
_NEAR = 48.0
_FAR = 64.0  # at least between two colours of which an edge holds mixtures
_MIXTURE = 24.0  # from the line between them, of a mixture: rounding, and what JPEG adds
_LEAST_SHARE = 5e-4  # of all pixels for a colour without an inside
# At most that share of pixels lies farther from what is kept: of a photo most do.
_CLOSE, _EDGE_SHARE = 16.0, 0.25
_FEWEST_MIXTURES = 4  # a smoothed edge has many, each of few pixels


def ids_of_colours(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], dict[str, int]]:
    """Object ids (H, W) of pixels (H, W, 3) or (H, W, 4), and the id of each colour, `{"#800000": 1}`.

    If all colours are of the DAVIS palette they have the ids that they have there. Else each colour but black is an id: 1
    for the one met first, row by row, 2 for the next. Black, fully transparent pixels and the void colour of DAVIS
    (224, 224, 192) are background. Raises ValueError for more than 32 colours that are not of the palette.
    """
    colours, first, inverse = np.unique(
        _packed(pixels).ravel(), return_index=True, return_inverse=True
    )
    void = next(colour for colour, number in _OF_PALETTE.items() if number == _VOID_ID)
    if all(int(colour) in _OF_PALETTE for colour in colours):
        numbers = {int(colour): _OF_PALETTE[int(colour)] for colour in colours}
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


def without_smoothing(
    pixels: NDArray[np.uint8], *, is_lossy: bool = False
) -> tuple[NDArray[np.uint8], list[str]]:
    """The mask with hard edges where its edges are smoothed, else the very same array; and the colours that were kept.

    `pixels` are grey values (H, W) or RGBA (H, W, 4), the mask has the same shape. Smoothed are masks of more than 32
    colours, masks in which several colours are nothing but mixtures along the edges of others, and those saved in a lossy
    format. Each pixel then takes the nearest of the few colours that cover nearly all pixels and are no mixtures of two
    others. Where there are no such few colours, as in a photo, nothing is changed.
    """
    flat, has_soft_alpha = _hard_alpha(pixels)
    colours, inverse, counts = np.unique(
        flat.reshape(-1, flat.shape[-1]), axis=0, return_inverse=True, return_counts=True
    )
    is_palette = flat.shape[-1] == 3 and set(_packed(colours).tolist()) <= _OF_PALETTE.keys()
    if is_palette and not has_soft_alpha:
        return pixels, _names(colours)
    places = inverse.reshape(pixels.shape[:2])
    has_inside = np.bincount(places[_is_inside(places)], minlength=len(colours)) > 0
    is_many = is_lossy or len(colours) > MAX_COLOURS + 1
    kept = _kept_colours(colours.astype(float), counts, has_inside, is_many=is_many)
    if not kept:
        return pixels, []
    distances = np.linalg.norm(colours[:, None] - colours[None, kept].astype(float), axis=-1)
    is_far = distances.min(axis=1) > _CLOSE
    is_photo = len(kept) > MAX_COLOURS + 1 or counts[is_far].sum() > _EDGE_SHARE * counts.sum()
    # So many that have an inside are no edges: ids, or a picture.
    is_photo |= not is_lossy and int(has_inside.sum()) > MAX_COLOURS + 1
    is_smoothed = is_many or has_soft_alpha or len(colours) - len(kept) >= _FEWEST_MIXTURES
    if is_photo or not is_smoothed:
        return pixels, _names(colours)
    nearest = colours[np.array(kept)[distances.argmin(axis=1)]]
    return _painted(pixels, nearest[places]), _names(colours[kept])


def _kept_colours(
    colours: NDArray[np.float64],
    counts: NDArray[np.int64],
    has_inside: NDArray[np.bool_],
    *,
    is_many: bool,
) -> list[int]:
    """Which of the colours (N, C) are no mixtures of more frequent ones, most frequent first; of many, no noise either."""
    kept: list[int] = []
    for number in np.argsort(-counts, kind="stable").tolist():
        colour, others = colours[number], colours[kept]
        if is_many:
            is_noise = bool(kept) and np.linalg.norm(others - colour, axis=-1).min() <= _NEAR
            is_rare = not has_inside[number] and counts[number] < _LEAST_SHARE * counts.sum()
            if is_noise or is_rare:
                continue
        if has_inside[number] or not _is_mixture(colour, others):
            kept.append(number)
    return kept


def _is_inside(places: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(H, W) whether a pixel and the eight around it are of one colour, by numbers of colours; never at the border."""
    inside = np.zeros(places.shape, bool)
    if min(places.shape) >= 3:
        windows = sliding_window_view(places, (3, 3))
        inside[1:-1, 1:-1] = (windows == windows[..., 1:2, 1:2]).all(axis=(-1, -2))
    return inside


def _is_mixture(colour: NDArray[np.float64], others: NDArray[np.float64]) -> bool:
    """Whether a colour lies between two of the others that are far apart."""
    for first, one in enumerate(others):
        lines = others[first + 1 :] - one
        lengths = np.linalg.norm(lines, axis=-1)
        lines, lengths = lines[lengths >= _FAR], lengths[lengths >= _FAR]
        shares = np.clip(lines @ (colour - one) / lengths**2, 0, 1)
        away = np.linalg.norm(one + shares[:, None] * lines - colour, axis=-1)
        if (away <= _MIXTURE).any():
            return True
    return False


def _hard_alpha(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], bool]:
    """(H, W, 1) grey or (H, W, 3) RGB, and whether opacity fades at edges.

    A pixel less than half as opaque as the most opaque one is black.
    """
    if pixels.ndim == 2:
        return pixels[..., None], False
    alpha = pixels[..., 3].astype(int)
    is_opaque = 2 * alpha >= max(1, alpha.max())
    fades = bool((~is_opaque & (alpha > 0)).any())
    return pixels[..., :3] * is_opaque[..., None].astype(np.uint8), fades


def _painted(pixels: NDArray[np.uint8], colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Colours (H, W, C) in the shape of the pixels, opaque."""
    if pixels.ndim == 2:
        return colours[..., 0]
    return np.concatenate([colours, np.full((*colours.shape[:2], 1), 255, np.uint8)], axis=-1)


def _names(colours: NDArray[np.uint8]) -> list[str]:
    """As people write them: 128 of grey, #800000 of colours."""
    return [str(c[0]) if len(c) == 1 else f"#{int(_packed(c)):06x}" for c in colours]


def _packed(pixels: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """One number 0xRRGGBB per pixel; what is fully transparent is black."""
    packed = np.zeros(pixels.shape[:-1], np.uint32)
    for channel in range(3):
        packed = packed << np.uint32(8) | pixels[..., channel]
    if pixels.shape[-1] == 4:
        packed[pixels[..., 3] == 0] = _BLACK
    return packed


_OF_PALETTE = {int(colour): number for number, colour in enumerate(_packed(PALETTE[None])[0])}
