"""Takes the temporal strides out of a 3D encoder, so that each frame has features of its own.

Dense: the strides become 1 and all else stays, so deeper layers see frames closer together than in training. Dilated (a
trous): temporal kernels behind a stride are spread by it, and every frame sees what it would have seen in training: at the
frames where the strided encoder answers, the answers are the same.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from videossl.models.encoder import Encoder, StageInfo

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
        step = max((_triple(layer.stride)[0] for _, _, layer in layers), default=1)
        for parent, name, layer in layers:
            is_strided = _triple(layer.stride)[0] > 1
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
        _triple(value) for value in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
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
        pool.padding = (0, *_triple(pool.padding)[1:])

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) to T frames."""
        lowest = torch.finfo(x.dtype).min
        return self.pool(functional.pad(x, (0, 0, 0, 0, *self.missing), value=lowest))


def _triple(value: Any) -> Kernel:
    return (value, value, value) if isinstance(value, int) else (value[0], value[1], value[2])
