"""3D-CNN encoders by name: normalised Lab clips in, one feature map per named stage out.

Stages are called res2..res5 as in pytorchvideo. An encoder is built only up to the deepest stage that someone reads:
parameters without a gradient break DistributedDataParallel at its second step. Weights start random; none are fetched.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from videossl.errors import UserError
from videossl.models import zoo
from videossl.models.colours import check_colours, colours_of_lab
from videossl.models.normalization import check_normalization, remove_normalization
from videossl.types import FeatureMaps

STAGES = ("res2", "res3", "res4", "res5")


@dataclass(frozen=True)
class StageInfo:
    """What a stage gives: channels, input frames per feature frame, pixels per cell."""

    channels: int
    temporal_stride: int
    spatial_stride: int


@dataclass(frozen=True)
class EncoderSpec:
    """All that is needed to build an encoder again: stored in every checkpoint.

    `keep_time` sets every temporal stride to 1, so that each frame has its own features. `max_stride` caps the spatial
    stride (in pixels per cell) by setting later strides to 1; None keeps the published ones. `colours` are those that the
    weights read, see `videossl.models.colours`. `frame_wise` makes every temporal kernel 1 frame deep: the architecture's 2D
    form, whose features of a frame depend on that frame alone. `normalization` is "batch" as published, or "none".
    """

    name: str
    deepest_stage: str = "res5"
    keep_time: bool = True
    max_stride: int | None = None
    colours: str = "lab"
    frame_wise: bool = False
    normalization: str = "batch"


@dataclass(frozen=True)
class Segment:
    """Rows [start, stop) of an encoder's input; backward in time if `is_reversed`."""

    start: int
    stop: int
    is_reversed: bool

    def __len__(self) -> int:
        return self.stop - self.start


class Encoder(nn.Module):
    """A named 3D-CNN cut after `spec.deepest_stage`.

    `encoder(x)` takes (N, 3, T, H, W) and returns a FeatureMaps per stage; H and W should be multiples of the deepest
    stage's spatial stride. `track_stage` is the stage whose features correspond best, if a task was trained for that.

    Raises UserError for an unknown name, stage, colours or normalization, for a `max_stride` or `frame_wise` that the
    architecture cannot meet.
    """

    def __init__(self, spec: EncoderSpec, *, track_stage: str | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.track_stage = track_stage
        if spec.name not in ENCODERS:
            raise UserError(
                f"encoder {spec.name!r} is unknown; allowed: {', '.join(sorted(ENCODERS))}"
            )
        if spec.deepest_stage not in STAGES:
            raise UserError(
                f"stage {spec.deepest_stage!r} is unknown; allowed: {', '.join(STAGES)}"
            )
        if track_stage not in (None, *STAGES[: STAGES.index(spec.deepest_stage) + 1]):
            raise UserError(
                f"track_stage {track_stage!r} is not in an encoder up to {spec.deepest_stage}"
            )
        check_colours(spec.colours)
        check_normalization(spec.normalization)
        build, natural = ENCODERS[spec.name]
        stem, blocks = build()
        names = STAGES[: STAGES.index(spec.deepest_stage) + 1]
        self.stem = stem
        self.blocks = nn.ModuleDict({name: blocks[name] for name in names})
        if spec.frame_wise:
            if not spec.keep_time:
                raise UserError(
                    "an encoder that is frame_wise has no temporal stride: it needs keep_time=true"
                )
            for part in (self.stem, *self.blocks.values()):
                _flatten_in_time(part)
        if spec.normalization == "none":
            remove_normalization([self.stem, *self.blocks.values()])
        infos = {name: StageInfo(*natural[name]) for name in names}
        if spec.keep_time:
            _limit_stride([self.stem, *self.blocks.values()], axes=(0,), limit=1)
            infos = {n: StageInfo(i.channels, 1, i.spatial_stride) for n, i in infos.items()}
        if spec.max_stride is not None:
            reached = _limit_stride(
                [self.stem, *self.blocks.values()], axes=(1, 2), limit=spec.max_stride
            )
            if reached > spec.max_stride:
                raise UserError(
                    f"{spec.name} cannot have max_stride {spec.max_stride}: its stem alone has {reached}"
                )
            infos = {
                n: StageInfo(i.channels, i.temporal_stride, min(i.spatial_stride, spec.max_stride))
                for n, i in infos.items()
            }
        self.stages: dict[str, StageInfo] = infos
        parts = [self.stem, *self.blocks.values()]
        self._num_frame_wise = next(
            (index for index, part in enumerate(parts) if not _is_frame_wise(part)), len(parts)
        )
        if spec.frame_wise and self._num_frame_wise < len(parts):
            raise UserError(
                f"{spec.name} cannot be frame_wise: it has layers that average over time"
            )

    @property
    def frame_wise_stages(self) -> tuple[str, ...]:
        """The first stages, as far as each frame's features depend on that frame alone."""
        return tuple(self.blocks)[: max(0, self._num_frame_wise - 1)]

    def forward(
        self,
        x: Tensor,
        rows_per_stage: Mapping[str, int] | None = None,
        segments: Sequence[Segment] | None = None,
    ) -> dict[str, FeatureMaps]:
        """(N, 3, T, H, W) of normalised Lab to {stage: FeatureMaps}.

        `rows_per_stage[stage]` keeps only the leading rows from that stage on, so rows ordered by the deepest stage that
        reads them do no work that nobody looks at. A stage with 0 rows ends the pass. `segments` are the rows that go on
        behind the frame-wise stages, in this order: what a clip shows backward in time needs no work of its own before.
        """
        x = colours_of_lab(x, self.spec.colours)
        features: dict[str, FeatureMaps] = {}
        for index, (name, block) in enumerate([("", self.stem), *self.blocks.items()]):
            if segments is not None and index == self._num_frame_wise:
                x = _regroup(x, segments)
            if not name:
                x = block(x)
                continue
            if rows_per_stage is not None:
                if rows_per_stage[name] == 0:
                    break
                x = x[: rows_per_stage[name]]
            x = block(x)
            info = self.stages[name]
            features[name] = FeatureMaps(x, info.temporal_stride, info.spatial_stride)
        return features

    def describe(self) -> dict[str, Any]:
        """Plain types for a file, from which `Encoder.of_description` builds it again, without weights."""
        return {"spec": asdict(self.spec), "track_stage": self.track_stage}

    @classmethod
    def of_description(cls, described: Mapping[str, Any]) -> "Encoder":
        """The encoder that `describe` described, with fresh weights. Raises UserError where the description is none."""
        try:
            spec, track_stage = EncoderSpec(**described["spec"]), described["track_stage"]
            return cls(spec, track_stage=track_stage)
        except (KeyError, TypeError) as error:
            raise UserError(f"this does not describe an encoder: {error}") from error


def _regroup(x: Tensor, segments: Sequence[Segment]) -> Tensor:
    rows = [x[s.start : s.stop].flip(2) if s.is_reversed else x[s.start : s.stop] for s in segments]
    return torch.cat(rows)


# What leaves frames apart if its kernel and stride along time are 1, or whatever they are.
_BY_KERNEL = (nn.Conv3d, nn.MaxPool3d, nn.AvgPool3d)
_ALWAYS = (nn.modules.batchnorm._BatchNorm, nn.ReLU, nn.SiLU, nn.Identity, nn.Dropout)


def _is_frame_wise(part: nn.Module) -> bool:
    """Whether a frame's output depends on that frame alone; a layer that is not known counts as one that mixes them."""
    for layer in part.modules():
        if any(True for _ in layer.children()):
            continue
        if isinstance(layer, _BY_KERNEL):
            if _triple(layer.kernel_size)[0] != 1 or _triple(layer.stride)[0] != 1:
                return False
        elif not isinstance(layer, _ALWAYS):
            return False
    return True


Builder = Callable[[], zoo.Stages]
Natural = dict[str, tuple[int, int, int]]  # channels, temporal stride, spatial stride

# Channels and strides of the published architectures; test_encoder.py holds them against real shapes.
ENCODERS: dict[str, tuple[Builder, Natural]] = {
    "tiny": (
        zoo.tiny,
        {"res2": (48, 1, 4), "res3": (64, 1, 4), "res4": (96, 1, 8), "res5": (128, 1, 16)},
    ),
    "small": (
        zoo.small,
        {"res2": (96, 1, 4), "res3": (128, 1, 4), "res4": (192, 1, 8), "res5": (256, 1, 16)},
    ),
    "slow_r50": (
        zoo.slow_r50,
        {"res2": (256, 1, 4), "res3": (512, 1, 8), "res4": (1024, 1, 16), "res5": (2048, 1, 32)},
    ),
    "x3d_s": (
        zoo.x3d_s,
        {"res2": (24, 1, 4), "res3": (48, 1, 8), "res4": (96, 1, 16), "res5": (192, 1, 32)},
    ),
    "csn_r101": (
        zoo.csn_r101,
        {"res2": (256, 1, 4), "res3": (512, 2, 8), "res4": (1024, 4, 16), "res5": (2048, 8, 32)},
    ),
    "r3d_18": (
        zoo.r3d_18,
        {"res2": (64, 1, 2), "res3": (128, 2, 4), "res4": (256, 4, 8), "res5": (512, 8, 16)},
    ),
    "r2plus1d_18": (
        zoo.r2plus1d_18,
        {"res2": (64, 1, 2), "res3": (128, 2, 4), "res4": (256, 4, 8), "res5": (512, 8, 16)},
    ),
    "s3d": (
        zoo.s3d,
        {"res2": (192, 2, 4), "res3": (480, 2, 8), "res4": (832, 4, 16), "res5": (1024, 8, 32)},
    ),
}


def _limit_stride(modules: list[nn.Module], *, axes: tuple[int, ...], limit: int) -> int:
    """Sets to 1 every stride along `axes` of (T, H, W) that would pass `limit`; returns the stride reached.

    `modules` is the stem, whose strided layers follow each other, then the stages, whose strided layers are the parallel
    branches of one downsampling (s3d's stages hold a single pool). A spatial stride inside a stem stays.
    """
    reached = 1
    for position, module in enumerate(modules):
        layers = [m for m in module.modules() if isinstance(m, nn.Conv3d | nn.MaxPool3d)]
        steps = {m: max(_triple(m.stride)[axis] for axis in axes) for m in layers}
        steps = {layer: step for layer, step in steps.items() if step > 1}
        is_stem = position == 0
        step = math.prod(steps.values()) if is_stem else max(steps.values(), default=1)
        if reached * step <= limit or (is_stem and limit > 1):
            reached *= step
            continue
        for layer in steps:
            _unstride(layer, axes)
    return reached


def _flatten_in_time(part: nn.Module) -> None:
    """Every temporal kernel becomes 1 frame deep, without padding; convolutions are drawn anew."""
    for layer in part.modules():
        if not isinstance(layer, nn.Conv3d | nn.MaxPool3d):
            continue
        kernel, padding = _triple(layer.kernel_size), _triple(layer.padding)
        if kernel[0] == 1:
            continue
        layer.kernel_size, layer.padding = (1, *kernel[1:]), (0, *padding[1:])
        if isinstance(layer, nn.Conv3d):
            layer.weight = nn.Parameter(torch.empty_like(layer.weight[:, :, :1]))
            layer.reset_parameters()


def _unstride(layer: nn.Conv3d | nn.MaxPool3d, axes: tuple[int, ...]) -> None:
    """Stride 1 along `axes`; an unpadded pool also loses its extent there, or it would eat the border."""
    stride, kernel = list(_triple(layer.stride)), list(_triple(layer.kernel_size))
    padding = _triple(layer.padding)
    for axis in axes:
        stride[axis] = 1
        if isinstance(layer, nn.MaxPool3d) and padding[axis] == 0:
            kernel[axis] = 1
    layer.stride = (stride[0], stride[1], stride[2])
    if isinstance(layer, nn.MaxPool3d):
        layer.kernel_size = (kernel[0], kernel[1], kernel[2])


def _triple(value: Any) -> tuple[int, int, int]:
    return (value, value, value) if isinstance(value, int) else tuple(value)


def count_parameters(module: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def pooled(features: FeatureMaps) -> Tensor:
    """(N, C): the mean over time and space of a stage."""
    return torch.mean(features.data, dim=(2, 3, 4))
