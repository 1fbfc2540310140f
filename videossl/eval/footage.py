"""What is tracked: the frames of one sequence and the masks that may be known, from a DAVIS tree or a user's own video."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from videossl.decode.backends import open_video
from videossl.errors import UserError
from videossl.eval.davis import DavisSequence
from videossl.eval.frames import FrameSource, ImageFrames, VideoFrames
from videossl.eval.mask_files import IndexMask, object_ids, read_first_mask

DAVIS_FRAMES_PER_SECOND = 24.0


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
    """A user's own video and the mask of its first frame.

    Raises UserError for a file that cannot be read and a mask of another size or without an object.
    """
    first_mask = read_first_mask(mask)
    reader = open_video(str(video))
    source = VideoFrames(reader)
    if first_mask.shape != source.native_size:
        raise UserError(
            f"{mask} is {first_mask.shape[1]}x{first_mask.shape[0]} but the frames of {video} are "
            f"{reader.width}x{reader.height}"
        )
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
