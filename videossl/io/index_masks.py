"""Masks of objects as PNG files: index masks in the palette of DAVIS, and the colours of masks that people paint.

A pixel of an index mask is the number of its object, 0 is the background and 255 is void.
"""

import logging
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image

from videossl.errors import UserError
from videossl.io.output_files import whole_file
from videossl.io.pictures import UNREADABLE, opened_picture, picture_size

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


Form = Literal["2016", "2017"]
IndexMask = NDArray[np.uint8]  # (H, W) object ids, 0 = background

VOID = 255
_INDEX_MODES = ("1", "L", "P")
_COLOUR_MODES = ("RGB", "RGBA", "LA", "PA")
_LOSSY = ("JPEG", "MPO", "WEBP")

_log = logging.getLogger("videossl")


def read_mask(path: Path, *, form: Form | None = None) -> IndexMask:
    """A mask PNG as (H, W) uint8 object ids; void (255) is background. Without `form` the file's own form decides.

    Raises UserError if the file is missing, damaged or neither grey nor palette.
    """
    values, mode = _values(path)
    if mode not in _INDEX_MODES:
        raise UserError(f"{path}: a mask must be a grey or palette PNG, got mode {mode}")
    return _ids(values, form or _form(values, mode))


def read_result(path: Path, *, form: Form) -> IndexMask:
    """A mask that a method gave for a sequence of this form, (H, W) uint8 object ids.

    One object may be written as 1 or as 255, in grey or palette. Where there are ids, 255 is none: the official code
    takes it for an object that does not exist, here it is an error. Raises UserError as `read_mask`.
    """
    values, mode = _values(path)
    if mode not in _INDEX_MODES:
        raise UserError(f"{path}: a mask must be a grey or palette PNG, got mode {mode}")
    if form == "2016" or _form(values, mode) == "2016":
        return (values > 127).astype(np.uint8) if values.max() > 1 else values
    if values.max() == VOID:
        raise UserError(f"{path} has id 255, which is void and no object: write background as 0")
    return values


def read_first_mask(path: Path) -> IndexMask:
    """The mask that tracking begins with, as (H, W) uint8 object ids: what `read_mask` takes, or an image in colours.

    Colours become ids as `ids_of_colours` says, and smoothed edges hard ones as `without_smoothing` says; both are logged
    once. Only a first mask may be so: in another image the same colours could come in another order. Raises UserError as
    `read_mask`, and for too many colours or grey values.
    """
    return open_first_mask(path).ids


class FirstMask(NamedTuple):
    """A first mask as `read_first_mask` gives it, and what its file says of those after it."""

    ids: IndexMask
    form: Form
    mode: str  # of Pillow, or the name of a lossy format
    is_exact: bool  # its edges are not smoothed

    @property
    def is_index(self) -> bool:
        """Whether masks of this kind can be scored: they hold ids, or one object with an edge that a threshold settles."""
        return self.mode in _INDEX_MODES and (self.is_exact or self.form == "2016")

    @property
    def kind(self) -> str:
        """Why they cannot, in words."""
        if self.mode in _INDEX_MODES:
            return "the edges of the masks are smoothed"
        return f"the masks are {self.mode} images"


def open_first_mask(path: Path) -> FirstMask:
    """`read_first_mask` with the form of the masks and their kind."""
    given, mode = _values(path, is_first=True)
    values = given
    if mode not in ("1", "P"):  # the values of a palette are ids, whatever they look like
        values, colours = without_smoothing(given, is_lossy=mode in _LOSSY)
        if values is given and mode in _LOSSY:
            raise _not_exact(path, mode)
        if values is not given:
            kept = ", ".join(colours)
            num_colours = len(np.unique(given.reshape(-1, *given.shape[2:]), axis=0))
            _say_once(
                f"{path}: its edges are smoothed ({num_colours} colours): each pixel is taken for the nearest of {kept}"
            )
    return FirstMask(_first_ids(path, values, mode), _form(values, mode), mode, values is given)


def object_ids(mask: IndexMask) -> tuple[int, ...]:
    """The ids in a mask, ascending, without background."""
    return tuple(int(value) for value in np.unique(mask) if value)


def form_of(path: Path) -> Form:
    """The form of one mask by its own values: 2016 where they are 0 and 255 alone."""
    return _form(*_values(path))


def _first_ids(path: Path, values: IndexMask, mode: str) -> IndexMask:
    if mode in _INDEX_MODES:
        ids = _painted_greys(path, values) if mode == "L" else None
        if ids is None:
            ids = _ids(values, _form(values, mode))
        if mode == "L" and (count := len(object_ids(ids))) > MAX_COLOURS:
            raise UserError(
                f"{path}: has {count} grey values, and each would be an object (at most {MAX_COLOURS}); edges are "
                "smoothed: make it 0 and 255 with hard edges, or save ids as a palette PNG"
            )
        return ids
    try:
        ids, number_of = ids_of_colours(values)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    legend = ", ".join(f"{colour} = {number}" for colour, number in number_of.items())
    _say_once(f"{path}: colours read as object ids: {legend or 'none'} (0 = background)")
    return ids


def _painted_greys(path: Path, values: IndexMask) -> IndexMask | None:
    """Ids 1, 2, ... where white is an object beside lighter and darker greys, and not void beside ids; else None."""
    greys = np.unique(values[values > 0])
    is_painted = len(greys) > 1 and greys[-1] == VOID and greys[0] > MAX_COLOURS
    if not is_painted or len(greys) > MAX_COLOURS:
        return None
    legend = ", ".join(f"{grey} = {number}" for number, grey in enumerate(greys, start=1))
    _say_once(f"{path}: greys read as object ids: {legend} (0 = background)")
    return (np.searchsorted(greys, values) + 1).astype(np.uint8) * (values > 0)


@cache
def _say_once(text: str) -> None:
    _log.info("%s", text)


def _ids(values: IndexMask, form: Form) -> IndexMask:
    if form == "2016":
        return (values > 127).astype(np.uint8)
    # Few masks have void, and a pass that copies costs as much as decoding.
    return np.where(values == VOID, np.uint8(0), values) if values.max() == VOID else values


def _form(values: IndexMask, mode: str) -> Form:
    # 255 wraps to 0: one addition tells 0 and 255 from all others.
    is_binary = mode == "1" or (mode == "L" and not np.any(values + np.uint8(1) > 1))
    return "2016" if is_binary else "2017"


def _values(path: Path, *, is_first: bool = False) -> tuple[IndexMask, str]:
    """Grey or palette values (H, W) with their mode, anything else as RGBA (H, W, 4); of a lossy file with its format.

    A first mask may be lossy, and its palette may be one of colours and not of ids.
    """
    try:
        with opened_picture(path) as image:
            if image.format in _LOSSY and not is_first:
                raise _not_exact(path, image.format)
            if image.format in _LOSSY:
                return np.asarray(image.convert("RGBA")), str(image.format)
            if image.mode not in _INDEX_MODES + _COLOUR_MODES:
                raise UserError(
                    f"{path}: a mask must be an 8-bit grey, palette or RGB image, got mode {image.mode}"
                )
            if image.mode in _COLOUR_MODES:
                return np.asarray(image.convert("RGBA")), image.mode
            if image.mode == "P" and is_first and not _holds_ids(image):
                return np.asarray(image.convert("RGBA")), "RGBA"
            values = np.asarray(image)
            return (values * np.uint8(255) if image.mode == "1" else values), image.mode
    except FileNotFoundError:
        raise UserError(f"{path}: no such mask") from None
    except UNREADABLE as error:
        raise UserError(f"{path}: damaged mask ({error})") from None


def _holds_ids(image: Image.Image) -> bool:
    """Whether the numbers of a palette image are object ids, and not the places where a drawing program put its colours.

    They are ids in the palette of DAVIS and in one of greys, and in any other of which number 0 is black or transparent,
    unless edges are smoothed.
    """
    used = np.unique(np.asarray(image))
    table = np.zeros((256, 3), np.uint8)
    given = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    table[: len(given)] = given
    if (table[used] == PALETTE[used]).all() or (table[used] == used[:, None]).all():
        return True
    if table[0].any() and image.info.get("transparency") != 0:
        return False
    void_colours = (PALETTE[VOID].tolist(), [0, 0, 0], [255, 255, 255])
    if VOID in used and table[VOID].tolist() not in void_colours:
        return False
    pixels = np.asarray(image.convert("RGBA"))
    return without_smoothing(pixels)[0] is pixels


def _not_exact(path: Path, kind: str | None) -> UserError:
    return UserError(
        f"{path}: {kind} changes values where it saves space, so they are no object ids: give a PNG"
    )


def image_size(path: Path, *, to_its_end: bool = False) -> tuple[int, int]:
    """(width, height) of an image, from its header; with `to_its_end` the rest of the file is checked too.

    Raises UserError if it is damaged.
    """
    try:
        return picture_size(path, to_its_end=to_its_end)
    except UNREADABLE as error:
        raise UserError(f"{path}: damaged image ({error})") from None
