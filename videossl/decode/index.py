"""A video's facts, read from its packets: which frames it shows, when and how they are turned; the truth for all readers."""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypedDict

import av
import numpy as np
from av.sidedata.sidedata import Type

from videossl.decode.container import (
    MAX_PIXELS,
    as_decode_error,
    check_counts,
    check_no_slide_show,
    check_not_truncated,
    logged_errors,
    open_container,
    refused_size,
    video_stream,
)
from videossl.decode.shown_frames import ShownFrames, container_name, list_shown_frames
from videossl.decode.source import VideoSource, as_source
from videossl.errors import VideoDecodeError

NUM_MOTION_BINS = 32
# A frame may sit this far from the regular grid (as part of the frame interval) in a file of constant rate; chosen.
CONSTANT_RATE_TOLERANCE = 0.05
# Both ends of a file are marked by its codec (a logistic regression on frame statistics tells forward from backward with
# 94-100 % there): its last second, or the last tenth of one shorter than SHORT_FILE_SECONDS, and its first frame.
END_MARGIN_SECONDS = 1.0
END_MARGIN_SHARE = 0.1
SHORT_FILE_SECONDS = 5.0


def is_constant_rate(seconds: np.ndarray, tick_seconds: float) -> bool:
    """Whether the ascending times lie on a regular grid, but for the rounding of the container's clock."""
    if len(seconds) < 2:
        return True
    grid = np.linspace(seconds[0], seconds[-1], len(seconds))
    interval = (seconds[-1] - seconds[0]) / (len(seconds) - 1)
    tolerance = max(CONSTANT_RATE_TOLERANCE * interval, min(tick_seconds, interval / 8))
    return bool(interval > 0 and np.abs(seconds - grid).max() <= tolerance + 1e-9)


def tick_deltas(ticks: np.ndarray) -> np.ndarray:
    """What `frame_ticks` needs beside the first and the last tick: nothing for a regular file, else the differences."""
    if np.array_equal(_regular_ticks(int(ticks[0]), int(ticks[-1]), len(ticks)), ticks):
        return np.empty(0, dtype=np.int64)
    return np.diff(ticks)


def frame_ticks(first: int, last: int, num_frames: int, deltas: Sequence[int]) -> np.ndarray:
    """(num_frames,) int64 presentation ticks: the inverse of `tick_deltas`, to the tick."""
    if len(deltas) == 0:
        return _regular_ticks(first, last, num_frames)
    return np.concatenate([[first], first + np.cumsum(np.asarray(deltas, dtype=np.int64))])


def _regular_ticks(first: int, last: int, num_frames: int) -> np.ndarray:
    """Evenly spaced times, rounded to the clock in integers: the same on every machine."""
    if num_frames == 1:
        return np.array([first], dtype=np.int64)
    steps = np.arange(num_frames, dtype=np.int64)
    return first + (2 * steps * (last - first) + num_frames - 1) // (2 * (num_frames - 1))


def usable_seconds(begin: float, end: float, fps: float) -> tuple[float, float]:
    """What is left of the file [begin, end) without its first frame and its end; may be empty (first >= second)."""
    frame = 1 / fps if fps > 0 else 0.0
    seconds = max(end - begin, 0.0)
    share = END_MARGIN_SHARE * seconds
    margin = share if seconds < SHORT_FILE_SECONDS else END_MARGIN_SECONDS
    return begin + frame, end - max(margin, frame)


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


_NUM_MATRIX_BYTES = 36  # nine 32-bit numbers: a, b, u, c, d, v, x, y, w
# Clockwise quarter turns as FFmpeg's filters.
_TURNS: tuple[list[str], ...] = (
    [],
    ["transpose=clock"],
    ["hflip", "vflip"],
    ["transpose=cclock"],
)


@dataclass(frozen=True)
class Orientation:
    """What turns a stored picture into the one shown: a mirror image left to right first, then quarter turns."""

    quarter_turns: int = 0  # clockwise: 0, 1, 2 or 3
    is_mirrored: bool = False

    @property
    def is_on_its_side(self) -> bool:
        """Whether width and height change places."""
        return bool(self.quarter_turns % 2)

    def stored(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) as stored of a picture shown at this size."""
        return (width, height) if self.is_on_its_side else (height, width)

    def upright(self, pictures: np.ndarray, *, rows: int) -> np.ndarray:
        """A view of stored pictures as they are shown; axis `rows` and the one after it are height and width."""
        if self.is_mirrored:
            pictures = np.flip(pictures, rows + 1)
        return np.rot90(pictures, -self.quarter_turns, axes=(rows, rows + 1))

    def filters(self) -> list[str]:
        """FFmpeg's filters that do the same."""
        return ["hflip"] * self.is_mirrored + _TURNS[self.quarter_turns]

    def stored_sides(self, shown: Sequence[int]) -> tuple[int, int, int, int]:
        """What lies at (top, bottom, left, right) of the stored picture, of what lies there as shown."""
        top, bottom, left, right = shown
        for _ in range(
            self.quarter_turns
        ):  # undone one by one: what is shown at the top was at the left
            top, bottom, left, right = right, left, top, bottom
        return (top, bottom, right, left) if self.is_mirrored else (top, bottom, left, right)


def orientation_of(frame: "av.VideoFrame") -> Orientation:
    """The orientation that the display matrix of a decoded frame states; the stored one where there is none.

    Raises ValueError for an angle that is no multiple of 90 degrees.
    """
    matrix = frame.side_data.get(
        Type.DISPLAYMATRIX
    )  # iterating gives keys from PyAV 19 on, and items before
    if matrix is None or matrix.buffer_size < _NUM_MATRIX_BYTES:
        return Orientation()
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix)[:_NUM_MATRIX_BYTES])
    return _of_matrix(a, b, c, d)


def _of_matrix(a: int, b: int, c: int, d: int) -> Orientation:
    """The orientation that x' = a x + c y and y' = b x + d y states, with y downward."""
    is_mirrored = a * d - b * c < 0
    if is_mirrored:  # what is left to do after x -> -x
        a, b = -a, -b
    degrees = math.degrees(math.atan2(b, a)) % 360 if (a, b) != (0, 0) else 0.0
    turns = round(degrees / 90)
    if abs(degrees - 90 * turns) > 0.5:
        cause = f"rotated by {degrees:.0f} degrees"
        raise ValueError(f"{cause}; only multiples of 90 can be shown upright")
    return Orientation(turns % 4, is_mirrored)


MAX_ROUNDING = 0.02  # a pixel of 50; true shapes begin at 16:15


@dataclass(frozen=True)
class VideoInfo:
    """What a video holds. Times are seconds on the container's own clock: the first frame need not be at 0."""

    path: str  # of the file, or of the shard that it is a member of
    container: str
    codec: str
    pixel_format: str
    width: int  # as shown: upright, in square pixels
    height: int
    stored_width: int  # as decoded: before it is turned, and in pixels of whatever shape
    stored_height: int
    rotation: int  # clockwise degrees from stored to shown: 0, 90, 180 or 270
    is_mirrored: bool  # left to right, before it is turned
    num_frames: int
    fps: float  # average: (n - 1) / (last pts - first pts)
    begin_seconds: float  # pts of the first frame
    end_seconds: float  # pts of the last frame plus its duration
    is_constant_rate: bool
    motion: tuple[float, ...]  # NUM_MOTION_BINS values, see `videossl.decode.index.motion_of`

    @property
    def duration_seconds(self) -> float:
        """How long the file shows frames."""
        return self.end_seconds - self.begin_seconds

    @property
    def orientation(self) -> Orientation:
        """What turns stored pictures into those shown."""
        return Orientation(self.rotation // 90, self.is_mirrored)

    @property
    def upright_stored_shape(self) -> tuple[int, int]:
        """(height, width) of the stored pictures once they are upright, in pixels of whatever shape."""
        stored = (self.stored_height, self.stored_width)
        return self.orientation.stored(*stored)  # to change places is its own inverse

    @property
    def has_square_pixels(self) -> bool:
        """Whether the pictures are shown at the size at which they are stored."""
        return self.upright_stored_shape == (self.height, self.width)


@dataclass(frozen=True)
class VideoIndex:
    """The frames that are shown, in presentation order, and the facts drawn from them."""

    info: VideoInfo
    pts: np.ndarray  # (num_frames,) int64 ticks, ascending
    is_key: np.ndarray  # (num_frames,) bool
    time_base: Fraction
    stream_index: int
    # Times do not tell frames apart (AVI stores none, packets repeat one, a clock jumps back): the k-th frame decoded from
    # the beginning is frame k, whatever time the decoder writes on it, and seeking is not possible.
    times_by_order: bool
    num_bytes: int  # of the file, when it was read: another size is another file
    by_decoding: bool = False  # the packets did not tell which frames are shown: all were decoded
    # No frame that follows a key frame in the file is shown before it (closed groups of pictures).
    has_closed_groups: bool = False
    joins: tuple[int, ...] = ()  # frames with which another recording begins
    digest: str = ""  # as `VideoSource.ends_digest`; "" where unknown

    @property
    def pts_seconds(self) -> np.ndarray:
        """(num_frames,) float64."""
        return self.pts * float(self.time_base)


def probe(source: str | Path | VideoSource) -> VideoInfo:
    """Reads a video's facts. Raises VideoDecodeError for anything that cannot be used."""
    return read_index(source).info


def read_index(
    source: str | Path | VideoSource, *, backend: str = "pyav", may_decode: bool = True
) -> VideoIndex:
    """Lists the frames that the best video stream shows, in one pass over the file where its packets tell them.

    Frames that an edit list or the codec hides are left out, and those that nothing can decode. Raises VideoDecodeError,
    in the name of `backend`, for a missing, empty, truncated or otherwise broken file, for one without video and for one
    beyond the limits of `videossl.decode.container`. With `may_decode` false it takes no longer than reading the file, and
    raises `videossl.decode.shown_frames.FramesNotTold` where that does not tell the frames.
    """
    source = as_source(source)
    try:
        num_bytes = source.size()
        # What FFmpeg logs of a stream that begins amid its frames is no news, and would bury what is.
        with (
            as_decode_error(source, "pyav"),
            logged_errors(),
            open_container(source) as container,
        ):
            stream = video_stream(container, source)
            check_not_truncated(stream, source, num_bytes)
            shown = list_shown_frames(container, stream, source, may_decode=may_decode)
            return _index_of(container, stream, source, num_bytes, shown)
    except VideoDecodeError as error:
        cause = error.cause
        if isinstance(error.__cause__, av.FFmpegError) and (size := refused_size(source)):
            cause = f"its stream announces {size} pixels, the limit is {MAX_PIXELS}"
        raise VideoDecodeError(error.path, backend, cause) from error.__cause__


def current_index(source: VideoSource, index: VideoIndex | None, backend: str) -> VideoIndex:
    """The index given, or read now. Raises VideoDecodeError for a local file that is no longer the indexed one."""
    if index is None:
        return read_index(source, backend=backend)
    if source.is_local_file and (num_bytes := source.size()) != index.num_bytes:
        cause = f"it has changed since the scan, from {index.num_bytes} to {num_bytes} bytes: scan again"
        raise VideoDecodeError(str(source), backend, cause)
    if source.is_local_file and index.digest and source.ends_digest() != index.digest:
        cause = "it has changed since the scan, though not in size: scan again"
        raise VideoDecodeError(str(source), backend, cause)
    return index


def _index_of(
    container: "av.container.InputContainer",
    stream: "av.VideoStream",
    source: VideoSource,
    num_bytes: int,
    shown: ShownFrames,
) -> VideoIndex:
    codec, announced = stream.codec_context.codec.canonical_name, stream.frames
    tick_seconds = float(stream.time_base)
    # Counted from the first frame: what is far from 0 has lost its last digits.
    seconds = (shown.pts - shown.pts[0]) * tick_seconds
    last_seconds = _last_duration(stream, shown)
    # An mp4 counts what it stores, of which an edit list may show little, and its index is held to its size above.
    if "mp4" not in container.format.name:
        check_counts(source, announced=announced, num_held=shown.num_held)
    duration = float(seconds[-1]) + last_seconds
    check_no_slide_show(source, num_frames=len(seconds), seconds=duration)
    shape = _shape_of(shown.first, stream.sample_aspect_ratio, source)
    predicted = ~shown.is_key
    info = VideoInfo(
        path=source.path,
        container=container_name(container),
        codec=codec,
        pixel_format=shown.first.format.name,
        **shape,
        num_frames=len(seconds),
        fps=_rate_of(shown.pts, stream.time_base) or 1 / last_seconds,
        begin_seconds=float(shown.pts[0]) * tick_seconds,
        end_seconds=float(shown.pts[-1]) * tick_seconds + last_seconds,
        is_constant_rate=is_constant_rate(seconds, tick_seconds),
        motion=motion_of(
            seconds[predicted],
            shown.num_bytes[predicted] / (shape["width"] * shape["height"]),
            begin=0.0,
            end=duration,
        ),
    )
    return VideoIndex(
        info=info,
        pts=shown.pts,
        is_key=shown.is_key,
        time_base=stream.time_base,
        stream_index=stream.index,
        times_by_order=shown.times_by_order,
        num_bytes=num_bytes,
        by_decoding=shown.by_decoding,
        has_closed_groups=shown.has_closed_groups,
        joins=shown.joins,
        digest=source.ends_digest(),
    )


class _Shape(TypedDict):
    width: int
    height: int
    stored_width: int
    stored_height: int
    rotation: int
    is_mirrored: bool


def _shape_of(first: "av.VideoFrame", pixel_aspect: Fraction | None, source: VideoSource) -> _Shape:
    """The size and the orientation of the frames; pixels that are not square change the width, as `ffplay` does it.

    A shape off by less than MAX_ROUNDING was rounded to even sizes when the file was scaled: to scale it once more by a
    pixel or two would blur it, for nothing that an eye can see.
    """
    try:
        orientation = orientation_of(first)
    except ValueError as error:
        raise VideoDecodeError(str(source), "pyav", str(error)) from None
    aspect = float(pixel_aspect or 1)
    is_square = abs(aspect - 1) < MAX_ROUNDING
    square_width = first.width if is_square else max(1, round(first.width * aspect))
    if square_width * first.height > MAX_PIXELS:
        size = f"{square_width}x{first.height}"
        cause = f"it is shown at {size} pixels, the limit is {MAX_PIXELS}"
        raise VideoDecodeError(str(source), "pyav", cause)
    height, width = orientation.stored(first.height, square_width)  # its own inverse
    return {
        "width": width,
        "height": height,
        "stored_width": first.width,
        "stored_height": first.height,
        "rotation": 90 * orientation.quarter_turns,
        "is_mirrored": orientation.is_mirrored,
    }


def _rate_of(pts: np.ndarray, time_base: Fraction) -> float:
    """Mean frames a second, exactly; 0 where there is no time between the first and the last frame."""
    ticks = int(pts[-1]) - int(pts[0])
    return float((len(pts) - 1) / (ticks * time_base)) if ticks > 0 else 0.0


def _last_duration(stream: "av.VideoStream", shown: ShownFrames) -> float:
    """Seconds that the last frame is shown: its own duration, else the usual gap, else what the header says."""
    if shown.last_duration > 0:
        return shown.last_duration * float(stream.time_base)
    if len(shown.pts) > 1 and np.median(np.diff(shown.pts)) > 0:
        return float(np.median(np.diff(shown.pts))) * float(stream.time_base)
    rate = stream.average_rate or stream.base_rate
    return float(1 / rate) if rate else float(stream.time_base)
