"""A video's facts, read from its packets without decoding them: the one truth that every reader is held to.

PyAV lists the packets, so the facts need neither torch nor a system FFmpeg. Only the first frame is decoded: rotation
and true size are properties of frames, and a file whose header is sound but whose stream is garbage shows itself there.
"""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from videossl.decode.container import (
    MAX_FRAMES,
    MAX_PIXELS,
    as_decode_error,
    check_counts,
    check_not_truncated,
    open_container,
    refused_size,
    video_stream,
)
from videossl.decode.source import VideoSource, as_source
from videossl.decode.timing import is_constant_rate, motion_of
from videossl.errors import VideoDecodeError

VP8_SHOW_FRAME_BIT = 0x10  # RFC 6386, section 9.1: bit 4 of the first byte of a frame


@dataclass(frozen=True)
class VideoInfo:
    """What a video holds. Times are seconds on the container's own clock: the first frame need not be at 0."""

    path: str  # of the file, or of the shard that it is a member of
    container: str
    codec: str
    pixel_format: str
    width: int  # as shown: after rotation
    height: int
    rotation: int  # clockwise degrees from stored to shown: 0, 90, 180 or 270
    num_frames: int
    fps: float  # average: (n - 1) / (last pts - first pts)
    begin_seconds: float  # pts of the first frame
    end_seconds: float  # pts of the last frame plus its duration
    is_constant_rate: bool
    motion: tuple[float, ...]  # NUM_MOTION_BINS values, see `videossl.decode.timing.motion_of`

    @property
    def duration_seconds(self) -> float:
        """How long the file shows frames."""
        return self.end_seconds - self.begin_seconds


@dataclass(frozen=True)
class VideoIndex:
    """The packets that become frames, in presentation order, and the facts drawn from them."""

    info: VideoInfo
    pts: np.ndarray  # (num_frames,) int64 ticks, ascending
    is_key: np.ndarray  # (num_frames,) bool
    time_base: Fraction
    stream_index: int
    # The container stores no presentation times (AVI) or repeats one: the k-th decoded frame is frame k, whatever time
    # the decoder writes on it, and seeking is not possible.
    times_by_order: bool
    num_bytes: int  # of the file, when it was read: another size is another file

    @property
    def pts_seconds(self) -> np.ndarray:
        """(num_frames,) float64."""
        return self.pts * float(self.time_base)


def probe(source: str | Path | VideoSource) -> VideoInfo:
    """Reads a video's facts. Raises VideoDecodeError for anything that cannot be used."""
    return read_index(source).info


def read_index(source: str | Path | VideoSource, *, backend: str = "pyav") -> VideoIndex:
    """Lists the packets of the best video stream and decodes its first frame, in one pass over the file.

    Packets that an edit list or the codec hides are left out. Raises VideoDecodeError, in the name of `backend`, for a
    missing, empty, truncated or otherwise broken file, for one without video and for one beyond the limits of
    `videossl.decode.container`.
    """
    source = as_source(source)
    try:
        num_bytes = source.size()
        with as_decode_error(source, "pyav"), open_container(source) as container:
            stream = video_stream(container, source)
            check_not_truncated(stream, source, num_bytes)
            return _index_of(container, stream, source, num_bytes)
    except VideoDecodeError as error:
        cause = error.cause
        if isinstance(error.__cause__, av.FFmpegError) and (size := refused_size(source)):
            cause = f"its stream announces {size} pixels, the limit is {MAX_PIXELS}"
        raise VideoDecodeError(error.path, backend, cause) from error.__cause__


def current_index(source: VideoSource, index: VideoIndex | None, backend: str) -> VideoIndex:
    """The index given, or read now. Raises VideoDecodeError for a local file that is no longer of the indexed size."""
    if index is None:
        return read_index(source, backend=backend)
    if source.is_local_file and (num_bytes := source.size()) != index.num_bytes:
        cause = f"it has changed since the scan, from {index.num_bytes} to {num_bytes} bytes: scan again"
        raise VideoDecodeError(str(source), backend, cause)
    return index


@dataclass(frozen=True)
class _Packets:
    """Of the packets that are shown: in the order of the file."""

    pts: list[int | None]
    dts: list[int | None]
    duration: list[int]
    num_bytes: list[int]
    is_key: list[bool]


def _index_of(
    container: "av.container.InputContainer",
    stream: "av.VideoStream",
    source: VideoSource,
    num_bytes: int,
) -> VideoIndex:
    codec = stream.codec_context.codec.canonical_name
    announced = stream.frames
    packets, num_packets, first = _list_packets(container, stream, codec, source)
    if first is None or not packets.pts:
        raise VideoDecodeError(str(source), "pyav", "the video stream holds no frame")
    has_pts = all(pts is not None for pts in packets.pts)
    times = packets.pts if has_pts else packets.dts
    if any(time is None for time in times):
        raise VideoDecodeError(str(source), "pyav", "it has packets without any time stamp")
    pts = np.array(times, dtype=np.int64)
    order = np.argsort(pts, kind="stable")
    pts = pts[order]
    is_key = np.array(packets.is_key)[order]
    seconds = pts * float(stream.time_base)
    last_seconds = _last_duration(stream, pts, packets.duration[int(order[-1])])
    container_name = container.format.name.split(",")[0]
    check_counts(
        source,
        announced=announced,
        num_packets=num_packets,
        num_frames=len(pts),
        seconds=float(seconds[-1]) + last_seconds - float(seconds[0]),
    )
    info = _info_of(
        source,
        container=container_name,
        codec=codec,
        first=first,
        seconds=seconds,
        last_seconds=last_seconds,
        tick_seconds=float(stream.time_base),
        sizes=np.array(packets.num_bytes)[order],
        is_key=is_key,
    )
    by_order = container_name == "avi" or not has_pts or bool((np.diff(pts) == 0).any())
    return VideoIndex(info, pts, is_key, stream.time_base, stream.index, by_order, num_bytes)


def _list_packets(
    container: "av.container.InputContainer",
    stream: "av.VideoStream",
    codec: str,
    source: VideoSource,
) -> tuple[_Packets, int, "av.VideoFrame | None"]:
    """The packets that are shown, the number of all packets, and the first frame."""
    listed = _Packets([], [], [], [], [])
    num_packets, first = 0, None
    for packet in container.demux(stream):
        if first is None:  # the last packet is empty and flushes the decoder
            first = next(iter(packet.decode()), None)
        if not packet.size:
            continue
        num_packets += 1
        if packet.is_discard or (codec == "vp8" and _is_hidden_vp8(packet)):
            continue
        listed.pts.append(packet.pts)
        listed.dts.append(packet.dts)
        listed.duration.append(packet.duration or 0)
        listed.num_bytes.append(packet.size)
        listed.is_key.append(packet.is_keyframe)
        if num_packets > MAX_FRAMES:
            cause = f"it has more than {MAX_FRAMES} frames, the limit; cut it into parts"
            raise VideoDecodeError(str(source), "pyav", cause)
    return listed, num_packets, first


def _info_of(
    source: VideoSource,
    *,
    container: str,
    codec: str,
    first: "av.VideoFrame",
    seconds: np.ndarray,
    last_seconds: float,
    tick_seconds: float,
    sizes: np.ndarray,
    is_key: np.ndarray,
) -> VideoInfo:
    rotation = -first.rotation % 360  # FFmpeg counts counter-clockwise
    if rotation % 90:
        cause = f"rotated by {rotation} degrees; only multiples of 90 can be shown upright"
        raise VideoDecodeError(str(source), "pyav", cause)
    width, height = first.width, first.height
    if rotation % 180:
        width, height = height, width
    span = float(seconds[-1] - seconds[0])
    begin, end = float(seconds[0]), float(seconds[-1]) + last_seconds
    predicted = ~is_key
    return VideoInfo(
        path=source.path,
        container=container,
        codec=codec,
        pixel_format=first.format.name,
        width=width,
        height=height,
        rotation=rotation,
        num_frames=len(seconds),
        fps=(len(seconds) - 1) / span if span > 0 else 1 / last_seconds,
        begin_seconds=begin,
        end_seconds=end,
        is_constant_rate=is_constant_rate(seconds, tick_seconds),
        motion=motion_of(
            seconds[predicted], sizes[predicted] / (width * height), begin=begin, end=end
        ),
    )


def _last_duration(stream: "av.VideoStream", pts: np.ndarray, packet_duration: int) -> float:
    """Seconds that the last frame is shown: its own duration, else the usual gap, else what the header says."""
    if packet_duration > 0:
        return packet_duration * float(stream.time_base)
    if len(pts) > 1 and np.median(np.diff(pts)) > 0:
        return float(np.median(np.diff(pts))) * float(stream.time_base)
    rate = stream.average_rate or stream.base_rate
    return float(1 / rate) if rate else float(stream.time_base)


def _is_hidden_vp8(packet: "av.Packet") -> bool:
    """VP8 stores the reference frames that it never shows as packets of their own."""
    return not bytes(packet)[0] & VP8_SHOW_FRAME_BIT
