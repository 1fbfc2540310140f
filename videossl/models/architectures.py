"""The 3D CNNs that an encoder can be, and how each is changed to keep time and space."""

import importlib
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from videossl.color import denormalize_lab, lab_to_rgb
from videossl.errors import UserError

Stages = tuple[nn.Module, Mapping[str, nn.Module]]


def _pytorchvideo(module: str, name: str) -> Any:
    """A builder of pytorchvideo.models, loaded where it is asked for: with torchvision it takes two seconds."""
    with warnings.catch_warnings():
        # pytorchvideo scripts functions at import, which torch calls deprecated: nothing a user could mend.
        warnings.simplefilter("ignore", FutureWarning)
        return getattr(importlib.import_module(f"pytorchvideo.models.{module}"), name)


def slow_r50() -> Stages:
    """Slow pathway of SlowFast, ResNet-50 (Feichtenhofer et al., ICCV 2019): 3D kernels in res4 and res5 only."""
    return _of_blocks(
        _pytorchvideo("resnet", "create_resnet")(
            stem_conv_kernel_size=(1, 7, 7),
            stage_conv_a_kernel_size=((1, 1, 1), (1, 1, 1), (3, 1, 1), (3, 1, 1)),
            model_num_class=1,
        )
    )


def x3d_s() -> Stages:
    """X3D-S (Feichtenhofer, CVPR 2020)."""
    build = _pytorchvideo("x3d", "create_x3d")
    return _of_blocks(build(input_clip_length=13, input_crop_size=160, model_num_class=1))


def csn_r101() -> Stages:
    """ir-CSN ResNet-101 (Tran et al., ICCV 2019): depthwise 3x3x3 kernels."""
    build = _pytorchvideo("csn", "create_csn")
    return _of_blocks(build(model_depth=101, stem_pool=nn.MaxPool3d, model_num_class=1))


def r3d_18() -> Stages:
    """R3D-18 (Tran et al., CVPR 2018)."""
    from torchvision.models.video import r3d_18  # half a second to load, which few encoders need

    return _of_video_resnet(r3d_18(weights=None))


def r2plus1d_18() -> Stages:
    """R(2+1)D-18 (Tran et al., CVPR 2018)."""
    from torchvision.models.video import r2plus1d_18

    return _of_video_resnet(r2plus1d_18(weights=None))


def s3d() -> Stages:
    """S3D (Xie et al., ECCV 2018), its 16 layers grouped at the pools."""
    from torchvision.models.video import s3d as build

    layers = list(build(weights=None).features)
    stem = nn.Sequential(*layers[:2])  # convolution and pool: stride (2, 4, 4)
    blocks = {
        "res2": nn.Sequential(*layers[2:4]),
        "res3": nn.Sequential(*layers[4:7]),
        "res4": nn.Sequential(*layers[7:13]),
        "res5": nn.Sequential(*layers[13:]),
    }
    return stem, blocks


def tiny() -> Stages:
    """A narrow residual network that trains on a CPU: frame-wise at stride 4 up to res3, 3D kernels in res4 and res5.

    The division of labour of slow_r50: what tracks is a frame's own appearance at stride 4, what tells order sees time.
    """
    return _of_widths(32, 48, 64, 96, 128)


def small() -> Stages:
    """`tiny` with twice the channels: four times its work."""
    return _of_widths(64, 96, 128, 192, 256)


def _of_widths(stem_width: int, *widths: int) -> Stages:
    """The network that `tiny` describes, with so many channels in its stem and in res2 to res5."""
    stem = nn.Sequential(
        OrderedDict(
            conv=nn.Conv3d(3, stem_width, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False),
            norm=nn.BatchNorm3d(stem_width),
            activation=nn.ReLU(),
            pool=nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        )
    )
    res2, res3, res4, res5 = widths
    return stem, {
        "res2": nn.Sequential(_basic_block(stem_width, res2), _basic_block(res2, res2)),
        "res3": nn.Sequential(_basic_block(res2, res3), _basic_block(res3, res3)),
        "res4": nn.Sequential(_basic_block(res3, res4, frames=3, stride=2)),
        "res5": nn.Sequential(_basic_block(res4, res5, frames=3, stride=2)),
    }


class ResidualBlock(nn.Module):
    """A branch and a shortcut, added. Its parts have the names of pytorchvideo's ResBlock: checkpoints are read by them."""

    def __init__(
        self, *, branch1_conv: nn.Module | None, branch1_norm: nn.Module | None, branch2: nn.Module
    ) -> None:
        super().__init__()
        self.branch1_conv, self.branch1_norm, self.branch2 = branch1_conv, branch1_norm, branch2
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) to the shape of the branch."""
        shortcut = x
        if self.branch1_conv is not None and self.branch1_norm is not None:
            shortcut = self.branch1_norm(self.branch1_conv(x))
        added: Tensor = self.activation(shortcut + self.branch2(x))
        return added


def _basic_block(dim_in: int, dim_out: int, *, frames: int = 1, stride: int = 1) -> ResidualBlock:
    """Two 3x3 convolutions, the first `frames` deep in time (He et al., CVPR 2016, figure 5 left)."""
    strides = (1, stride, stride)
    branch = OrderedDict(
        conv_a=nn.Conv3d(dim_in, dim_out, (frames, 3, 3), strides, (frames // 2, 1, 1), bias=False),
        norm_a=nn.BatchNorm3d(dim_out),
        act_a=nn.ReLU(inplace=True),
        conv_b=nn.Conv3d(dim_out, dim_out, (1, 3, 3), 1, (0, 1, 1), bias=False),
        norm_b=nn.BatchNorm3d(dim_out),
    )
    shape_changes = dim_in != dim_out or stride != 1
    return ResidualBlock(
        branch1_conv=nn.Conv3d(dim_in, dim_out, 1, strides, bias=False) if shape_changes else None,
        branch1_norm=nn.BatchNorm3d(dim_out) if shape_changes else None,
        branch2=nn.Sequential(branch),
    )


def _of_blocks(net: Any) -> Stages:
    """pytorchvideo's Net: blocks[0] is the stem, blocks[1..4] the stages, the last one the head."""
    blocks = list(net.blocks)
    return blocks[0], {f"res{i + 1}": blocks[i] for i in range(1, 5)}


def _of_video_resnet(net: Any) -> Stages:
    return net.stem, {f"res{i + 1}": getattr(net, f"layer{i}") for i in range(1, 5)}


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


class ConvGRU(nn.Module):
    """One step of a gated recurrent unit whose products are convolutions: (B, D, h, w) and a state to the next state.

    Ballas et al., ICLR 2016, with the reset gate behind the state's product as in torch.nn.GRUCell, which it equals at every
    place for a kernel of 1 (Han et al., ICCVW 2019, use 1).
    """

    def __init__(self, dim_in: int, dim_state: int, *, kernel: int = 1) -> None:
        super().__init__()
        self.dim_state = dim_state
        self.from_input = nn.Conv2d(dim_in, 3 * dim_state, kernel, padding=kernel // 2)
        self.from_state = nn.Conv2d(dim_state, 3 * dim_state, kernel, padding=kernel // 2)

    def start(self, x: Tensor) -> Tensor:
        """The state before anything is seen: zeros (B, dim_state, h, w)."""
        return x.new_zeros(len(x), self.dim_state, *x.shape[2:])

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """See the class."""
        reset_x, update_x, new_x = self.from_input(x).chunk(3, 1)
        reset_h, update_h, new_h = self.from_state(state).chunk(3, 1)
        reset, update = torch.sigmoid(reset_x + reset_h), torch.sigmoid(update_x + update_h)
        new = torch.tanh(new_x + reset * new_h)
        return (1 - update) * new + update * state


Triple = tuple[float, float, float]
# (mean, std) of sRGB in [0, 1] by its name; None: normalised Lab as it is.
COLOURS: dict[str, tuple[Triple, Triple] | None] = {
    "lab": None,
    # facebookresearch/pytorchvideo, the transforms of its hub models
    "rgb_pytorchvideo": ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225)),
    # torchvision.transforms._presets.VideoClassification
    "rgb_torchvision": ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)),
}


def check_colours(name: str) -> None:
    """Raises UserError for a name that is not known."""
    if name not in COLOURS:
        raise UserError(f"colours {name!r} are unknown; allowed: {', '.join(COLOURS)}")


def colours_of_lab(lab: Tensor, name: str) -> Tensor:
    """Normalised Lab (N, 3, T, H, W) in the colours of that name, same shape. What sRGB lacks is clipped; `lab` stays."""
    normalisation = COLOURS[name]
    if normalisation is None:
        return lab
    rgb = lab_to_rgb(denormalize_lab(lab.float(), dim=1), dim=1)
    return normalized_rgb(rgb, name).to(lab.dtype)


def normalized_rgb(rgb: Tensor, name: str) -> Tensor:
    """sRGB in [0, 1] (N, 3, T, H, W), normalised as weights of these colours read it, same shape."""
    normalisation = COLOURS[name]
    assert normalisation is not None
    parts = zip(rgb.unbind(1), *normalisation, strict=True)
    return torch.stack([(channel - mean) / std for channel, mean, std in parts], 1)
