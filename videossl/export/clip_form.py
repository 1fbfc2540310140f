"""How an encoder wants a clip shown: so many frames, so far apart, this large. Part of an encoder as its weights are."""

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from videossl.errors import UserError

log = logging.getLogger("videossl")

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
        gap = self.seconds_between_frames
        if not (_is_number(gap) and gap > 0):
            raise UserError(f"seconds_between_frames of a clip must be above 0, got {self}")
        if self.resize < self.crop_size:
            raise UserError(
                f"crop_size {self.crop_size} is larger than the frame's short side, resize {self.resize}"
            )

    @classmethod
    def of_config(cls, config: Mapping[str, Any], stride: int) -> "ClipForm":
        """What a run of this config sees of its labelled videos (`monitor.knn`), in whole cells of `stride` pixels.

        The frame's border is left out as in training (`augment.border`). A checkpoint without a config has the defaults, and
        so has one whose config is older than one of these settings, which is logged.

        Raises UserError for settings that no run has.
        """
        if not config:
            return cls()
        try:
            knn, border = config["monitor"]["knn"], config["augment"]["border"]
            short_side = config["data"]["short_side"]
            times = knn["num_frames"], knn["seconds_between_frames"]
        except KeyError as error:
            log.warning("the config in the checkpoint has no %s: its clips are %s", error, cls())
            return cls()
        except TypeError as error:
            raise UserError(f"the config in the checkpoint is none of a run: {error}") from error
        if not (_is_number(border) and 0 <= border < 0.5 and _is_number(short_side)):
            raise UserError(
                f"the config in the checkpoint is none of a run: augment.border {border!r} (allowed: 0 to below 0.5), "
                f"data.short_side {short_side!r} (allowed: pixels)"
            )
        crop_size = max(1, int(short_side) // stride) * stride
        return cls(*times, resize=round(crop_size / (1 - 2 * border)), crop_size=crop_size)

    @property
    def clip_seconds(self) -> float:
        """From the first to the last frame."""
        return (self.num_frames - 1) * self.seconds_between_frames

    def describe(self) -> dict[str, float | int]:
        """Plain types, from which `ClipForm(**...)` builds it again."""
        return asdict(self)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
