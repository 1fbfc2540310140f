"""H.264 without key frames: pictures that are renewed part by part, and the point from which all parts have been.

Containers call such a point a key frame, since decoding may begin there; but what comes out is whole, and the same as by
decoding from the beginning, only some frames later (ISO 14496-10, D.2.8: `recovery_frame_cnt`).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import av

NON_IDR_SLICE, IDR_SLICE, SEI = 1, 5, 6  # types of NAL units, table 7-1
RECOVERY_POINT = 6  # type of an SEI message, D.1.1
LARGEST_PREFIX = (
    4096  # bytes of a packet that are looked at: what comes before its picture is small
)
LARGEST_SEI = 64  # bytes of a unit that are looked at


def begins_refresh(packet: "av.Packet", extradata: bytes | None) -> bool:
    """Whether an H.264 packet states a recovery point that lies some frames ahead.

    `extradata` of the stream tells how its units are parted: by lengths (mp4, mkv) or by start codes.
    """
    data = bytes(memoryview(packet)[:LARGEST_PREFIX])
    for unit in _units(data, extradata or b""):
        kind = unit[0] & 0x1F
        if kind in (NON_IDR_SLICE, IDR_SLICE):
            return False
        if kind == SEI and (message := _recovery_point(unit)):
            return not message[0] & 0x80  # an Exp-Golomb code: 0 is a single bit of 1
    return False


def _units(data: bytes, extradata: bytes) -> Iterator[bytes]:
    """The beginnings of the NAL units in the first bytes of a packet, none of them empty."""
    if not extradata.startswith(b"\x01"):
        for part in data.split(b"\x00\x00\x01")[1:]:
            if part:
                yield part[:LARGEST_SEI]
        return
    num_length_bytes = (extradata[4] & 3) + 1 if len(extradata) > 4 else 4
    at = 0
    while at + num_length_bytes < len(data):
        size = int.from_bytes(data[at : at + num_length_bytes], "big")
        at += num_length_bytes
        if not size:
            return
        yield data[at : at + min(size, LARGEST_SEI)]
        at += size


def _recovery_point(unit: bytes) -> bytes:
    """The payload of the recovery point among the messages of an SEI unit; empty where there is none."""
    at = 1
    while at + 2 < len(unit):
        kind, size = unit[at], unit[at + 1]
        if kind == 0xFF or size == 0xFF:  # a long message of another kind
            return b""
        if kind == RECOVERY_POINT:
            return unit[at + 2 : at + 2 + size]
        at += 2 + size
    return b""
