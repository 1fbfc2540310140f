"""Which frames a stream shows, and when: told from its packets where that is certain, found by decoding where it is not.

Packets become frames one to one in the files that encoders write. In those that people cut, joined and recorded they do
not: an edit list hides some, a stream that begins between two key frames has some that nothing can decode, a clock jumps
back. FFmpeg's own decoding in order is the truth there, and costs as long as playing the file through.
"""

import bisect
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import av
import numpy as np
from av.codec.context import Flags
from av.video.frame import PictureType

from videossl.decode.container import (
    MAX_FRAMES,
    MIN_PICTURES,
    STILL,
    open_container,
    video_stream,
)
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


# The start code of a picture, and where behind it the two or three bits of its type are: byte, shift, mask, a B.
PICTURE_STARTS = {
    "mpeg1video": (b"\x00\x00\x01\x00", 5, 3, 7, 3),
    "mpeg2video": (b"\x00\x00\x01\x00", 5, 3, 7, 3),
    "mpeg4": (b"\x00\x00\x01\xb6", 4, 6, 3, 2),
}


def is_b_picture(packet: "av.Packet", codec: str) -> bool:
    """Whether the first picture of an MPEG packet is predicted from both sides; `codec` is one of PICTURE_STARTS."""
    start_code, byte, shift, mask, kind = PICTURE_STARTS[codec]
    data = bytes(memoryview(packet)[:LARGEST_PREFIX])
    at = data.find(start_code)
    return 0 <= at < len(data) - byte and (data[at + byte] >> shift) & mask == kind


log = logging.getLogger("videossl")

VP8_SHOW_FRAME_BIT = 0x10  # RFC 6386, section 9.1: bit 4 of the first byte of a frame
# A clock that leaps ahead by more in a broadcast stream was set anew: FFmpeg's own limit (`dts_delta_threshold`).
MAX_CLOCK_GAP_SECONDS = 10.0
# Beyond this (3,000 years) double precision tells microseconds apart no more, and no clock says so but by mistake.
MAX_CLOCK_SECONDS = 1e11
BROADCAST_CONTAINERS = frozenset({"mpegts", "mpeg"})
# Packets by which a jump of the clock may come before the key frame of the recording that it belongs to; chosen.
PACKETS_BEFORE_A_KEY = 2
FRAMES_ABOUT_A_JOIN = 3  # by which the jump of their times may be away from it; chosen
# Frames of which the type is looked at where most packets are said to be key frames; chosen.
NUM_KEYS_LOOKED_AT = 8
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
    has_late_leading: bool  # some that show before a key frame are stamped behind it

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
    if container.format.name.endswith("_pipe") and len(packets) < MIN_PICTURES:
        raise VideoDecodeError(str(source), "pyav", STILL)
    doubt = _doubt(packets, container, stream, first)
    if not doubt and _says_all_are_keys(packets, stream) and not _are_keys(source):
        doubt = "packets are said to be key frames that are not"
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
    may_lead, key_pts, has_late_leading = codec in PICTURE_STARTS, None, False
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
        if may_lead and key_pts is not None and packet.pts is not None:
            has_late_leading |= packet.pts > key_pts and is_b_picture(packet, codec)
        key_pts = packet.pts if is_key else None  # of the packet just before
        is_hidden = packet.is_discard or (is_vp8 and _is_hidden_vp8(packet))
        rows.append((packet.pts, packet.dts, packet.duration, size, is_key, is_hidden))
        if len(rows) > MAX_FRAMES:
            cause = f"it has more than {MAX_FRAMES} frames, the limit; cut it into parts"
            raise VideoDecodeError(str(source), "pyav", cause)
    if first is None and error is not None:
        raise error
    pts, dts, durations, sizes, keys, hidden = zip(*rows, strict=True) if rows else ((),) * 6
    packets = _Packets(pts, dts, durations, sizes, keys, hidden, has_refreshes, has_late_leading)
    return packets, first


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
    if packets.has_late_leading:
        return "frames shown before a key frame have times behind it"
    if _overlaps(packets, packets.is_key):
        return "times go back over a key frame"
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


def _overlaps(packets: _Packets, is_key: Sequence[bool]) -> list[int]:
    """The key packets that are shown, or frames after them up to the next one, before what comes before them in the file.

    In one recording a key frame is shown after all that comes before it, and so are the frames that lead it.
    """
    at, pts = _timed(packets)
    if not len(at):
        return []
    starts = np.flatnonzero(np.array(is_key, dtype=bool)[at])
    starts = starts if len(starts) and starts[0] == 0 else np.concatenate([[0], starts])
    found, latest = [], None
    first, last = np.minimum.reduceat(pts, starts), np.maximum.reduceat(pts, starts)
    for start, begin, end in zip(starts.tolist(), first.tolist(), last.tolist(), strict=True):
        if latest is not None and begin < latest:
            found.append(int(at[start]))
            latest = end
        latest = end if latest is None else max(latest, end)
    return found


def _timed(packets: _Packets) -> "tuple[NDArray[np.int64], NDArray[np.int64]]":
    """The numbers and the times of the packets that are shown and have one."""
    known = [
        (at, tick)
        for at, (tick, hidden) in enumerate(zip(packets.pts, packets.is_hidden, strict=True))
        if tick is not None and not hidden
    ]
    numbers, ticks = zip(*known, strict=True) if known else ((), ())
    return np.array(numbers, dtype=np.int64), np.array(ticks, dtype=np.int64)


def _says_all_are_keys(packets: _Packets, stream: "av.VideoStream") -> bool:
    """Whether most packets are said to be key frames, though the codec has others."""
    return (
        len(packets) > 2
        and 2 * sum(packets.is_key) > len(packets)
        and not stream.codec_context.codec.intra_only
    )


def _are_keys(source: VideoSource) -> bool:
    """Whether the first frames are coded as key frames."""
    with open_container(source) as container:
        decoded = decode_packets(container.demux(video_stream(container, source)))
        frames = (frame for _, frames, _ in decoded for frame in frames)
        return all(map(_is_key_frame, itertools.islice(frames, NUM_KEYS_LOOKED_AT)))


def _is_key_frame(frame: "av.VideoFrame") -> bool:
    return bool(frame.key_frame) or frame.pict_type == PictureType.I


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
    is_key = _coded_as_keys(packets, decoded)
    joins = _find_joins(packets, is_key, decoded, max_gap)
    pts = _ascending(decoded.pts, gap, max_gap if _clock_jumps(packets, max_gap) else None, joins)
    if np.abs(pts).max() * tick_seconds > MAX_CLOCK_SECONDS:
        pts = pts - pts[0]
    num_bytes = [0 if at is None else packets.num_bytes[at] for at in decoded.packet]
    frames_are_keys = [
        key if at is None else is_key[at]
        for key, at in zip(decoded.is_key, decoded.packet, strict=True)
    ]
    known_ticks = [tick for tick in packets.pts if tick is not None]
    is_found_by_time = (
        container_name(known) != "avi"
        and not joins
        and decoded.pts == pts.tolist()
        and len(np.unique(known_ticks)) == len(known_ticks)
        # A seek goes to what is said to be a key frame.
        and 2 * sum(is_key) >= sum(packets.is_key)
    )
    return ShownFrames(
        pts=pts,
        is_key=np.array(frames_are_keys, dtype=bool),
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
            decoded.is_key.append(_is_key_frame(frame))
            decoded.last_duration = frame.duration or 0
    return decoded, first


def _usual_gap(pts: list[int | None], stream: "av.VideoStream") -> int:
    """Ticks from one frame to the next, at least 1."""
    steps = np.diff([tick for tick in pts if tick is not None])
    if (steps > 0).any():
        return max(1, round(float(np.median(steps[steps > 0]))))
    rate = stream.average_rate or stream.base_rate
    return max(1, round(1 / (rate * stream.time_base))) if rate else 1


def _coded_as_keys(packets: _Packets, decoded: _Decoded) -> list[bool]:
    """Which packets are said to be key frames, and gave one."""
    gave = dict(zip(decoded.packet, decoded.is_key, strict=True))
    return [is_said and gave.get(at, False) for at, is_said in enumerate(packets.is_key)]


def _find_joins(
    packets: _Packets, is_key: Sequence[bool], decoded: _Decoded, max_gap: float
) -> list[int]:
    """The frames with which another recording begins, as the clock tells; several in a row where one is not certain."""
    overlaps = _overlaps(packets, is_key)
    joins = [_frames_between(at, at, decoded) for at in overlaps]
    keys = [at for at, key in enumerate(is_key) if key]
    for at in _jumps(packets, max_gap):
        key = bisect.bisect_left(keys, at)
        near = keys[key : key + 1]
        is_near = bool(near) and near[0] - at <= PACKETS_BEFORE_A_KEY
        group = near[0] if is_near else keys[key - 1] if key else 0
        if group in overlaps:  # the times of decoding go astray with those that are shown
            continue
        # FFmpeg may give the last packet of a program stream the time of the one after it.
        first, last = (near[0], near[0]) if is_near else (at, at + 1)
        found = _frames_between(first, last, decoded)
        if found and _jumps_about(found, decoded.pts, max_gap):
            joins.append(found)
    return sorted(set(itertools.chain(*joins)))


def _jumps(packets: _Packets, max_gap: float) -> list[int]:
    """The packets before which the clock of decoding was set anew."""
    known = [(at, tick) for at, tick in enumerate(packets.dts) if tick is not None]
    return [
        at
        for (_, before), (at, tick) in itertools.pairwise(known)
        if not 0 <= tick - before <= max_gap
    ]


def _frames_between(first: int, last: int, decoded: _Decoded) -> range:
    """The frames that begin a recording which begins with one of these packets; all that do where they come out mixed."""
    numbers = [-1 if number is None else number for number in decoded.packet]
    after = next((at for at, number in enumerate(numbers) if number >= first), 0)
    before = max((at for at, number in enumerate(numbers) if 0 <= number < last), default=-1)
    return range(after, max(after, before + 1) + 1) if after else range(0)


def _jumps_about(frames: range, pts: Sequence[int | None], max_gap: float) -> bool:
    """Whether the times of the frames thereabouts jump as well."""
    begin, end = frames[0] - FRAMES_ABOUT_A_JOIN, frames[-1] + FRAMES_ABOUT_A_JOIN
    near = [tick for tick in pts[max(begin, 0) : end + 1] if tick is not None]
    return any(not 0 <= tick - before <= max_gap for before, tick in itertools.pairwise(near))


def _ascending(
    raw: list[int | None], gap: int, max_gap: float | None, joins: Sequence[int]
) -> "NDArray[np.int64]":
    """Times that never go back; a clock that was set anew goes on from the one before.

    Frames without a time follow the one before at the usual gap. Without `max_gap` the clock is known not to jump but at
    `joins`; other times out of order are then those of decoding, and the frames have them in order.
    """
    begin = next((tick - gap * at for at, tick in enumerate(raw) if tick is not None), 0)
    ticks: list[int] = []
    offset, is_join = 0, set(joins)
    for at, tick in enumerate(raw):
        before = ticks[-1] if ticks else begin - gap
        now = before + gap if tick is None else tick + offset
        jumps = max_gap is not None and not 0 <= now - before <= max_gap
        if ticks and (jumps or (at in is_join and now <= before)):
            offset += before + gap - now
            now = before + gap
        ticks.append(now)
    return np.sort(np.array(ticks, dtype=np.int64))
