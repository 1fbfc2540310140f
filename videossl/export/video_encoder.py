"""An encoder that takes videos as they are decoded: its preprocessing is inside, and moves with it.

encoder = videossl.load_encoder("runs/mine")
features = encoder(frames)          # (N, T, 3, H, W) uint8 RGB of any size -> (N, C)
"""

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from videossl.color import normalize_lab, rgb_to_lab
from videossl.errors import UserError
from videossl.io.output_files import whole_file
from videossl.models.encoder import Encoder, pooled
from videossl.models.encoder_file import (
    FILE_FORMAT,
    RECORD_KEY,
    TASK_PREFIX,
    is_encoder_file,
    read_encoder,
    read_record,
    weights_digest,
)
from videossl.types import FeatureMaps
from videossl.version import __version__

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


class VideoEncoder(nn.Module):
    """`encoder(video)` gives (N, C): the mean of stage `stage` over time and space (None: the deepest one).

    A video is (N, T, 3, H, W) uint8 RGB, or (T, 3, H, W) for features (C,). Frames are resized to `clip.resize` pixels at
    the short side, cut to the centre `clip.crop_size` and turned into normalised Lab, all on the device of the weights'
    input. `clip` says how many frames, how far apart, the encoder was made for; others are allowed.

    Raises UserError for a stage that the encoder does not have, and for videos of another shape or type.
    """

    def __init__(self, encoder: Encoder, clip: ClipForm, *, stage: str | None = None) -> None:
        super().__init__()
        self.encoder, self.clip = encoder, clip
        self.stage = next(reversed(encoder.stages)) if stage is None else stage
        if self.stage not in encoder.stages:
            raise UserError(
                f"stage {self.stage!r} is not in this encoder; it has {', '.join(encoder.stages)}"
            )

    @property
    def num_channels(self) -> int:
        """C of the features."""
        return self.encoder.stages[self.stage].channels

    def forward(self, video: Tensor) -> Tensor:
        """Features of whole clips; stages behind `stage` are not computed."""
        own_input = self.preprocess(video)
        stages = list(self.encoder.stages)
        deeper = stages[stages.index(self.stage) + 1 :]
        rows = {name: 0 if name in deeper else own_input.shape[0] for name in stages}
        features = pooled(self.encoder(own_input, rows if deeper else None)[self.stage])
        return features if video.ndim == 5 else features[0]

    def feature_maps(self, video: Tensor) -> dict[str, Tensor]:
        """Every stage's maps, (N, C, T, h, w) each, or (C, T, h, w) of one video; `encoder.stages` has their strides."""
        maps: dict[str, FeatureMaps] = self.encoder(self.preprocess(video))
        return {name: of.data if video.ndim == 5 else of.data[0] for name, of in maps.items()}

    def preprocess(self, video: Tensor) -> Tensor:
        """The encoder's own input: (N, 3, T, crop_size, crop_size) normalised Lab, of the type of the weights.

        It is computed in float32: half the bits are too few for a colour.
        """
        check_video(video)
        if video.ndim == 4:
            video = video[None]
        frames = video.flatten(0, 1).float() / 255
        frames = _centre(self._resized(frames), self.clip.crop_size)
        lab = normalize_lab(rgb_to_lab(frames))
        own_input = lab.unflatten(0, video.shape[:2]).transpose(1, 2).contiguous()
        return own_input.to(next(self.encoder.parameters()).dtype)

    def _resized(self, frames: Tensor) -> Tensor:
        is_traced = torch.compiler.is_exporting()  # sizes are then symbols of a graph for any
        short = (torch.sym_min if is_traced else min)(*frames.shape[-2:])
        if not is_traced and short == self.clip.resize:
            return frames
        # To the nearest pixel, as videos are scaled when they are decoded.
        size: list[Any] = [
            (2 * side * self.clip.resize + short) // (2 * short) for side in frames.shape[-2:]
        ]
        if is_traced:
            for side in size:
                torch._check(side >= self.clip.crop_size)
        return F.interpolate(frames, size, mode="bilinear", antialias=True).clamp(0, 1)

    def describe(self) -> dict[str, Any]:
        """Plain types, from which `VideoEncoder.of_description` builds it again, without weights."""
        return {**self.encoder.describe(), "stage": self.stage, "clip": self.clip.describe()}

    @classmethod
    def of_description(
        cls,
        described: Mapping[str, Any],
        encoder: Encoder | None = None,
        *,
        stage: str | None = None,
    ) -> "VideoEncoder":
        """The module that `describe` described, around `encoder` (None: one with fresh weights), read at `stage` if given.

        Raises UserError where the description is none.
        """
        try:
            clip, own_stage = ClipForm(**described["clip"]), str(described["stage"])
        except (KeyError, TypeError) as error:
            raise UserError(f"this does not describe a video encoder: {error}") from error
        return cls(encoder or Encoder.of_description(described), clip, stage=stage or own_stage)


def check_video(video: Tensor) -> None:
    """Raises UserError for videos of another shape or type than encoders take."""
    if not isinstance(video, Tensor):
        hint = "; torch.from_numpy makes one of an array" if hasattr(video, "__array__") else ""
        raise UserError(f"a video must be a torch tensor, got {type(video).__name__}{hint}")
    if video.dtype != torch.uint8 or video.ndim not in (4, 5) or video.shape[-3] != 3:
        raise UserError(
            f"a video must be uint8 RGB (N, T, 3, H, W) or (T, 3, H, W), got {video.dtype} {tuple(video.shape)}"
            + _remedy(video)
        )
    frames, _, height, width = video.shape[-4:]
    if frames == 0 or height == 0 or width == 0:
        raise UserError(f"a video must have a frame and a pixel at least, got {tuple(video.shape)}")


def _remedy(video: Tensor) -> str:
    if video.dtype != torch.uint8:
        return ": give pixels from 0 to 255 as uint8"
    if video.shape[-1:] == (3,):
        return "; move the channels with video.movedim(-1, -3)"
    return (
        "; swap time and channels with video.transpose(-4, -3)"
        if video.shape[-4:-3] == (3,)
        else ""
    )


def _centre(frames: Tensor, size: int) -> Tensor:
    height, width = frames.shape[-2:]
    top, left = (height - size) // 2, (width - size) // 2
    return frames[..., top : top + size, left : left + size]


def encoder_record(encoder: VideoEncoder, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What every exported file says of its encoder, in plain types; `facts` are those of its making."""
    weights = {name: tensor.cpu() for name, tensor in encoder.encoder.state_dict().items()}
    return {
        "format": FILE_FORMAT,
        "version": __version__,
        "encoder": encoder.describe(),
        "weights_sha256": weights_digest(weights),
        "facts": dict(facts),
    }


def write_encoder_file(
    path: str | Path,
    encoder: VideoEncoder,
    facts: Mapping[str, Any] | None = None,
    *,
    task: tuple[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """Writes `encoder` to `path`, which must end in .safetensors. Raises UserError if it cannot be written.

    `task` is the name and the weights of the pretext task that made it track, which adapting it goes on with.
    """
    if not is_encoder_file(path):
        raise UserError(f"{path}: the name of an encoder file must end in .safetensors")
    weights = {n: t.cpu().contiguous() for n, t in encoder.encoder.state_dict().items()}
    record = encoder_record(encoder, facts or {})
    if task is not None:
        name, task_weights = task[0], {n: t.cpu().contiguous() for n, t in task[1].items()}
        record["task"] = {"name": name, "weights_sha256": weights_digest(task_weights)}
        weights |= {TASK_PREFIX + n: tensor for n, tensor in task_weights.items()}
    data = save(weights, {"format": "pt", RECORD_KEY: json.dumps(record)})
    with whole_file(path) as partial:
        partial.write_bytes(data)


def read_encoder_file(
    path: str | Path, *, stage: str | None = None, untrained_seed: int | None = None
) -> VideoEncoder:
    """The encoder of a file in evaluation mode; `stage` replaces the one that it was exported with.

    Raises UserError if the file is damaged, lies or is another's.
    """
    encoder = read_encoder(path, untrained_seed=untrained_seed)
    described = read_record(path)["encoder"]
    try:
        return VideoEncoder.of_description(described, encoder, stage=stage).eval()
    except UserError as error:
        raise UserError(f"encoder file {path}: {error}") from error
