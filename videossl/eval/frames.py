"""Where the frames of a sequence come from: a folder of images, or a video that is decoded as it is read."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from videossl.decode.reader import VideoReader
from videossl.errors import UserError
from videossl.picture_files import UNREADABLE, opened_picture


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
                frames.append(resize_rgb(image.convert("RGB"), size))
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
