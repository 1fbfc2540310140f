"""Pictures and videos as files and as arrays: read with care, since others made them, and written for people to look at."""

import itertools
import logging
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from videossl.errors import UserError
from videossl.io.input_files import is_system_leftover
from videossl.io.output_files import whole_file

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


def rgb_of(image: Image.Image) -> Image.Image:
    """An opened picture as 8-bit RGB; of 16 bits the upper eight are kept, where Pillow would make all of it white."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "I":  # 16 bits in 32, as Pillow opens some PNG and TIFF
        values = np.asarray(image).clip(0, 2**16 - 1)
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


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


CRF = "20"  # of x264: visually near lossless, a few MB a minute
MPEG4_BIT_RATE = 6_000_000

log = logging.getLogger("videossl")


def write_video(
    path: Path,
    frames: Iterable[NDArray[np.uint8]],
    *,
    frames_per_second: float,
    options: Mapping[str, str] | None = None,
) -> None:
    """Writes an mp4 of (H, W, 3) uint8 RGB frames: H.264 where this PyAV can encode it, else MPEG-4 part 2.

    Written under a temporary name and renamed when whole. Odd sides lose their last row or column: yuv420p needs even
    ones. `options` are the encoder's, such as crf and g, beside or in place of our own. Raises UserError if the file cannot
    be written.
    """
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    if codec == "mpeg4":
        log.info("this PyAV cannot encode H.264: %s is written as MPEG-4", path.name)
    # The index first: a browser then plays the file while it still arrives.
    layout = {"movflags": "+faststart"}
    with (
        whole_file(path, sync=False) as partial,
        av.open(str(partial), "w", format="mp4", options=layout) as container,
    ):
        _encode(container, codec, frames, frames_per_second, options or {})


def _encode(
    container: Any,
    codec: str,
    frames: Iterable[NDArray[np.uint8]],
    frames_per_second: float,
    options: Mapping[str, str],
) -> None:
    stream = container.add_stream(codec, rate=Fraction(frames_per_second).limit_denominator(1001))
    stream.pix_fmt = "yuv420p"
    if codec == "libx264":
        stream.options = {"crf": CRF, "preset": "veryfast", **options}
    else:
        stream.bit_rate = MPEG4_BIT_RATE
        stream.options = {name: value for name, value in options.items() if name != "crf"}
    for index, rgb in enumerate(frames):
        height, width = rgb.shape[0] // 2 * 2, rgb.shape[1] // 2 * 2
        if index == 0:
            stream.height, stream.width = height, width
        even = np.ascontiguousarray(rgb[:height, :width])
        container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
    container.mux(stream.encode())


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
    if re.fullmatch(
        r"-[0-9]+", path.stem
    ):  # before 0: nothing else is there for the hyphen to part
        return [("", int(path.stem)), ("", -1)], path.name
    parts = re.findall(r"([^0-9]*)([0-9]*)", path.stem)
    return [(text, int(number or -1)) for text, number in parts], path.name
