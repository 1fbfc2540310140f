"""Encoders without batch normalisation, whose random weights track far better than with it (docs/tracking_ablations.md)."""

from collections.abc import Iterable

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from videossl.errors import UserError

NORMALIZATIONS = ("batch", "none")


def check_normalization(name: str) -> None:
    """Raises UserError for a name that is not known."""
    if name not in NORMALIZATIONS:
        raise UserError(f"normalization {name!r} is unknown; allowed: {', '.join(NORMALIZATIONS)}")


def remove_normalization(parts: Iterable[nn.Module]) -> None:
    """Takes every batch normalisation out, in place: the convolution in front of it does what it did in evaluation.

    One that has seen no batch has mean 0 and variance 1 there. Raises UserError where no convolution stands in front.
    """
    for part in parts:
        _remove(part, None)


def _remove(module: nn.Module, before: nn.Conv3d | None) -> nn.Conv3d | None:
    """`before` is the convolution that ran last; returns the one that has run last then."""
    for name, layer in list(module.named_children()):
        if isinstance(layer, nn.Conv3d):
            before = layer
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
            if before is None or before.out_channels != layer.num_features:
                raise UserError(
                    "encoder.normalization=none needs a convolution in front of every batch normalisation"
                )
            assert layer.running_mean is not None
            assert layer.running_var is not None
            before.weight, bias = fuse_conv_bn_weights(
                before.weight,
                before.bias,
                layer.running_mean,
                layer.running_var,
                layer.eps,
                layer.weight,
                layer.bias,
            )
            before.bias = nn.Parameter(bias.detach())  # to be trained, also where there was none
            setattr(module, name, nn.Identity())
        else:
            before = _remove(layer, before)
    return before
