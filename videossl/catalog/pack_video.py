"""One video -> its shots as small mp4 files that decode fast: bars cropped, cut at cuts, scaled, of constant rate.

The files are a function of the video, the settings and the versions of FFmpeg and x264: one thread, no dates, no tags.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import ColorRange

from videossl.catalog.cuts_and_bars import FilterChain
from videossl.catalog.inspect import DecodedFrames, deepened, inspect_video
from videossl.catalog.pack_plan import Shot, output_size, plan_shots
from videossl.catalog.pack_settings import PackSettings
from videossl.data.entry import VideoEntry, sound_entry
from videossl.decode.container import as_decode_error, open_container, video_stream
from videossl.decode.index import VideoIndex, VideoInfo, current_index, read_index
from videossl.decode.source import VideoSource
from videossl.errors import VideoDecodeError

PRESET = "veryfast"


@dataclass(frozen=True)
class PackedShot:
    """One file, and its manifest row, in which path and offset are not yet those of the shard."""

    content: bytes
    entry: VideoEntry
    shot: Shot


@dataclass(frozen=True)
class PackedVideo:
    """All that one source gave."""

    shots: list[PackedShot]
    num_short: int  # shots dropped for their length


def pack_video(entry: VideoEntry, settings: PackSettings) -> PackedVideo:
    """Decodes a video once and encodes its shots.

    Raises VideoDecodeError for one that is damaged or has changed since the scan.
    """
    source = entry.source
    index = current_index(source, entry.index(), "pyav")
    shots, num_short = plan_shots(index, entry.cuts, settings)
    try:
        with as_decode_error(source, "pyav"), open_container(source) as container:
            stream = video_stream(container, source)
            decoded = DecodedFrames(container, stream, by_decoding=index.by_decoding)
            frames = _numbered(decoded, index)
            picture = _Picture(stream, entry, index.info, settings)
            contents = [_encode(shot, frames, picture, settings) for shot in shots]
        if decoded.errors:
            raise ValueError(f"damaged: {decoded.errors} decoder errors")
    except VideoDecodeError:
        raise
    except ValueError as error:
        raise VideoDecodeError(str(source), "pyav", str(error)) from None
    packed = [
        PackedShot(content, _row_of(content, entry), shot)
        for shot, content in zip(shots, contents, strict=True)
    ]
    return PackedVideo(packed, num_short)


class _Picture:
    """Crops, scales, turns upright and converts frames to 4:2:0 of 8 bits and limited range."""

    def __init__(
        self, stream: "av.VideoStream", entry: VideoEntry, info: VideoInfo, settings: PackSettings
    ) -> None:
        self._stream, self._info = stream, info
        self._crop, self.size = output_size(
            entry.width, entry.height, entry.bars, settings.short_side
        )
        self._chain: FilterChain | None = None
        self.color: dict[str, int] = {}

    def __call__(self, frame: "av.VideoFrame") -> "av.VideoFrame":
        if self._chain is None:
            self._chain = FilterChain(frame, self._stream.time_base, self._filters())
            self.color = _color_of(frame)
        return self._chain(frame)

    def _filters(self) -> list[str]:
        """In terms of the picture as stored: turning it last turns the fewest pixels."""
        info = self._info
        orientation = info.orientation
        top, bottom, left, right = orientation.stored_sides(self._crop)
        stored_height, stored_width = orientation.stored(info.height, info.width)
        height, width = orientation.stored(self.size[1], self.size[0])
        square = [] if info.has_square_pixels else [f"scale={stored_width}:{stored_height}"]
        return [
            *square,
            f"crop={stored_width - left - right}:{stored_height - top - bottom}:{left}:{top}",
            f"scale={width}:{height}:flags=bicubic:out_range=limited",
            *orientation.filters(),
            "format=yuv420p",
        ]


def _numbered(
    frames: Iterator["av.VideoFrame"], index: VideoIndex
) -> Iterator[tuple[int, "av.VideoFrame"]]:
    """(index, frame) in order; a frame whose time is unknown or out of order is left out."""
    last = -1
    for count, frame in enumerate(frames):
        at = count
        if not index.times_by_order and frame.pts is not None:
            at = int(np.searchsorted(index.pts, frame.pts))
            if at == len(index.pts) or index.pts[at] != frame.pts:
                continue
        if last < at < len(index.pts):
            last = at
            yield at, frame


def _encode(
    shot: Shot,
    frames: Iterator[tuple[int, "av.VideoFrame"]],
    picture: _Picture,
    settings: PackSettings,
) -> bytes:
    """The mp4 of the next shot: takes from `frames` up to the last it needs. Raises ValueError if one is missing."""
    buffer, number, stream = io.BytesIO(), 0, None
    with _open_output(buffer) as output:
        for wanted, repeats in zip(*np.unique(shot.frames, return_counts=True), strict=True):
            at, frame = next((pair for pair in frames if pair[0] >= wanted), (None, None))
            if frame is None or at != wanted:
                raise ValueError(f"damaged: frame {wanted} never came out of the decoder")
            shown = picture(frame)
            if stream is None:
                stream = _add_stream(output, shot, picture, settings)
            for _ in range(repeats):
                shown.pts, shown.time_base = number, 1 / shot.rate
                shown.pict_type = PictureType.NONE  # the source's own would be copied
                output.mux(stream.encode(shown))
                number += 1
        assert stream is not None
        output.mux(stream.encode())
    return buffer.getvalue()


def _open_output(buffer: io.BytesIO) -> "av.container.OutputContainer":
    """An mp4 with its index in front, so that a reader needs no seek, and without dates and versions."""

    def reread(url: str, flags: int, options: dict[str, str]) -> BinaryIO:
        return io.BytesIO(buffer.getvalue())  # to move the index, the muxer reads what it wrote

    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    return av.open(buffer, "w", format="mp4", options=options, io_open=reread)


def _add_stream(
    output: "av.container.OutputContainer",
    shot: Shot,
    picture: _Picture,
    settings: PackSettings,
) -> "av.VideoStream":
    stream = output.add_stream("libx264", rate=shot.rate)
    stream.width, stream.height = picture.size
    stream.pix_fmt = "yuv420p"
    stream.thread_count = 1  # with more, the bytes depend on their number
    stream.codec_context.time_base = 1 / shot.rate
    for name, value in picture.color.items():
        setattr(stream.codec_context, name, value)
    stream.options = {
        "preset": PRESET,
        "tune": "fastdecode",  # nearly twice as fast to decode
        "crf": str(settings.crf),
        "g": str(settings.gop),
        "keyint_min": str(settings.gop),
        # x264's macroblock tree looks ahead: what nothing follows gets fewer bits, and a network asked for the direction
        # of time might see it. It also gave other bytes for the same pictures in 10 of 2,800 runs (x264 165, AVX-512);
        # without it, in none of 5,167.
        "mbtree": "0",
        "sc_threshold": "0",  # key frames only where they are due
        "bf": "0",
    }
    return stream


def _color_of(frame: "av.VideoFrame") -> dict[str, int]:
    """What a decoder must know to get the source's colours back."""
    color = {"color_range": int(ColorRange.MPEG)}
    if frame.format.is_rgb:  # swscale makes of it what decoders take unmarked files for
        return color
    names = ("colorspace", "color_primaries", "color_trc")
    return color | {name: int(getattr(frame, name)) for name in names}


def _row_of(content: bytes, source: VideoEntry) -> VideoEntry:
    """The manifest row of a packed file, read from its bytes."""
    import fsspec

    memory = fsspec.filesystem("memory")
    name = "/videossl-packed.mp4"
    memory.pipe_file(name, content)
    try:
        packed = VideoSource(f"memory:/{name}")
        index = read_index(packed)
        row = sound_entry(index, packed, group=source.group, label=source.label)
        return deepened(row, inspect_video(packed, index)) if source.is_deep else row
    finally:
        memory.rm_file(name)
