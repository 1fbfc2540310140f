"""3D-CNN encoders by name: normalised Lab clips in, one feature map per named stage out.

Stages are called res2..res5 as in pytorchvideo. An encoder is built only up to the deepest stage that someone reads:
parameters without a gradient break DistributedDataParallel at its second step. Weights start random; none are fetched.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from videossl.errors import UserError
from videossl.models import architectures
from videossl.models.architectures import (
    check_colours,
    check_normalization,
    colours_of_lab,
    remove_normalization,
)
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
    weights read, see `videossl.models.architectures`. `frame_wise` makes every temporal kernel 1 frame deep: the
    architecture's 2D form, whose features of a frame depend on that frame alone. `normalization` is "batch" as
    published, or "none".
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


Builder = Callable[[], architectures.Stages]
Natural = dict[str, tuple[int, int, int]]  # channels, temporal stride, spatial stride

# Channels and strides of the published architectures; test_encoder.py holds them against real shapes.
ENCODERS: dict[str, tuple[Builder, Natural]] = {
    "tiny": (
        architectures.tiny,
        {"res2": (48, 1, 4), "res3": (64, 1, 4), "res4": (96, 1, 8), "res5": (128, 1, 16)},
    ),
    "small": (
        architectures.small,
        {"res2": (96, 1, 4), "res3": (128, 1, 4), "res4": (192, 1, 8), "res5": (256, 1, 16)},
    ),
    "slow_r50": (
        architectures.slow_r50,
        {"res2": (256, 1, 4), "res3": (512, 1, 8), "res4": (1024, 1, 16), "res5": (2048, 1, 32)},
    ),
    "x3d_s": (
        architectures.x3d_s,
        {"res2": (24, 1, 4), "res3": (48, 1, 8), "res4": (96, 1, 16), "res5": (192, 1, 32)},
    ),
    "csn_r101": (
        architectures.csn_r101,
        {"res2": (256, 1, 4), "res3": (512, 2, 8), "res4": (1024, 4, 16), "res5": (2048, 8, 32)},
    ),
    "r3d_18": (
        architectures.r3d_18,
        {"res2": (64, 1, 2), "res3": (128, 2, 4), "res4": (256, 4, 8), "res5": (512, 8, 16)},
    ),
    "r2plus1d_18": (
        architectures.r2plus1d_18,
        {"res2": (64, 1, 2), "res3": (128, 2, 4), "res4": (256, 4, 8), "res5": (512, 8, 16)},
    ),
    "s3d": (
        architectures.s3d,
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


def cut_frame_encoder(encoder: Encoder) -> Encoder:
    """A copy that takes (N, 3, 1, H, W): every kernel and stride in time is 1; weights are sums over time."""
    frames = copy.deepcopy(encoder)
    for layer in frames.modules():
        if isinstance(layer, nn.Conv3d):
            with torch.no_grad():
                layer.weight = nn.Parameter(layer.weight.sum(2, keepdim=True))
            _flatten_time(layer)
        elif isinstance(layer, nn.MaxPool3d | nn.AvgPool3d):
            _flatten_time(layer)
    return frames


def _flatten_time(layer: nn.Conv3d | nn.MaxPool3d | nn.AvgPool3d) -> None:
    for name, value in (("kernel_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
        if hasattr(layer, name):
            given = getattr(layer, name)
            _, height, width = (given,) * 3 if isinstance(given, int) else given
            setattr(layer, name, (value, height, width))
    if isinstance(layer, nn.Conv3d):  # what torch keeps beside the padding, for other padding modes
        height, width = int(layer.padding[1]), int(layer.padding[2])
        layer._reversed_padding_repeated_twice = [width, width, height, height, 0, 0]


Kernel = tuple[int, int, int]


def without_temporal_stride(encoder: Encoder, *, dilate: bool) -> Encoder:
    """A copy of the encoder whose stages have temporal stride 1; itself where they have already."""
    if all(info.temporal_stride == 1 for info in encoder.stages.values()):
        return encoder
    dense = copy.deepcopy(encoder)
    rate = 1  # strides taken out so far
    for part in (dense.stem, *dense.blocks.values()):
        layers = [
            (parent, name, layer)
            for parent in part.modules()
            for name, layer in parent.named_children()
            if isinstance(layer, nn.Conv3d | nn.MaxPool3d)
        ]
        # The strided layers of a part are the parallel branches of one downsampling, and come first in it.
        step = max((_as_triple(layer.stride)[0] for _, _, layer in layers), default=1)
        for parent, name, layer in layers:
            is_strided = _as_triple(layer.stride)[0] > 1
            own_rate = rate if is_strided or step == 1 else rate * step
            setattr(parent, name, _in_time(layer, own_rate if dilate else 1))
        rate *= step
    dense.stages = {
        name: StageInfo(info.channels, 1, info.spatial_stride)
        for name, info in dense.stages.items()
    }
    return dense


def _in_time(layer: nn.Conv3d | nn.MaxPool3d, rate: int) -> nn.Module:
    """The layer with temporal stride 1 and its temporal kernel spread by `rate`."""
    kernel, stride, padding, dilation = (
        _as_triple(value)
        for value in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    )
    layer.stride = (1, *stride[1:])
    if kernel[0] == 1:
        return layer
    layer.dilation = (rate, *dilation[1:])
    if isinstance(layer, nn.Conv3d):
        layer.padding = (padding[0] * rate, *padding[1:])
        return layer
    before, reach = padding[0] * rate, (kernel[0] - 1) * rate
    return _PooledInTime(layer, before, reach - before)


class _PooledInTime(nn.Module):
    """A max pool that gives as many frames as it gets: frames before the first and after the last are missing, not zero.

    An unpadded pool looks ahead only. The pool's own padding may not reach as far as a spread kernel.
    """

    def __init__(self, pool: nn.MaxPool3d, before: int, after: int) -> None:
        super().__init__()
        self.pool, self.missing = pool, (before, after)
        pool.padding = (0, *_as_triple(pool.padding)[1:])

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) to T frames."""
        lowest = torch.finfo(x.dtype).min
        return self.pool(functional.pad(x, (0, 0, 0, 0, *self.missing), value=lowest))


def _as_triple(value: Any) -> Kernel:
    return (value, value, value) if isinstance(value, int) else (value[0], value[1], value[2])
