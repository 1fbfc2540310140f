"""What is tracked: the frames of one sequence and the masks that may be known, from a DAVIS tree or a user's own video."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from videossl.decode.backends import open_video
from videossl.decode.index import VideoInfo, read_index
from videossl.decode.reader import VideoReader
from videossl.errors import UserError
from videossl.io.index_masks import IndexMask, object_ids, read_first_mask
from videossl.io.pictures import UNREADABLE, opened_picture, rgb_of
from videossl.tracking.davis import DavisSequence


class FrameSource(Protocol):
    """The frames of one sequence, at any size asked for."""

    num_frames: int
    native_size: tuple[int, int]  # (H, W)

    def read(self, indices: Sequence[int], size: tuple[int, int]) -> Tensor:
        """These frames resized to (H, W): (n, 3, H, W) uint8 RGB."""
        ...


class ImageFrames:
    """Frames that lie in a folder as images."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self.num_frames = len(self.paths)
        with _opened(self.paths[0]) as image:
            self.native_size = (image.height, image.width)

    def read(self, indices: Sequence[int], size: tuple[int, int]) -> Tensor:
        """See FrameSource. Raises UserError for a damaged image."""
        frames = []
        for index in indices:
            with _opened(self.paths[index]) as image:
                frames.append(resize_rgb(rgb_of(image), size))
        return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image file to work on; what it raises on the way is a UserError."""
    try:
        with opened_picture(path) as image:
            yield image
    except UNREADABLE as error:
        raise UserError(f"{path}: damaged image ({error})") from None


class VideoFrames:
    """Frames of an open video, decoded when asked for and resized at once; by one thread at a time."""

    def __init__(self, reader: VideoReader) -> None:
        self.reader = reader
        self._reading = Lock()
        self.num_frames = reader.num_frames
        self.native_size = (reader.height, reader.width)

    def read(self, indices: Sequence[int], size: tuple[int, int]) -> Tensor:
        """See FrameSource."""
        with self._reading:
            decoded = self.reader.frames_at(list(indices)).data
        frames = decoded.permute(0, 2, 3, 1).cpu().numpy()
        resized = [resize_rgb(Image.fromarray(frame), size) for frame in frames]
        return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)


def resize_rgb(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """An RGB image at (H, W), (H, W, 3) uint8, bicubic with antialiasing."""
    if (image.height, image.width) != size:
        image = image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(image)


DAVIS_FRAMES_PER_SECOND = 24.0

_log = logging.getLogger("videossl")


@dataclass(frozen=True)
class Footage:
    """Frames and the mask of the first. Nothing here can reach a later mask of an object that was there before."""

    name: str
    source: FrameSource
    frame_names: tuple[str, ...]  # file stems of the masks to write
    first_mask: IndexMask
    object_ids: tuple[int, ...]
    frames_per_second: float
    # By frame, the masks of objects that are there for the first time (YouTube-VOS).
    later_masks: Mapping[int, IndexMask] = field(default_factory=dict)

    def frame_at(self, index: int) -> Tensor:
        """A frame at its own size, (3, H, W) uint8 RGB."""
        return self.source.read([index], self.source.native_size)[0]


def davis_footage(sequence: DavisSequence) -> Footage:
    """A DAVIS sequence without its later masks."""
    return Footage(
        name=sequence.name,
        source=ImageFrames(sequence.frame_paths),
        frame_names=sequence.frame_names,
        first_mask=sequence.mask(0),
        object_ids=sequence.object_ids,
        frames_per_second=DAVIS_FRAMES_PER_SECOND,
    )


def video_footage(video: Path, mask: Path) -> Footage:
    """A user's own video and the mask of its first frame, which is scaled to the frames where it is of their shape.

    Raises UserError for a file that cannot be read and a mask of another shape or without an object.
    """
    given = read_first_mask(mask)
    index = read_index(str(video))
    reader = open_video(str(video), index=index)
    source = VideoFrames(reader)
    first_mask = _fitted(given, mask, source, info=index.info)
    ids = object_ids(first_mask)
    if not ids:
        raise UserError(f"{mask} holds no object: every pixel is background")
    seconds = float(reader.pts_seconds[-1] - reader.pts_seconds[0])
    return Footage(
        name=video.stem,
        source=source,
        frame_names=tuple(f"{index:05d}" for index in range(reader.num_frames)),
        first_mask=first_mask,
        object_ids=ids,
        frames_per_second=(reader.num_frames - 1) / seconds
        if seconds > 0
        else DAVIS_FRAMES_PER_SECOND,
    )


def _fitted(given: IndexMask, path: Path, source: VideoFrames, *, info: VideoInfo) -> IndexMask:
    """A mask at the size of the frames: as given, or scaled from their shape or from the size at which they are stored."""
    size, height, width = given.shape, *source.native_size
    if size == (height, width):
        return given
    said = f"{path} is {size[1]}x{size[0]} but the frames of {info.path} are {width}x{height}"
    if not _is_scaled(size, source.native_size) and size != info.upright_stored_shape:
        raise UserError(f"{said}: give a mask of that size, or one of the same shape")
    _log.info("%s: the mask is scaled to them (nearest neighbour)", said)
    scaled = Image.fromarray(given).resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(scaled)


def _is_scaled(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether (H, W) is that of the other at some scale, each side rounded, if need be to an even number."""
    least = max((side - 1) / of for side, of in zip(one, other, strict=True))
    most = min((side + 1) / of for side, of in zip(one, other, strict=True))
    return least <= most
