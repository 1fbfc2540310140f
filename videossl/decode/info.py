"""A video file's facts, read from its packets without decoding them: the one truth that every reader is held to.

PyAV lists the packets, so the facts need neither torch nor a system FFmpeg. Only the first frame is decoded: rotation
and true size are properties of frames, and a file whose header is sound but whose stream is garbage shows itself there.
"""

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition

from videossl.errors import UserError

NUM_MOTION_BINS = 32
VP8_SHOW_FRAME_BIT = 0x10  # RFC 6386, section 9.1: bit 4 of the first byte of a frame
# A frame may sit this far from the regular grid (as part of the frame interval) in a file of constant rate; chosen.
CONSTANT_RATE_TOLERANCE = 0.05


class VideoDecodeError(UserError):
    """One file that cannot be decoded, with the backend that tried and the cause, in one line."""

    def __init__(self, path: str, backend: str, cause: str) -> None:
        super().__init__(f"{path}: {backend} cannot decode it: {cause}")
        self.path = path
        self.backend = backend
        self.cause = cause

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        # Exceptions are pickled by their message alone, and this one must cross process borders whole.
        return type(self), (self.path, self.backend, self.cause)


@dataclass(frozen=True)
class VideoInfo:
    """What a file holds. Times are seconds on the container's own clock: the first frame need not be at 0."""

    path: str
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
    motion: tuple[float, ...]  # NUM_MOTION_BINS values, see `motion_of`

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

    @property
    def pts_seconds(self) -> np.ndarray:
        """(num_frames,) float64."""
        return self.pts * float(self.time_base)


def probe(path: str | Path) -> VideoInfo:
    """Reads a file's facts. Raises VideoDecodeError for anything that cannot be used."""
    return read_index(path).info


def read_index(path: str | Path, *, backend: str = "pyav") -> VideoIndex:
    """Lists the packets of the best video stream (FFmpeg's choice, as in every backend) and decodes its first frame.

    Packets that an edit list or the codec hides are left out. Raises VideoDecodeError, in the name of `backend`, for a
    missing, empty, truncated or otherwise broken file and for one without video.
    """
    try:
        check_file(path)
        return _read_index(str(path))
    except VideoDecodeError as error:
        raise VideoDecodeError(error.path, backend, error.cause) from error.__cause__


def check_file(path: str | Path) -> None:
    """Raises VideoDecodeError unless `path` is a regular, readable file that is not empty."""
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        raise VideoDecodeError(str(path), "pyav", "no such file") from None
    except OSError as error:
        raise VideoDecodeError(str(path), "pyav", error.strerror or str(error)) from None
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise VideoDecodeError(str(path), "pyav", f"it is {kind}")
    if status.st_size == 0:
        raise VideoDecodeError(str(path), "pyav", "the file is empty (0 bytes)")


def open_container(path: str | Path) -> "av.container.InputContainer":
    """Opens a file for reading; the caller closes it."""
    # An absolute path cannot be mistaken for a protocol ("a:b.mp4"), and phone files carry metadata that is not UTF-8.
    container = av.open(str(Path(path).absolute()), metadata_errors="replace")
    for stream in container.streams.video:
        # Threads over frames delay the output and need more memory; videos are read in parallel instead.
        stream.thread_type = "NONE"
    return container


@contextmanager
def as_decode_error(path: str | Path, backend: str) -> Iterator[None]:
    """Turns PyAV's own exceptions into VideoDecodeError."""
    try:
        yield
    except av.InvalidDataError as error:
        cause = "invalid data (not a video, damaged or truncated)"
        raise VideoDecodeError(str(path), backend, cause) from error
    except av.FFmpegError as error:
        raise VideoDecodeError(str(path), backend, error.strerror or str(error)) from error
    except (IndexError, UnicodeError, MemoryError, EOFError) as error:
        cause = f"{type(error).__name__}: {error}"
        raise VideoDecodeError(str(path), backend, cause) from error


def motion_of(
    seconds: np.ndarray, bytes_per_pixel: np.ndarray, *, begin: float, end: float
) -> tuple[float, ...]:
    """Mean compressed size of the non-key frames in each of NUM_MOTION_BINS equal parts of [begin, end).

    A proxy for motion that costs no decoding: a predicted frame is large where prediction fails. It also grows with
    texture, noise and bit rate, so compare bins of one file, not files. Bins without such a frame are 0.
    """
    span = max(end - begin, 1e-9)
    bins = ((seconds - begin) / span * NUM_MOTION_BINS).astype(int).clip(0, NUM_MOTION_BINS - 1)
    totals = np.bincount(bins, weights=bytes_per_pixel, minlength=NUM_MOTION_BINS)
    counts = np.bincount(bins, minlength=NUM_MOTION_BINS)
    return tuple(float(value) for value in totals / np.maximum(counts, 1))


def _read_index(path: str) -> VideoIndex:
    with as_decode_error(path, "pyav"):
        with open_container(path) as container:
            first = _first_frame(container, path)
        with open_container(path) as container:
            stream = container.streams.best("video")
            _check_not_truncated(container, stream, path)
            return _index_of(container, stream, first, path)


def _first_frame(container: "av.container.InputContainer", path: str) -> "av.VideoFrame":
    stream = container.streams.best("video")
    if not container.streams:
        raise VideoDecodeError(path, "pyav", "it holds no stream at all (damaged or truncated)")
    if stream is None or stream.disposition & Disposition.attached_pic:  # a song with a cover
        kinds = sorted({stream.type for stream in container.streams} - {"video"})
        what = ", ".join(kinds) or "a still picture"
        raise VideoDecodeError(path, "pyav", f"no video stream (it holds {what})")
    frame = next(iter(container.decode(stream)), None)
    if frame is None:
        raise VideoDecodeError(path, "pyav", "the video stream holds no frame")
    return frame


def _check_not_truncated(
    container: "av.container.InputContainer", stream: "av.VideoStream", path: str
) -> None:
    if "mp4" not in container.format.name:  # other indexes do not store byte ranges of frames
        return
    size = Path(path).stat().st_size
    needed = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    if needed > size:
        cause = f"truncated: its index needs {needed} bytes and the file has {size}"
        raise VideoDecodeError(str(path), "pyav", cause)


def _index_of(
    container: "av.container.InputContainer",
    stream: "av.VideoStream",
    first: "av.VideoFrame",
    path: str,
) -> VideoIndex:
    codec = stream.codec_context.codec.canonical_name
    packets = [
        (packet.pts, packet.dts, packet.duration or 0, packet.size, packet.is_keyframe)
        for packet in container.demux(stream)
        if packet.size and not packet.is_discard and not (codec == "vp8" and _is_hidden_vp8(packet))
    ]
    if not packets:
        raise VideoDecodeError(path, "pyav", "the video stream holds no frame")
    has_pts = all(packet[0] is not None for packet in packets)
    times = [packet[0] if has_pts else packet[1] for packet in packets]
    if any(time is None for time in times):
        raise VideoDecodeError(path, "pyav", "it has packets without any time stamp")
    pts = np.array(times, dtype=np.int64)
    order = np.argsort(pts, kind="stable")
    pts = pts[order]
    duration, size, is_key = (
        np.array([packet[column] for packet in packets])[order] for column in (2, 3, 4)
    )
    container_name = container.format.name.split(",")[0]
    return VideoIndex(
        info=_info_of(
            path=path,
            container=container_name,
            codec=codec,
            first=first,
            seconds=pts * float(stream.time_base),
            last_seconds=_last_duration(stream, pts, int(duration[-1])),
            tick_seconds=float(stream.time_base),
            sizes=size,
            is_key=is_key,
        ),
        pts=pts,
        is_key=is_key,
        time_base=stream.time_base,
        stream_index=stream.index,
        times_by_order=container_name == "avi" or not has_pts or bool((np.diff(pts) == 0).any()),
    )


def _info_of(
    *,
    path: str,
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
        raise VideoDecodeError(path, "pyav", cause)
    width, height = first.width, first.height
    if rotation % 180:
        width, height = height, width
    span = float(seconds[-1] - seconds[0])
    begin, end = float(seconds[0]), float(seconds[-1]) + last_seconds
    predicted = ~is_key.astype(bool)
    return VideoInfo(
        path=path,
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


def is_constant_rate(seconds: np.ndarray, tick_seconds: float) -> bool:
    """Whether the ascending times lie on a regular grid, but for the rounding of the container's clock."""
    if len(seconds) < 2:
        return True
    grid = np.linspace(seconds[0], seconds[-1], len(seconds))
    interval = (seconds[-1] - seconds[0]) / (len(seconds) - 1)
    tolerance = max(CONSTANT_RATE_TOLERANCE * interval, min(tick_seconds, interval / 8))
    return bool(interval > 0 and np.abs(seconds - grid).max() <= tolerance + 1e-9)


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
