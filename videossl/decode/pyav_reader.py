"""Decodes with PyAV, which brings its own FFmpeg: works wherever it installs, and is the reference of the others.

It decodes only what the frames wanted depend on: frames that no other refers to are never decoded unless they are
wanted themselves, and the rest of a group of pictures is passed over once its last wanted frame is there.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

import av
import numpy as np
import torch
from torch import Tensor

from videossl.decode.container import as_decode_error, open_container, plane_rows, to_rgb
from videossl.decode.index import VideoIndex, current_index
from videossl.decode.reader import (
    FrameBatch,
    gather_frames,
    indices_shown_at,
    resized_shape,
    say_seek_fails,
)
from videossl.decode.shown_frames import decode_packets
from videossl.decode.source import VideoSource, as_source
from videossl.errors import UserError, VideoDecodeError

# These store the presentation time of every frame and an index of key frames. Elsewhere a seek may land anywhere.
SEEKABLE_CONTAINERS = frozenset({"mov", "matroska"})
# Their decoders obey, packet by packet, the order to skip frames without dependants. (dav1d loses wanted frames.)
SKIPPING_CODECS = frozenset({"h264", "hevc", "mpeg4", "mpeg2video", "mpeg1video"})
# Reading on to a key frame this near costs less than a seek, which goes back to the file's index; chosen by measuring.
FRAMES_WORTH_A_SEEK = 64
GBR = (1, 2, 0)  # the colour channel of each plane


class PyavReader:
    """A `VideoReader` on the processor, of one thread."""

    backend = "pyav"

    def __init__(
        self,
        source: str | Path | VideoSource,
        *,
        device: str = "cpu",
        short_side: int | None = None,
        index: VideoIndex | None = None,
    ) -> None:
        """`index` of an earlier reading of the file saves reading all of its packets again.

        Raises VideoDecodeError for a broken file, UserError for a device other than the processor.
        """
        if torch.device(device).type != "cpu":
            raise UserError(f"the pyav backend decodes on the cpu only, not on {device}")
        self._source = as_source(source)
        self.path = str(self._source)
        self._index = current_index(self._source, index, self.backend)
        info = self._index.info
        self.num_frames = info.num_frames
        self.height, self.width = resized_shape(info.height, info.width, short_side)
        self.pts_seconds = torch.from_numpy(self._index.pts_seconds)
        self._key_positions = np.flatnonzero(self._index.is_key)
        self._orientation = info.orientation
        self._native_shape = (info.stored_height, info.stored_width)
        self._scaled_shape = self._orientation.stored(self.height, self.width)
        # The scaler is quicker into planes, the plain conversion into pixels.
        self._is_planar = self._scaled_shape != self._native_shape
        height, width = self._scaled_shape
        self._picture_shape = (3, height, width) if self._is_planar else (height, width, 3)
        self._is_known = index is not None
        with as_decode_error(self._source, self.backend):
            self._container = self._open()
            self._stream()  # says at once that it has changed
        self._is_at_start = True
        self._in_order: Iterator[tuple[int, av.VideoFrame]] = iter(())
        self._next_in_order = self.num_frames  # the frame that `_in_order` gives next

    def frames_at(self, indices: Sequence[int] | Tensor) -> FrameBatch:
        """See `VideoReader.frames_at`."""
        return gather_frames(self._decode, indices, self.pts_seconds)

    def indices_shown_at(self, seconds: Sequence[float]) -> Tensor:
        """See `VideoReader.indices_shown_at`."""
        return indices_shown_at(self.pts_seconds, seconds, self._index.info.end_seconds)

    def frames_shown_at(self, seconds: Sequence[float]) -> FrameBatch:
        """See `VideoReader.frames_shown_at`."""
        return self.frames_at(self.indices_shown_at(seconds))

    def close(self) -> None:
        """Frees the file and the decoder."""
        self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _decode(self, indices: list[int]) -> Tensor:
        """(n, 3, H, W) of ascending, distinct indices, in one forward pass."""
        # NumPy, because torch's copies wake all cores for each small frame, and readers run side by side.
        pictures = np.empty((len(indices), *self._picture_shape), dtype=np.uint8)
        with as_decode_error(self._source, self.backend):
            missing = self._fill(pictures, indices, self._frames_wanted(indices))
            if missing is not None and not self._index.times_by_order:
                # A decoder that starts amid an intra refresh, for one, holds back frames until it is sure of them.
                say_seek_fails(self.path, "frames do not come out after a seek")
                missing = self._fill(pictures, indices, self._frames_from_start(indices))
        if missing is not None:
            self._fail(f"frame {missing} never came out of the decoder")
        upright = self._orientation.upright(pictures, rows=2 if self._is_planar else 1)
        frames = torch.from_numpy(np.ascontiguousarray(upright))
        return frames if self._is_planar else frames.permute(0, 3, 1, 2)

    def _fill(
        self,
        pictures: np.ndarray,
        indices: list[int],
        frames: Iterator[tuple[int, "av.VideoFrame"]],
    ) -> int | None:
        """Converts the frames into `pictures`, (n, ...); returns the first index that did not come in its turn, if any."""
        done = 0
        for position, frame in frames:
            if position != indices[done]:
                break
            self._to_rgb(frame, pictures[done])
            done += 1
            if done == len(indices):
                return None
        return indices[done] if indices else None

    def _frames_from_start(self, indices: list[int]) -> Iterator[tuple[int, "av.VideoFrame"]]:
        """Yields (index, frame) of these frames, by decoding everything from the beginning."""
        position_of = dict(zip(self._index.pts[indices].tolist(), indices, strict=True))
        packets, _ = self._packets_from(0)
        for frame in self._all_frames(packets):
            if frame.pts in position_of:
                yield position_of[frame.pts], frame

    def _frames_wanted(self, indices: list[int]) -> Iterator[tuple[int, "av.VideoFrame"]]:
        """Yields (index, frame) of these frames in presentation order."""
        if self._index.times_by_order:
            yield from self._frames_by_order(indices)
            return
        position_of = dict(zip(self._index.pts[indices].tolist(), indices, strict=True))
        packets: Iterator[av.Packet] | None = None
        landing = _Landing(None)
        last, fed, stream = 0, set[int](), self._stream()
        groups = [(k, list(g)) for k, g in itertools.groupby(indices, key=self._key_before)]
        for number, (key, members) in enumerate(groups):
            next_key = groups[number + 1][0] if number + 1 < len(groups) else None
            # With open groups of pictures, the next key frame is decoded before the last frames of a group.
            if packets is None or int(self._index.pts[key]) not in fed:
                if packets is None or key - last > FRAMES_WORTH_A_SEEK:
                    packets, landing = self._packets_from(key)
                    stream = self._stream()
                else:
                    packets, landing = self._skip_to(packets, key)
            last = members[-1]
            frames = itertools.chain(
                self._decode_until_fed(packets, members, fed, stream),
                self._flushed(stream, fed, next_key),
            )
            for frame in frames:
                if landing.is_exact(frame) and frame.pts in position_of:
                    yield position_of[frame.pts], frame

    def _flushed(
        self, stream: "av.VideoStream", fed: set[int], next_key: int | None
    ) -> Iterator["av.VideoFrame"]:
        """What waits to be put in order, unless decoding goes on into the group of the next key frame."""
        if next_key is None or int(self._index.pts[next_key]) not in fed:
            yield from stream.decode(None)
            stream.codec_context.flush_buffers()

    def _frames_by_order(self, indices: list[int]) -> Iterator[tuple[int, "av.VideoFrame"]]:
        """Yields (index, frame) of these frames, counted from the beginning; goes on from the frame read last."""
        if indices and indices[0] < self._next_in_order:
            packets, _ = self._packets_from(0)
            self._in_order, self._next_in_order = enumerate(self._all_frames(packets)), 0
        wanted = set(indices)
        for at, frame in self._in_order:
            self._next_in_order = at + 1
            if at in wanted:
                yield at, frame

    def _all_frames(self, packets: Iterator["av.Packet"]) -> Iterator["av.VideoFrame"]:
        """Every frame that comes out. What the index passed over when it counted by decoding is passed over here too."""
        for _, frames, error in decode_packets(packets):
            if error is not None and not self._index.by_decoding:
                raise error
            yield from frames

    def _frames_of(self, packet: "av.Packet") -> list["av.VideoFrame"]:
        try:
            return packet.decode()
        except av.FFmpegError:
            if self._index.by_decoding:  # which found no frame in it either
                return []
            raise

    def _decode_until_fed(
        self,
        packets: Iterator["av.Packet"],
        members: list[int],
        fed: set[int],
        stream: "av.VideoStream",
    ) -> Iterator["av.VideoFrame"]:
        """Decodes until every frame of `members` has gone in; a frame that nobody refers to goes in only if wanted."""
        wanted = {int(tick) for tick in self._index.pts[members]}
        missing = wanted - fed
        may_skip, skips = self._index.info.codec in SKIPPING_CODECS, None
        context = stream.codec_context
        for packet in packets if missing else ():
            if not packet.size:
                return
            tick = packet.pts
            fed.add(tick)
            missing.discard(tick)
            if may_skip and skips != (tick not in wanted):
                skips = tick not in wanted
                context.skip_frame = "NONREF" if skips else "DEFAULT"
            yield from self._frames_of(packet)
            if not missing:
                return

    def _key_before(self, index: int) -> int:
        """The frame from which decoding must start to show frame `index`."""
        if self._index.info.container not in SEEKABLE_CONTAINERS:
            return 0
        at = int(np.searchsorted(self._key_positions, index, side="right")) - 1
        return int(self._key_positions[at]) if at >= 0 else 0

    def _packets_from(self, key: int) -> tuple[Iterator["av.Packet"], "_Landing"]:
        """The packets from that of the key frame, or from an earlier one, on; and where that is."""
        if key > 0:
            self._is_at_start = False
            key_tick, stream = int(self._index.pts[key]), self._stream()
            self._container.seek(key_tick, stream=stream, backward=True)
            packets = self._container.demux(stream)
            head = next(packets, None)
            if head is not None and head.pts is not None and head.pts <= key_tick:
                landing = _Landing(head.pts if head.is_keyframe else None)
                return itertools.chain([head], packets), landing
        if not self._is_at_start:
            self._container.close()
            self._container = self._open()
        self._is_at_start = False
        return self._container.demux(self._stream()), _Landing(None)

    def _skip_to(
        self, packets: Iterator["av.Packet"], key: int
    ) -> tuple[Iterator["av.Packet"], "_Landing"]:
        """The rest of the packets from that of the key frame on, and where that is."""
        key_tick = int(self._index.pts[key])
        rest = itertools.dropwhile(lambda packet: packet.size and packet.pts != key_tick, packets)
        return rest, _Landing(key_tick)

    def _open(self) -> "av.container.InputContainer":
        known = self._index.info.container if self._is_known else None
        return open_container(self._source, known_format=known)

    def _stream(self) -> "av.VideoStream":
        """Raises VideoDecodeError where a file that was overwritten since the scan has no such stream."""
        streams, at = self._container.streams, self._index.stream_index
        if at >= len(streams) or streams[at].type != "video" or streams[at].codec_context is None:
            self._fail(f"its stream {at} is no video any more: it has changed since the scan")
        if streams[at].format is None:
            self._fail("the pixel format of its stream is unknown (damaged)")
        return streams[at]

    def _to_rgb(self, frame: "av.VideoFrame", picture: np.ndarray) -> None:
        """Fills `picture`, (3, h, w) or (h, w, 3) uint8, scaled but not yet upright."""
        height, width = self._native_shape
        if (frame.height, frame.width) != (height, width):
            size = f"{frame.width}x{frame.height}"
            self._fail(f"the frame size changes from {width}x{height} to {size} inside the file")
        scaled = self._scaled_shape if self._is_planar else None
        planes = to_rgb(frame, scaled).planes
        height, width = self._scaled_shape
        for channel, plane in zip(GBR, planes, strict=False):
            rows = plane_rows(plane)
            if self._is_planar:
                picture[channel] = rows[:height, :width]
            else:
                picture[:] = rows[:height, : 3 * width].reshape(height, width, 3)

    def _fail(self, cause: str) -> NoReturn:
        raise VideoDecodeError(self.path, self.backend, cause)


class _Landing:
    """The key frame with which decoding began, at this tick; None: the beginning of the file, or a place unknown."""

    def __init__(self, tick: int | None) -> None:
        self._tick = tick
        self._has_arrived = tick is None
        self._is_held_back = False

    def is_exact(self, frame: "av.VideoFrame") -> bool:
        """Whether the next frame that comes out is what decoding from the beginning of the file would give."""
        if self._tick is None:
            return True
        if (
            frame.pts is None or frame.pts < self._tick
        ):  # belongs before the key frame and lacks its references
            return False
        # A decoder that lands amid an intra refresh holds back what comes before it has gone round, and the rest is not
        # exact either.
        self._is_held_back |= not self._has_arrived and frame.pts != self._tick
        self._has_arrived = True
        return not self._is_held_back
