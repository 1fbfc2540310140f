"""RGB to CIE Lab, and the one input form of every encoder here.

Encoders see Lab normalised so that each channel is about unit range: L to (L - 45) / 24 and a, b to / 20, L in [0, 100].
A grey input is the same tensor with a and b zeroed, and hiding one chroma channel (MAST, Lai et al. CVPR 2020) is
zeroing it: all tasks share one stem, and a view can be proved to carry no colour.
"""

import numpy as np
import torch
from torch import Tensor

LAB_OFFSET = (45.0, 0.0, 0.0)
LAB_SCALE = (24.0, 20.0, 20.0)

# IEC 61966-2-1 (sRGB, D65): linear RGB to XYZ, each row divided by the white point.
_RGB_TO_XYZ = (
    (0.4124564 / 0.95047, 0.3575761 / 0.95047, 0.1804375 / 0.95047),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339 / 1.08883, 0.1191920 / 1.08883, 0.9503041 / 1.08883),
)

# Numbers, not a tensor: a step on a GPU would wait for its transfer.
_XYZ_TO_RGB = np.linalg.inv(np.array(_RGB_TO_XYZ)).tolist()


def rgb_to_lab(rgb: Tensor, dim: int = -3) -> Tensor:
    """CIE Lab (D65) of sRGB in [0, 1], channels on axis `dim`: L in [0, 100], a and b about [-128, 127], float."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb.clamp_min(0) + 0.055) / 1.055) ** 2.4)
    red, green, blue = linear.unbind(dim)
    xyz = [row[0] * red + row[1] * green + row[2] * blue for row in _RGB_TO_XYZ]
    threshold = (6 / 29) ** 3
    fx, fy, fz = (
        torch.where(
            v > threshold, v.clamp_min(threshold) ** (1 / 3), v / (3 * (6 / 29) ** 2) + 4 / 29
        )
        for v in xyz
    )
    return torch.stack((116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)), dim)


def lab_to_rgb(lab: Tensor, dim: int = -3) -> Tensor:
    """sRGB in [0, 1] of CIE Lab (D65), channels on axis `dim`, float; colours outside of sRGB are clipped."""
    lightness, a, b = lab.unbind(dim)
    fy = (lightness + 16) / 116
    xyz = [
        torch.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
        for f in (fy + a / 500, fy, fy - b / 200)
    ]
    linear = torch.stack(
        [sum(w * v for w, v in zip(row, xyz, strict=True)) for row in _XYZ_TO_RGB], dim
    )
    linear = linear.clamp(0, 1)
    return torch.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp_min(1e-8) ** (1 / 2.4) - 0.055
    ).clamp(0, 1)


def picture(normalized: Tensor, dim: int = -3) -> Tensor:
    """What people see of the encoders' input form: uint8 RGB, same shape, on the CPU."""
    lab = denormalize_lab(normalized.float(), dim)
    return (255 * lab_to_rgb(lab, dim)).round().to(torch.uint8).cpu()


def normalize_lab(lab: Tensor, dim: int = -3) -> Tensor:
    """Lab to the encoders' input form, same shape."""
    # Number by number: a tensor of them would be copied to a GPU, which the host waits for.
    parts = zip(lab.unbind(dim), LAB_OFFSET, LAB_SCALE, strict=True)
    return torch.stack([(channel - offset) / scale for channel, offset, scale in parts], dim)


def denormalize_lab(normalized: Tensor, dim: int = -3) -> Tensor:
    """The encoders' input form back to Lab, same shape."""
    parts = zip(normalized.unbind(dim), LAB_OFFSET, LAB_SCALE, strict=True)
    return torch.stack([channel * scale + offset for channel, offset, scale in parts], dim)


def chroma_bins(size: float = 10.0) -> Tensor:
    """(Q, 2) float: the a and b of the cells of a square grid, centred at 0, that an 8-bit sRGB colour falls into.

    Each line of constant a and b leaves the solid of all colours through its surface, so that the six faces of the RGB
    cube reach every cell that its inside does.
    """
    levels = torch.arange(256, dtype=torch.float64) / 255
    plane = torch.cartesian_prod(levels, levels)
    faces = [
        torch.cat([plane[:, :axis], torch.full_like(plane[:, :1], end), plane[:, axis:]], 1)
        for axis in range(3)
        for end in (0.0, 1.0)
    ]
    chroma = rgb_to_lab(torch.cat(faces), dim=1)[:, 1:]
    return torch.unique((chroma / size).round(), dim=0).float() * size


def encoder_input(rgb_uint8: Tensor, dim: int = -3) -> Tensor:
    """uint8 RGB in [0, 255], channels on axis `dim`, to the normalised Lab that encoders read, float32, same shape."""
    return normalize_lab(rgb_to_lab(rgb_uint8.float() / 255, dim), dim)
