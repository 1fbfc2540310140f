"""Which pixels are an object's, given its share of each: the largest share, or the mask with the greatest expected J.

Shares of a hard object are small everywhere: background answers more and more of its cells, and where the largest share
wins most of the object is missed. J asks for another threshold then. Nowozin, "Optimal Decisions from Probabilistic
Models: the Intersection-over-Union Case", CVPR 2014, section 3: the mask that maximises the ratio of the expectations of
intersection and union holds the pixels above some threshold, so that sorting finds it; here in steps of 1/256.
"""

import torch
from torch import Tensor

LEVELS = 256
FAINT = 0.05  # shares below are no pixel's: what is left by filters and far cells; chosen, docs/results.md


def greatest_expected_j(shares: Tensor, *, power: float = 1.0) -> Tensor:
    """The winner of each pixel, (H, W) int64, of `shares` (V, H, W) >= 0, the background's first.

    An object's probability is p = s^power / (s^power + (1 - s)^power) of its part s of the pixel's shares. Its threshold
    is the multiple of 1/256, up to 1/2, whose mask M has the greatest sum(p in M) / (|M| + sum(p outside)). A pixel goes
    to the object that is furthest above its threshold, as a ratio, and to the background where none is above.
    """
    shares = shares.clamp_min(0)
    parts = shares[1:] / shares.sum(0).clamp_min(torch.finfo(shares.dtype).tiny)
    if not len(parts):
        return torch.zeros(shares.shape[1:], dtype=torch.int64, device=shares.device)
    raised = parts**power
    probability = raised / (raised + (1 - parts) ** power)
    above = torch.stack([plane / _threshold(plane) for plane in probability])
    ratio, winner = above.max(0)
    return torch.where(ratio > 1, winner + 1, 0)


def _threshold(probability: Tensor) -> Tensor:
    """Of one object: a scalar, the lowest that counts where the object is nowhere, which nothing is above then."""
    # The last level that a pixel is above.
    level = (probability * LEVELS).ceil().long().sub(1).clamp_min(0).flatten()
    counts = torch.bincount(level, minlength=LEVELS).double()
    sums = torch.bincount(level, probability.flatten().double(), minlength=LEVELS)
    first = round(FAINT * LEVELS)
    # From a level on upwards: how many pixels a mask with that threshold has, and how many of them are the object's.
    area, inside = (values[first:].flip(0).cumsum(0).flip(0) for values in (counts, sums))
    expected_j = inside / (area + inside[0] - inside).clamp_min(1)
    return (first + expected_j[: LEVELS // 2 - first + 1].argmax()) / LEVELS
