"""Region similarity J and contour accuracy F of masks, and how each runs over a sequence.

The definition is that of the DAVIS benchmark (Perazzi et al., CVPR 2016, sections 4-5; Pont-Tuset et al.,
arXiv:1704.00675), as its official evaluation computes it. One departure: the bins of the decay are integers, where the
official code casts them to uint8 and silently wraps beyond 256 frames.

Both masks travel as bits of one array, PRED and TRUE: comparing neighbours and dilating serves both at once. Arrays are
written into again where they can be: fetching fresh pages from the system takes longer than filling them.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Bits = NDArray[np.uint8]  # PRED and TRUE set or not

_BOUND_PIXELS = 0.008  # tolerance as a share of the image diagonal
_RECALL_THRESHOLD = 0.5
PRED, TRUE = np.uint8(1), np.uint8(2)


@dataclass(frozen=True)
class Statistics:
    """One measure of one object over its frames, as shares in [0, 1]; decay may be negative."""

    mean: float
    recall: float  # share of frames above 0.5
    decay: float  # mean of the first quarter minus mean of the last

    def as_dict(self) -> dict[str, float]:
        """Plain types for JSON."""
        return asdict(self)


def region_and_contour(pred_mask: Mask, gt_mask: Mask, *, radius: int) -> tuple[float, float]:
    """J and F of two (H, W) bool masks, which may be parts of a frame: those cut away hold neither object nor a neighbour.

    `radius` is `tolerance_pixels` of the whole frame.
    """
    num_pred, num_gt = np.count_nonzero(pred_mask), np.count_nonzero(gt_mask)
    bits = _bits(pred_mask, gt_mask)
    union = np.count_nonzero(bits)
    region = (num_pred + num_gt - union) / union if union else 1.0
    return region, _contour_accuracy(bits, radius)


def _bits(pred_mask: Mask, gt_mask: Mask) -> Bits:
    bits = gt_mask.view(np.uint8) * TRUE
    bits |= pred_mask
    return bits


def _contour_accuracy(bits: Bits, radius: int) -> float:
    edges = _boundary(bits)
    one_edge = edges & PRED
    num_pred = np.count_nonzero(one_edge)
    gt_edge = np.bitwise_and(edges, TRUE, out=one_edge)
    num_gt = np.count_nonzero(gt_edge)
    if num_pred == 0 or num_gt == 0:
        return 1.0 if num_pred == num_gt else 0.0
    # Whatever matches lies near the true boundary: a stray prediction far away widens nothing.
    near = edges[bounding_window(gt_edge, margin=radius)]
    wide = _dilate(near, radius)
    precision = np.count_nonzero(near & (wide >> 1) & PRED) / num_pred
    recall = np.count_nonzero(near & (wide << 1) & TRUE) / num_gt
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def tolerance_pixels(height: int, width: int) -> int:
    """How far apart two boundaries may lie and still match: 8 pixels at 480x854."""
    return math.ceil(_BOUND_PIXELS * math.hypot(height, width))


def statistics(per_frame: Sequence[float] | NDArray[np.float64]) -> Statistics:
    """Mean, recall and decay of one measure over the scored frames of one object.

    The decay compares four bins of frames that share their border frames, as the official code has it. Raises
    ValueError without frames.
    """
    values = np.asarray(per_frame, dtype=np.float64)
    if not len(values):
        raise ValueError(
            "no scored frame: a sequence needs at least 3 frames (the first and last are not scored)"
        )
    edges = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(int) - 1
    bins = [values[edges[i] : edges[i + 1] + 1] for i in range(4)]
    return Statistics(
        mean=float(values.mean()),
        recall=float((values > _RECALL_THRESHOLD).mean()),
        decay=float(bins[0].mean() - bins[3].mean()),
    )


def bounding_window(*masks: NDArray[np.generic], margin: int) -> tuple[slice, slice]:
    """The smallest window around what is not 0 in any of (H, W), grown by `margin` within the frame; empty if nothing is."""
    # By each mask alone: an array of their union would cost more than all the rest.
    rows = np.flatnonzero(np.logical_or.reduce([mask.max(1) for mask in masks]))
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    band = slice(rows[0], rows[-1] + 1)
    columns = np.flatnonzero(np.logical_or.reduce([mask[band].max(0) for mask in masks]))
    return _grown(rows, margin), _grown(columns, margin)


def _grown(used: NDArray[np.intp], margin: int) -> slice:
    return slice(max(0, int(used[0]) - margin), int(used[-1]) + 1 + margin)


def _boundary(bits: Bits) -> Bits:
    """Pixels that differ from their right, lower or diagonal neighbour; the far edges look along themselves only."""
    if not bits.size:
        return bits
    width = bits.shape[1]
    run = bits.ravel()  # as one run: neighbours are then shifts of it
    edges = np.empty(run.shape, np.uint8)
    np.bitwise_xor(run[:-1], run[1:], out=edges[:-1])
    step = np.empty(run.shape, np.uint8)
    for shift in (width, width + 1):
        changes = np.bitwise_xor(run[:-shift], run[shift:], out=step[:-shift])
        edges[:-shift] |= changes
    plane = edges.reshape(bits.shape)
    plane[:-1, -1] = bits[:-1, -1] ^ bits[1:, -1]  # whose right neighbour began the next row
    plane[-1, -1] = 0
    return plane


def _dilate(bits: Bits, radius: int) -> Bits:
    """Dilation with the disk dy^2 + dx^2 <= radius^2: one shifted OR per pair of rows of horizontally grown bits.

    Rows lie one behind the other with `radius` empty pixels between: a shift is then that of one long run.
    """
    height, width = bits.shape
    stride = width + radius
    rows = np.zeros((height + 2 * radius, stride), np.uint8)
    rows[radius : radius + height, :width] = bits
    grown, spare = rows.ravel(), np.empty(rows.size, np.uint8)
    out = np.zeros(height * stride, np.uint8)
    reach = 0
    for dy in range(radius, -1, -1):
        half_width = math.isqrt(radius**2 - dy**2)
        while reach < half_width:  # in steps as long as leave no hole
            step = min(half_width - reach, 2 * reach + 1)
            np.bitwise_or(grown[:-step], grown[step:], out=spare[:-step])
            spare[-step:] = grown[-step:]
            spare[step:] |= grown[:-step]
            grown, spare, reach = spare, grown, reach + step
        for first in {radius - dy, radius + dy}:
            out |= grown[first * stride : first * stride + len(out)]
    return out.reshape(height, stride)[:, :width]
