"""Draws label maps of cells to the edges of their frame: the guided filter.

He, Sun, Tang, "Guided Image Filtering", TPAMI 2013, section 3.4 (a colour guide): in every window the labels are a linear
function of the colours, by ridge regression, and each pixel takes the mean of the functions of all windows that it lies in.
Fitted at a smaller size and applied at the full one (He, Sun, "Fast Guided Filter", arXiv:1505.00996).
"""

import torch
from torch import Tensor
from torch.nn import functional


def refine(
    shares: Tensor, frame: Tensor, *, radius: int, epsilon: float, fit_size: tuple[int, int]
) -> Tensor:
    """Shares (V, h, w), which sum to 1 in each cell, as those of the pixels of `frame`: (V, H, W) float32, summing to 1.

    `frame` (3, H, W) is uint8 RGB. `radius` of the square windows is in pixels of `fit_size` (H', W'), at which the linear
    functions are fitted; `epsilon` is the ridge on colours in [0, 1]: the larger, the smoother.
    """
    guide = frame.to(shares.device).float() / 255
    size = (guide.shape[1], guide.shape[2])
    # The filter is linear and keeps constants: the background is what the objects leave.
    objects = _resized(shares[1:].float(), fit_size)
    slope, offset = _linear_functions(
        _resized(guide, fit_size, mode="area"), objects, radius, epsilon
    )
    slope = _resized(slope.flatten(0, 1), size).unflatten(0, slope.shape[:2])
    refined = (slope * guide).sum(1) + _resized(offset, size)
    return torch.cat([1 - refined.sum(0, keepdim=True), refined])


def _linear_functions(
    guide: Tensor, values: Tensor, radius: int, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Of each pixel the mean slope (V, 3, H, W) and offset (V, H, W) of the windows around it."""
    mean = _window_mean(guide, radius)
    spread = _window_mean(guide[:, None] * guide, radius) - mean[:, None] * mean  # (3, 3, H, W)
    matrix = spread.permute(2, 3, 0, 1) + epsilon * torch.eye(3, device=guide.device)
    value_mean = _window_mean(values, radius)
    shared = _window_mean(values[:, None] * guide, radius) - value_mean[:, None] * mean
    slope = torch.linalg.solve(matrix, shared.permute(2, 3, 1, 0)).permute(3, 2, 0, 1)
    offset = value_mean - (slope * mean).sum(1)
    return _window_mean(slope, radius), _window_mean(offset, radius)


def _window_mean(planes: Tensor, radius: int) -> Tensor:
    """The mean over the window of each pixel, as far as it lies in the picture; planes (..., H, W)."""
    for axis in (-2, -1):
        length = planes.shape[axis]
        place = torch.arange(length, device=planes.device)
        first, end = (place - radius).clamp_min(0), (place + radius + 1).clamp_max(length)
        sums = planes.cumsum(axis)
        before = torch.cat([torch.zeros_like(sums.narrow(axis, 0, 1)), sums], axis)
        count = (end - first).view(-1, *[1] * (-axis - 1))
        planes = (before.index_select(axis, end) - before.index_select(axis, first)) / count
    return planes


def _resized(planes: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    if planes.shape[-2:] == size:
        return planes
    corners = {} if mode == "area" else {"align_corners": False}
    return functional.interpolate(planes[None], size, mode=mode, **corners)[0]
