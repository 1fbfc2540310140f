"""Files of masks: palette, grey or painted PNGs in, object ids out; and what can be told of an image from its file.

Two forms exist. 2016 (Perazzi et al., CVPR 2016): 0 and 255, one object. 2017 (Pont-Tuset et al., arXiv:1704.00675): object
ids, 255 = void.
"""

import logging
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from videossl.errors import UserError
from videossl.eval.colour_mask import MAX_COLOURS, ids_of_colours, without_smoothing
from videossl.picture_files import UNREADABLE, opened_picture, picture_size

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
    given, mode = _values(path, allow_lossy=True)
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


def _values(path: Path, *, allow_lossy: bool = False) -> tuple[IndexMask, str]:
    """Grey or palette values (H, W) with their mode, anything else as RGBA (H, W, 4); of a lossy file with its format."""
    try:
        with opened_picture(path) as image:
            if image.format in _LOSSY and not allow_lossy:
                raise _not_exact(path, image.format)
            if image.format in _LOSSY:
                return np.asarray(image.convert("RGBA")), str(image.format)
            if image.mode not in _INDEX_MODES + _COLOUR_MODES:
                raise UserError(
                    f"{path}: a mask must be an 8-bit grey, palette or RGB image, got mode {image.mode}"
                )
            if image.mode in _COLOUR_MODES:
                return np.asarray(image.convert("RGBA")), image.mode
            values = np.asarray(image)
            return (values * np.uint8(255) if image.mode == "1" else values), image.mode
    except FileNotFoundError:
        raise UserError(f"{path}: no such mask") from None
    except UNREADABLE as error:
        raise UserError(f"{path}: damaged mask ({error})") from None


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
