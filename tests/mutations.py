"""What networks, disks, people and attackers do to video files, done on purpose and reproducibly.

A case is a function of (sources, seed, number): the number alone brings back a file that did harm.
"""

import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image

HEAD_BYTES = 600  # where most formats keep what describes the file
INDEX_BYTES = 3000
# What precedes the sizes, counts and times of a file: mp4 boxes, AVI chunks, EBML ids of Matroska.
MARKS = (
    *(b"moov", b"mvhd", b"tkhd", b"mdhd", b"elst", b"stsd", b"avc1", b"avcC", b"hvcC", b"stts"),
    *(b"ctts", b"stss", b"stsc", b"stsz", b"stco", b"moof", b"trun", b"avih", b"strh", b"strf"),
    *(b"idx1", b"\x16\x54\xae\x6b", b"\x1f\x43\xb6\x75", b"\x1c\x53\xbb\x6b", b"onMetaData"),
)
EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
EXTENSIONS = (*(".mp4", ".mov", ".mkv", ".webm", ".avi", ".mpg"), *(".3gp", ".flv", ".ts", ".gif"))


@dataclass(frozen=True)
class Case:
    """One mutated file."""

    number: int
    kind: str
    source: Path  # what it was made of
    suffix: str
    content: bytes

    @property
    def name(self) -> str:
        """The file's name, which tells what it is."""
        return f"{self.number:05d}-{self.kind}{self.suffix}"


def case_of(sources: Sequence[Path], *, seed: int, number: int) -> Case:
    """Case `number`: the kinds take turns, the source and the place of the damage are drawn."""
    draw = random.Random(f"{seed} {number}")
    kind = TURNS[number % len(TURNS)]
    source = draw.choice(sources)
    suffix = source.suffix
    if kind == "extension":
        suffix = draw.choice([other for other in EXTENSIONS if other != suffix.lower()])
    if kind == "spliced":
        content = _spliced(source.read_bytes(), draw.choice(sources).read_bytes(), draw)
    else:
        content = MUTATIONS[kind](source.read_bytes(), draw)
    return Case(number, kind, source, suffix, content)


def overwritten(case: Case) -> bytes | None:
    """The content where it has the size of what it was made of, so that nobody sees from outside that it changed."""
    same = case.kind in ("bits", "block", "zero_block", "head", "fields", "index", "zeros")
    return case.content if same else None


def _truncated(content: bytes, draw: random.Random) -> bytes:
    return content[: int(len(content) * draw.random() ** 2)]


def _beheaded(content: bytes, draw: random.Random) -> bytes:
    return content[1 + int(len(content) * draw.random() ** 3) :]


def _bits(content: bytes, draw: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(2 ** draw.randrange(9)):
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def _block(content: bytes, draw: random.Random) -> bytes:
    size = 2 ** draw.randrange(14)
    return _overlaid(content, draw.randrange(len(content)), draw.randbytes(size))


def _zero_block(content: bytes, draw: random.Random) -> bytes:
    return _overlaid(content, draw.randrange(len(content)), bytes(2 ** draw.randrange(6, 16)))


def _head(content: bytes, draw: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(2 ** draw.randrange(5)):
        damaged[draw.randrange(min(len(damaged), HEAD_BYTES))] = draw.randrange(256)
    return bytes(damaged)


def _fields(content: bytes, draw: random.Random) -> bytes:
    """Numbers right behind a mark become those that programs get wrong."""
    places = _marks_in(content) or [0]
    for _ in range(1 + draw.randrange(3)):
        value = draw.choice((*EXTREMES, draw.randrange(2**32)))
        width = draw.choice((2, 4, 4, 8))
        number = (value % 2 ** (8 * width)).to_bytes(width, draw.choice(("big", "little")))
        content = _overlaid(content, draw.choice(places) + draw.randrange(-4, 100), number)
    return content


def _index(content: bytes, draw: random.Random) -> bytes:
    """Random bytes where the index of packets lies."""
    places = _marks_in(content) or [0]
    for _ in range(2 ** draw.randrange(6)):
        at = draw.choice(places) + draw.randrange(-4, INDEX_BYTES)
        content = _overlaid(content, at, draw.randbytes(1))
    return content


def _hole(content: bytes, draw: random.Random) -> bytes:
    at, size = draw.randrange(len(content)), 2 ** draw.randrange(15)
    return content[:at] + content[at + size :]


def _repeated(content: bytes, draw: random.Random) -> bytes:
    at, size = draw.randrange(len(content)), 2 ** draw.randrange(15)
    return content[: at + size] + content[at:]


def _same(content: bytes, draw: random.Random) -> bytes:
    return content


def _spliced(content: bytes, other: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))] + other[draw.randrange(len(other)) :]


def _empty(content: bytes, draw: random.Random) -> bytes:
    return b""


def _zeros(content: bytes, draw: random.Random) -> bytes:
    return bytes(len(content))


def _noise(content: bytes, draw: random.Random) -> bytes:
    return draw.randbytes(len(content))


def _text(content: bytes, draw: random.Random) -> bytes:
    lines = ("<html><body>404 Not Found</body></html>\n", "1\n00:00:01,000 --> 00:00:02,000\nhm\n")
    return (draw.choice((*lines, "frame,label\n0,dog\n", "{}\n")) * draw.randrange(1, 200)).encode()


def _image(content: bytes, draw: random.Random) -> bytes:
    size = draw.randrange(1, 300), draw.randrange(1, 300)
    picture = Image.frombytes("RGB", size, draw.randbytes(3 * size[0] * size[1]))
    buffer = io.BytesIO()
    picture.save(buffer, draw.choice(("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")))
    return buffer.getvalue()


def _audio(content: bytes, draw: random.Random) -> bytes:
    """A second of noise without a picture."""
    codec, container = draw.choice(
        (("pcm_s16le", "wav"), ("aac", "mp4"), ("flac", "matroska"), ("mp2", "mpegts"))
    )
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, options={"fflags": "+bitexact"}) as output:
        stream = output.add_stream(codec, rate=44100, layout="mono")
        samples = np.frombuffer(draw.randbytes(2 * 44100), np.int16)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate, frame.pts = 44100, 0
        for packet in (*stream.encode(frame), *stream.encode(None)):
            output.mux(packet)
    return buffer.getvalue()


def _marks_in(content: bytes) -> list[int]:
    """Where what follows each mark begins."""
    places = []
    for mark in MARKS:
        at = content.find(mark)
        while at >= 0 and len(places) < 1000:
            places.append(at + len(mark))
            at = content.find(mark, at + 1)
    return places


def _overlaid(content: bytes, at: int, patch: bytes) -> bytes:
    """The content with `patch` over it; what would lie outside is left away."""
    at = max(0, min(at, len(content)))
    patch = patch[: len(content) - at]
    return content[:at] + patch + content[at + len(patch) :]


MUTATIONS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "truncated": _truncated,
    "bits": _bits,
    "head": _head,
    "fields": _fields,
    "index": _index,
    "block": _block,
    "zero_block": _zero_block,
    "beheaded": _beheaded,
    "hole": _hole,
    "repeated": _repeated,
    "spliced": _same,  # needs two files: see `case_of`
    "extension": _same,
    "empty": _empty,
    "zeros": _zeros,
    "noise": _noise,
    "text": _text,
    "image": _image,
    "audio": _audio,
}
# What replaces the whole file is refused at once, and has one turn where the others have three.
_REPLACING = ("empty", "zeros", "noise", "text", "image", "audio")
TURNS = tuple(kind for kind in MUTATIONS if kind not in _REPLACING) * 3 + _REPLACING
