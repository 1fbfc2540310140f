"""A video's facts, read from its packets: the one truth that every reader is held to.

PyAV lists the packets, so the facts need neither torch nor a system FFmpeg. Only the first frame is decoded: orientation
and true size are properties of frames, and a file whose header is sound but whose stream is garbage shows itself there.
Where the packets do not tell which frames are shown, all are decoded (`videossl.decode.shown_frames`).
"""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypedDict

import av
import numpy as np

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
from videossl.decode.orientation import Orientation, orientation_of
from videossl.decode.shown_frames import ShownFrames, container_name, list_shown_frames
from videossl.decode.source import VideoSource, as_source
from videossl.decode.timing import is_constant_rate, motion_of
from videossl.errors import VideoDecodeError

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
    motion: tuple[float, ...]  # NUM_MOTION_BINS values, see `videossl.decode.timing.motion_of`

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
    has_closed_groups: bool = (
        False  # a key frame is followed by frames shown before it (open groups of pictures)
    )
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
