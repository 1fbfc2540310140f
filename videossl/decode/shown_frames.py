"""Which frames a stream shows, and when: told from its packets where that is certain, found by decoding where it is not.

Packets become frames one to one in the files that encoders write. In those that people cut, joined and recorded they do
not: an edit list hides some, a stream that begins between two key frames has some that nothing can decode, a clock jumps
back. FFmpeg's own decoding in order is the truth there, and costs as long as playing the file through.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import av
import numpy as np
from av.codec.context import Flags

from videossl.decode.container import MAX_FRAMES, open_container, video_stream
from videossl.decode.source import VideoSource
from videossl.errors import VideoDecodeError

if TYPE_CHECKING:
    import av
    from numpy.typing import NDArray


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


log = logging.getLogger("videossl")

VP8_SHOW_FRAME_BIT = 0x10  # RFC 6386, section 9.1: bit 4 of the first byte of a frame
# A clock that leaps ahead by more in a broadcast stream was set anew: FFmpeg's own limit (`dts_delta_threshold`).
MAX_CLOCK_GAP_SECONDS = 10.0
# Beyond this (3,000 years) double precision tells microseconds apart no more, and no clock says so but by mistake.
MAX_CLOCK_SECONDS = 1e11
BROADCAST_CONTAINERS = frozenset({"mpegts", "mpeg"})
# Their two fields may be packets of their own, of which one frame is made.
FIELD_CODECS = frozenset({"h264", "hevc"})
# A coded picture of MPEG-4 part 2 that says "as before" (N-VOP) is smaller than any other, and gives no frame.
LARGEST_EMPTY_MPEG4 = 10  # bytes


class FramesNotTold(Exception):
    """The packets do not tell which frames are shown, for the reason given; decoding would."""


@dataclass(frozen=True)
class ShownFrames:
    """The frames of a stream in presentation order."""

    pts: "NDArray[np.int64]"  # (num_frames,) ticks, ascending
    is_key: "NDArray[np.bool_]"  # (num_frames,)
    num_bytes: "NDArray[np.int64]"  # (num_frames,) of the packets that they came in
    last_duration: int  # ticks that the last frame is shown; 0 where nothing says
    first: "av.VideoFrame"
    num_held: int  # that the file accounts for, by its packets or, where some are left empty, by its clock
    times_by_order: bool
    by_decoding: bool
    has_closed_groups: bool
    joins: tuple[int, ...] = ()  # frames with which another recording begins


@dataclass(frozen=True)
class _Packets:
    """All packets of a stream, in the order of the file."""

    pts: Sequence[int | None]
    dts: Sequence[int | None]
    duration: Sequence[int | None]
    num_bytes: Sequence[int]
    is_key: Sequence[bool]
    is_hidden: Sequence[bool]
    has_refreshes: bool  # some were called key frames that are not

    def __len__(self) -> int:
        return len(self.pts)

    @cached_property
    def ticks(self) -> "NDArray[np.int64]":
        """(packets,) times shown, or those of decoding where some packet has no other. All must have one."""
        times = self.dts if None in self.pts else self.pts
        return np.array(times, dtype=np.int64)

    @cached_property
    def is_shown(self) -> "NDArray[np.bool_]":
        """(packets,) whether neither an edit list nor the codec hides it."""
        return ~np.array(self.is_hidden, dtype=bool)

    @cached_property
    def known_dts(self) -> "NDArray[np.int64]":
        """(n,) times of decoding of those packets that have one."""
        return np.array([tick for tick in self.dts if tick is not None], dtype=np.int64)


def decode_packets(
    packets: "Iterator[av.Packet]",
) -> "Iterator[tuple[av.Packet | None, list[av.VideoFrame], av.FFmpegError | None]]":
    """Each packet with the frames that come out as it goes in, or with the error that it raised; then the next one.

    A container that breaks off ends with no packet and its error.
    """
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:
            yield None, [], error
            return
        if packet is None:
            return
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            yield packet, [], error
        else:
            yield packet, frames, None


def list_shown_frames(
    container: "av.container.InputContainer",
    stream: "av.VideoStream",
    source: VideoSource,
    *,
    may_decode: bool = True,
) -> ShownFrames:
    """Reads all packets of the stream, and decodes the first frame, or all of them where the packets do not tell.

    Raises FramesNotTold where that is so and it may not, VideoDecodeError for a stream that shows no frame and for one of
    more than MAX_FRAMES.
    """
    packets, first = _list_packets(container, stream, source)
    doubt = _doubt(packets, container, stream, first)
    if doubt:
        if not may_decode:
            raise FramesNotTold(doubt)
        log.debug("%s: its frames are counted by decoding, since %s", source, doubt)
        return _by_decoding(packets, container, source)
    if first is None or all(packets.is_hidden):
        raise VideoDecodeError(str(source), "pyav", "the video stream holds no frame")
    shown = np.flatnonzero(packets.is_shown)
    order = shown[np.argsort(packets.ticks[shown], kind="stable")]
    return ShownFrames(
        pts=packets.ticks[order],
        is_key=np.array(packets.is_key)[order],
        num_bytes=np.array(packets.num_bytes, dtype=np.int64)[order],
        last_duration=packets.duration[order[-1]] or 0,
        first=first,
        num_held=_num_held(packets, container),
        times_by_order=container_name(container) == "avi",
        by_decoding=False,
        has_closed_groups=_has_closed_groups(packets),
    )


def container_name(container: "av.container.InputContainer") -> str:
    """The first of the names that FFmpeg has for the format: "mov", "matroska", "mpegts", ..."""
    return container.format.name.split(",")[0]


def _list_packets(
    container: "av.container.InputContainer", stream: "av.VideoStream", source: VideoSource
) -> "tuple[_Packets, av.VideoFrame | None]":
    """All packets and the first frame. A packet that does not decode before any frame came out is passed over."""
    first, error = None, None
    rows: list[tuple[int | None, int | None, int | None, int, bool, bool]] = []
    codec, has_refreshes = stream.codec_context.codec.canonical_name, False
    is_h264, is_vp8, extradata = codec == "h264", codec == "vp8", stream.codec_context.extradata
    for packet in container.demux(stream):
        if first is None:  # the last packet is empty and flushes the decoder
            try:
                first = next(iter(packet.decode()), None)
            except av.FFmpegError as raised:
                error = error or raised
        size = packet.size
        if not size:
            continue
        is_key = packet.is_keyframe
        if is_key and is_h264 and begins_refresh(packet, extradata):
            is_key, has_refreshes = False, True
        is_hidden = packet.is_discard or (is_vp8 and _is_hidden_vp8(packet))
        rows.append((packet.pts, packet.dts, packet.duration, size, is_key, is_hidden))
        if len(rows) > MAX_FRAMES:
            cause = f"it has more than {MAX_FRAMES} frames, the limit; cut it into parts"
            raise VideoDecodeError(str(source), "pyav", cause)
    if first is None and error is not None:
        raise error
    pts, dts, durations, sizes, keys, hidden = zip(*rows, strict=True) if rows else ((),) * 6
    return _Packets(pts, dts, durations, sizes, keys, hidden, has_refreshes), first


def _doubt(
    packets: _Packets,
    container: "av.container.InputContainer",
    stream: "av.VideoStream",
    first: "av.VideoFrame | None",
) -> str:
    """Why the packets do not tell which frames are shown, or an empty string."""
    if first is None or not len(packets):
        return ""
    name, codec = container_name(container), stream.codec_context.codec.canonical_name
    if not packets.is_key[0]:
        return "the stream begins between two key frames"
    if codec in FIELD_CODECS and first.interlaced_frame:
        return "two packets may hold the two fields of one frame"
    if codec == "mpeg4" and min(packets.num_bytes) <= LARGEST_EMPTY_MPEG4:
        return "it has pictures that are not coded"
    if _clock_jumps(packets, max_clock_gap(container, stream)):
        return "its clock jumps"
    if name == "avi" and None in packets.pts:
        return "it has packets without any time" if None in packets.dts else ""
    if None in packets.pts:
        return "it has packets without a time"
    pts = packets.ticks
    if (pts[packets.is_shown] < pts[0]).any():
        return "frames before the first key frame may lack what they refer to"
    if name == "avi":  # the rest is of times, which are found by counting
        return ""
    if np.abs(pts).max() * float(stream.time_base) > MAX_CLOCK_SECONDS:
        return "its clock is no time"
    if len(np.unique(pts)) < len(pts) - _num_unseen(packets, codec):
        return "packets have the same time"
    if stream.codec_context.has_b_frames and len(pts) > 2 and (np.diff(pts) > 0).all():
        return "frames change their order and packets do not: their times may be those of decoding"
    return ""


def _num_held(packets: _Packets, container: "av.container.InputContainer") -> int:
    """AVI counts frames by its clock, and a frame that is as the one before may be left empty."""
    if container_name(container) != "avi" or not len(packets.known_dts):
        return len(packets)
    return max(len(packets), int(np.ptp(packets.known_dts)) + 1)


def _num_unseen(packets: _Packets, codec: str) -> int:
    """The packets whose times no frame bears: VP8's hidden references have the time of the frame that follows."""
    return sum(packets.is_hidden) if codec == "vp8" else 0


def _clock_jumps(packets: _Packets, max_gap: float) -> bool:
    steps = np.diff(packets.known_dts)
    return bool((steps < 0).any() or (steps > max_gap).any())


def max_clock_gap(container: "av.container.InputContainer", stream: "av.VideoStream") -> float:
    """Ticks by which the clock of a stream may go on from one packet to the next."""
    if container_name(container) not in BROADCAST_CONTAINERS:
        return float("inf")
    return MAX_CLOCK_GAP_SECONDS / float(stream.time_base)


def _has_closed_groups(packets: _Packets) -> bool:
    """Whether no frame that follows a key frame in the file is shown before it or refers to one before it."""
    if None in packets.pts or packets.has_refreshes:
        return False
    of_key = np.where(packets.is_key, packets.ticks, np.iinfo(np.int64).min)
    return bool((packets.ticks >= np.maximum.accumulate(of_key)).all())


def _is_hidden_vp8(packet: "av.Packet") -> bool:
    """VP8 stores the reference frames that it never shows as packets of their own."""
    return not bytes(packet)[0] & VP8_SHOW_FRAME_BIT


@dataclass
class _Decoded:
    """The frames that came out, in order, and the number of the packet that each came in."""

    pts: list[int | None] = field(default_factory=list)
    packet: list[int | None] = field(default_factory=list)
    is_key: list[bool] = field(default_factory=list)
    last_duration: int = 0


def _by_decoding(
    packets: _Packets, known: "av.container.InputContainer", source: VideoSource
) -> ShownFrames:
    """Decodes the whole stream from its beginning: what comes out is what it shows."""
    with open_container(source) as container:
        stream = video_stream(container, source)
        # Each frame then names the packet that it came in.
        stream.codec_context.flags |= Flags.copy_opaque
        decoded, first = _decode_all(container, stream)
        gap, max_gap = _usual_gap(decoded.pts, stream), max_clock_gap(container, stream)
        tick_seconds = float(stream.time_base)
    if first is None:
        raise VideoDecodeError(str(source), "pyav", "not one of its frames can be decoded")
    pts, joins = _ascending(decoded.pts, gap, max_gap if _clock_jumps(packets, max_gap) else None)
    if np.abs(pts).max() * tick_seconds > MAX_CLOCK_SECONDS:
        pts = pts - pts[0]
    num_bytes = [0 if at is None else packets.num_bytes[at] for at in decoded.packet]
    is_key = [
        key if at is None else packets.is_key[at]
        for key, at in zip(decoded.is_key, decoded.packet, strict=True)
    ]
    known_ticks = [tick for tick in packets.pts if tick is not None]
    is_found_by_time = (
        container_name(known) != "avi"
        and not joins
        and decoded.pts == pts.tolist()
        and len(np.unique(known_ticks)) == len(known_ticks)
    )
    return ShownFrames(
        pts=pts,
        is_key=np.array(is_key, dtype=bool),
        num_bytes=np.array(num_bytes, dtype=np.int64),
        last_duration=decoded.last_duration,
        first=first,
        num_held=_num_held(packets, known),
        times_by_order=not is_found_by_time,
        by_decoding=True,
        has_closed_groups=False,
        joins=tuple(joins),
    )


def _decode_all(
    container: "av.container.InputContainer", stream: "av.VideoStream"
) -> "tuple[_Decoded, av.VideoFrame | None]":
    decoded, first, number = _Decoded(), None, 0

    def numbered() -> "Iterator[av.Packet]":
        nonlocal number
        for packet in container.demux(stream):
            if packet.size:
                packet.opaque = number
                number += 1
            yield packet

    for _, frames, _ in decode_packets(numbered()):
        for frame in frames:
            first = frame if first is None else first
            decoded.pts.append(frame.pts)
            decoded.packet.append(frame.opaque if isinstance(frame.opaque, int) else None)
            decoded.is_key.append(bool(frame.key_frame))
            decoded.last_duration = frame.duration or 0
    return decoded, first


def _usual_gap(pts: list[int | None], stream: "av.VideoStream") -> int:
    """Ticks from one frame to the next, at least 1."""
    steps = np.diff([tick for tick in pts if tick is not None])
    if (steps > 0).any():
        return max(1, round(float(np.median(steps[steps > 0]))))
    rate = stream.average_rate or stream.base_rate
    return max(1, round(1 / (rate * stream.time_base))) if rate else 1


def _ascending(
    raw: list[int | None], gap: int, max_gap: float | None
) -> "tuple[NDArray[np.int64], list[int]]":
    """Times that never go back, and the frames at which a clock that was set anew goes on from the one before.

    Frames without a time follow the one before at the usual gap. Without `max_gap` the clock is known not to jump; times
    out of order are then those of decoding, and the frames have them in order.
    """
    begin = next((tick - gap * at for at, tick in enumerate(raw) if tick is not None), 0)
    ticks: list[int] = []
    joins: list[int] = []
    offset = 0
    for at, tick in enumerate(raw):
        before = ticks[-1] if ticks else begin - gap
        now = before + gap if tick is None else tick + offset
        if max_gap is not None and ticks and not 0 <= now - before <= max_gap:
            offset += before + gap - now
            now = before + gap
            joins.append(at)
        ticks.append(now)
    return np.sort(np.array(ticks, dtype=np.int64)), joins
