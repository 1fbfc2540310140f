"""The one place that opens pictures for reading, in named formats and upright as their EXIF says, and knows their names."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import ExifTags, Image

from videossl.errors import UserError
from videossl.leftovers import is_system_leftover

# All are decoded in this process. Pillow goes by content, whatever a file is called, and hands PostScript to a program.
PICTURE_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF")
PICTURE_ENDINGS = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"))
UNREADABLE = (OSError, SyntaxError, Image.DecompressionBombError)  # what it raises for a bad file
# What makes a picture upright, by the number that EXIF has for how it is stored.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = (5, 6, 7, 8)
_EXIF_OF_PNG = (b"eXIf", b"Raw profile type exif")


def is_picture(path: Path) -> bool:
    """Whether a file is called like a picture, and is none that a system left behind."""
    return path.suffix.lower() in PICTURE_ENDINGS and not is_system_leftover(path.name)


@contextmanager
def _told_as_damage() -> Iterator[None]:
    """Pillow has other exceptions for headers that are cut off and for bombs of compressed text."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, ArithmeticError, EOFError, struct.error, zlib.error) as error:
        raise OSError(f"damaged picture: {error}") from error


@contextmanager
def opened_picture(path: Path, *, within: tuple[int, int] | None = None) -> Iterator[Image.Image]:
    """A picture file to work on, upright; it keeps its mode and `format`.

    `within`, (width, height), lets a JPEG be decoded at an eighth, a quarter or half of its size, at least as large as that.
    Raises one of UNREADABLE for a damaged file, then or when the pixels are asked for.
    """
    with _told_as_damage(), Image.open(path, formats=PICTURE_FORMATS) as image:
        orientation = _orientation(image, path)
        if within is not None:
            image.draft("L", within[::-1] if orientation in _SWAPS_SIDES else within)
        if orientation not in _TURNS:
            yield image
            return
        upright = image.transpose(_TURNS[orientation])
        upright.format = image.format
        yield upright


@_told_as_damage()
def picture_size(path: Path, *, to_its_end: bool = False) -> tuple[int, int]:
    """(width, height) of a picture when upright, from its header; with `to_its_end` the rest of the file is checked too.

    Raises one of UNREADABLE for a damaged file.
    """
    with Image.open(path, formats=PICTURE_FORMATS) as image:
        is_turned = _orientation(image, path) in _SWAPS_SIDES
        width, height = image.size
        is_png = image.format == "PNG"
        if to_its_end and not is_png:
            image.draft("L", (width // 8, height // 8))  # of a JPEG: an eighth of the work
            image.load()
    if to_its_end and is_png:
        # Of its checksums: a tenth of the work of decoding. It must be the first that is done to an open file.
        with Image.open(path, formats=PICTURE_FORMATS) as image:
            image.verify()
    return (height, width) if is_turned else (width, height)


def _orientation(image: Image.Image, path: Path) -> int:
    """The number of EXIF for how an open picture is stored; 1, upright, where nothing sound says another."""
    if image.format == "TIFF":
        image.load()  # Pillow turns these itself
        return 1
    if image.format == "PNG":
        # It may stand behind the pixels, which then must be decoded first: only where there is any.
        content = path.read_bytes()
        if not any(name in content for name in _EXIF_OF_PNG):
            return 1
        image.load()
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF is no reason to refuse a sound picture, whatever it raises
        return 1
