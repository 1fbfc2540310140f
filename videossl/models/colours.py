"""The colours that an encoder's weights read. Whoever calls an encoder gives it normalised Lab, always.

Weights that were trained elsewhere read normalised RGB. Lab is no linear function of RGB, so a first convolution cannot take
the difference in; it is undone in front of it instead, exactly up to rounding (about 1e-5 of the range).
"""

import torch
from torch import Tensor

from videossl.color import denormalize_lab, lab_to_rgb
from videossl.errors import UserError

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
