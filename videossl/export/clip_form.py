"""How an encoder wants a clip shown: so many frames, so far apart, this large. Part of an encoder as its weights are."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from videossl.errors import UserError

MOST = 8192  # frames or pixels, chosen: a file that says more was not made by measuring a video


@dataclass(frozen=True)
class ClipForm:
    """`num_frames` frames `seconds_between_frames` apart, of short side `resize`, cut to the centre `crop_size` pixels.

    Raises UserError for counts that are none, a gap that is not above 0, and a crop larger than the frame.
    """

    num_frames: int = 8
    seconds_between_frames: float = 2 / 15
    resize: int = 122
    crop_size: int = 112

    def __post_init__(self) -> None:
        counts = (self.num_frames, self.resize, self.crop_size)
        if not all(type(count) is int and 1 <= count <= MOST for count in counts):
            raise UserError(
                f"num_frames, resize and crop_size of a clip must be whole numbers of 1 to {MOST}, got {self}"
            )
        if not 0 < self.seconds_between_frames < math.inf:
            raise UserError(f"seconds_between_frames of a clip must be above 0, got {self}")
        if self.resize < self.crop_size:
            raise UserError(
                f"crop_size {self.crop_size} is larger than the frame's short side, resize {self.resize}"
            )

    @classmethod
    def of_config(cls, config: Mapping[str, Any], stride: int) -> "ClipForm":
        """What a run of this config sees of its labelled videos (`monitor.knn`), in whole cells of `stride` pixels.

        The frame's border is left out as in training (`augment.border`). A checkpoint without a config has the defaults.
        """
        if not config:
            return cls()
        knn = config["monitor"]["knn"]
        crop_size = max(1, config["data"]["short_side"] // stride) * stride
        resize = round(crop_size / (1 - 2 * config["augment"]["border"]))
        return cls(knn["num_frames"], knn["seconds_between_frames"], resize, crop_size)

    @property
    def clip_seconds(self) -> float:
        """From the first to the last frame."""
        return (self.num_frames - 1) * self.seconds_between_frames

    def describe(self) -> dict[str, float | int]:
        """Plain types, from which `ClipForm(**...)` builds it again."""
        return asdict(self)
