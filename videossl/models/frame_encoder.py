"""A frame encoder cut from a 3D-CNN: what the network sees of a video that stands still.

In a still video every frame of a map is the same, so a kernel in time answers as its sum over time does: each is replaced
by that, and a single frame gives, away from the ends, exactly the features of a still video of any length.
"""

import copy

import torch
from torch import nn

from videossl.models.encoder import Encoder


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
