"""Decodes with PyAV, which brings its own FFmpeg: works wherever it installs, and is the reference of the others."""

import itertools
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import NoReturn, Self

import av
import numpy as np
import torch
from torch import Tensor

from videossl.decode.info import VideoDecodeError, as_decode_error, open_container, read_index
from videossl.decode.reader import FrameBatch, gather_frames, indices_shown_at, resized_shape
from videossl.errors import UserError

# These store the presentation time of every frame and an index of key frames. Elsewhere a seek may land anywhere.
SEEKABLE_CONTAINERS = frozenset({"mov", "matroska"})


class PyavReader:
    """A `VideoReader` on the processor, of one thread."""

    backend = "pyav"

    def __init__(self, path: str, *, device: str = "cpu", short_side: int | None = None) -> None:
        """Raises VideoDecodeError for a broken file, UserError for a device other than the processor."""
        if torch.device(device).type != "cpu":
            raise UserError(f"the pyav backend decodes on the cpu only, not on {device}")
        self.path = str(path)
        self._index = read_index(path)
        info = self._index.info
        self.num_frames = info.num_frames
        self.height, self.width = resized_shape(info.height, info.width, short_side)
        self.pts_seconds = torch.from_numpy(self._index.pts_seconds)
        self._key_positions = np.flatnonzero(self._index.is_key)
        self._position_of = {int(pts): at for at, pts in enumerate(self._index.pts)}
        self._native_shape = _stored(info.height, info.width, info.rotation)
        self._scaled_shape = _stored(self.height, self.width, info.rotation)
        with as_decode_error(self.path, "pyav"):
            self._container = open_container(path)
            self._graph = self._build_graph()

    def frames_at(self, indices: Sequence[int]) -> FrameBatch:
        """See `VideoReader.frames_at`."""
        return gather_frames(self._decode, indices, self.pts_seconds)

    def frames_shown_at(self, seconds: Sequence[float]) -> FrameBatch:
        """See `VideoReader.frames_shown_at`."""
        end = self._index.info.end_seconds
        return gather_frames(
            self._decode, indices_shown_at(self.pts_seconds, seconds, end), self.pts_seconds
        )

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
        frames = np.empty((len(indices), *self._scaled_shape, 3), dtype=np.uint8)
        done = 0
        with as_decode_error(self.path, "pyav"):
            while done < len(indices):
                start = self._key_before(indices[done])
                for position, frame in self._frames_from(start):
                    if position == indices[done]:
                        frames[done] = self._to_rgb(frame)
                        done += 1
                        # A key frame between here and the next frame wanted is a shorter way than decoding on.
                        if done == len(indices) or self._key_before(indices[done]) > position:
                            break
                    elif position > indices[done]:
                        self._fail(f"frame {indices[done]} never came out of the decoder")
                else:
                    self._fail(f"the stream ends before frame {indices[done]}")
        upright = np.rot90(frames, -self._index.info.rotation // 90, axes=(1, 2))
        return torch.from_numpy(np.ascontiguousarray(upright)).permute(0, 3, 1, 2)

    def _key_before(self, index: int) -> int:
        """The frame from which decoding must start to show frame `index`."""
        if self._index.times_by_order or self._index.info.container not in SEEKABLE_CONTAINERS:
            return 0
        at = int(np.searchsorted(self._key_positions, index, side="right")) - 1
        return int(self._key_positions[at]) if at >= 0 else 0

    def _frames_from(self, start: int) -> Iterator[tuple[int, "av.VideoFrame"]]:
        """Yields (index, frame) in presentation order, from frame `start` at the latest.

        Frames that come out after a seek but belong before its key frame lack their references and are dropped.
        """
        if start == 0:
            yield from self._frames_from_beginning()
            return
        key_pts = int(self._index.pts[start])
        stream = self._container.streams[self._index.stream_index]
        self._container.seek(key_pts, stream=stream, backward=True)
        packets = self._container.demux(stream)
        head = next(packets, None)
        if head is None or head.pts is None or head.pts > key_pts or not head.is_keyframe:
            yield from self._frames_from_beginning()
            return
        for packet in itertools.chain([head], packets):
            for frame in packet.decode():
                if frame.pts is None or frame.pts >= head.pts:
                    yield self._position(frame), frame

    def _frames_from_beginning(self) -> Iterator[tuple[int, "av.VideoFrame"]]:
        self._container.close()
        self._container = open_container(self.path)
        stream = self._container.streams[self._index.stream_index]
        for order, frame in enumerate(self._container.decode(stream)):
            if self._index.times_by_order:
                yield order, frame
            else:
                yield self._position(frame), frame

    def _position(self, frame: "av.VideoFrame") -> int:
        position = self._position_of.get(frame.pts)
        if position is None:
            self._fail(f"the decoder shows a frame at tick {frame.pts} that no packet announced")
        return position

    def _to_rgb(self, frame: "av.VideoFrame") -> np.ndarray:
        """(h, w, 3) uint8, scaled but not yet upright."""
        if (frame.height, frame.width) != self._native_shape:
            height, width = self._native_shape
            size = f"{frame.width}x{frame.height}"
            self._fail(f"the frame size changes from {width}x{height} to {size} inside the file")
        self._graph.push(frame)
        return self._graph.pull().to_ndarray()

    def _build_graph(self) -> "av.filter.Graph":
        """Scales and converts to RGB as torchcodec and FFmpeg's own tool do.

        `VideoFrame.reformat` takes another way through swscale: up to 112 of 255 away on 10-bit and odd-sized files.
        """
        graph = av.filter.Graph()
        if hasattr(graph, "threads"):
            graph.threads = 1  # more only wait for each other on frames this small
        nodes = [graph.add_buffer(template=self._container.streams[self._index.stream_index])]
        nodes.append(graph.add("format", "rgb24"))
        if self._scaled_shape != self._native_shape:  # after the conversion, as torchcodec does
            height, width = self._scaled_shape
            nodes.append(graph.add("scale", f"{width}:{height}:flags=bilinear"))
        nodes.append(graph.add("buffersink"))
        for source, sink in itertools.pairwise(nodes):
            source.link_to(sink)
        graph.configure()
        return graph

    def _fail(self, cause: str) -> NoReturn:
        raise VideoDecodeError(self.path, "pyav", cause)


def _stored(height: int, width: int, rotation: int) -> tuple[int, int]:
    """The (height, width) before the rotation of a picture shown at this size."""
    return (width, height) if rotation % 180 else (height, width)
