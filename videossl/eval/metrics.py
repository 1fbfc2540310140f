"""Region similarity J and contour accuracy F of masks, and how each runs over a sequence.

The definition is that of the DAVIS benchmark (Perazzi et al., CVPR 2016, sections 4-5; Pont-Tuset et al.,
arXiv:1704.00675), as its official evaluation computes it. One departure: the bins of the decay are integers, where the
official code casts them to uint8 and silently wraps beyond 256 frames.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

_BOUND_PIXELS = 0.008  # tolerance as a share of the image diagonal
_RECALL_THRESHOLD = 0.5


@dataclass(frozen=True)
class Statistics:
    """One measure of one object over its frames, as shares in [0, 1]; decay may be negative."""

    mean: float
    recall: float  # share of frames above 0.5
    decay: float  # mean of the first quarter minus mean of the last

    def as_dict(self) -> dict[str, float]:
        """Plain types for JSON."""
        return asdict(self)


def region_similarity(pred_mask: Mask, gt_mask: Mask) -> float:
    """Intersection over union of two (H, W) bool masks in [0, 1]; 1 if both are empty."""
    union = np.count_nonzero(pred_mask | gt_mask)
    return np.count_nonzero(pred_mask & gt_mask) / union if union else 1.0


def contour_accuracy(pred_mask: Mask, gt_mask: Mask) -> float:
    """F of the boundary pixels of two (H, W) bool masks in [0, 1], with a tolerance of 0.8 % of the diagonal.

    1 if both masks have no boundary, 0 if only one has.
    """
    height, width = gt_mask.shape
    radius = tolerance_pixels(height, width)
    window = _common_window(pred_mask, gt_mask, margin=radius + 1)
    pred_edge, gt_edge = (_boundary(mask)[window] for mask in (pred_mask, gt_mask))
    num_pred, num_gt = np.count_nonzero(pred_edge), np.count_nonzero(gt_edge)
    if num_pred == 0 or num_gt == 0:
        return 1.0 if num_pred == num_gt else 0.0
    precision = np.count_nonzero(pred_edge & _dilate(gt_edge, radius)) / num_pred
    recall = np.count_nonzero(gt_edge & _dilate(pred_edge, radius)) / num_gt
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


def _common_window(first: Mask, second: Mask, *, margin: int) -> tuple[slice, slice]:
    """The smallest window that holds both masks and a margin: outside it nothing can match or be matched."""
    either = first | second
    spans = []
    for axis in (1, 0):
        used = np.flatnonzero(either.any(axis))
        start, stop = (used[0], used[-1] + 1) if len(used) else (0, 0)
        spans.append(slice(max(0, int(start) - margin), int(stop) + margin))
    return spans[0], spans[1]


def _boundary(mask: Mask) -> Mask:
    """Pixels that differ from their right, lower or diagonal neighbour; the far edges look along themselves only."""
    edge = np.zeros_like(mask)
    edge[:, :-1] = mask[:, :-1] ^ mask[:, 1:]
    edge[:-1] |= mask[:-1] ^ mask[1:]
    edge[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return edge


def _dilate(edge: Mask, radius: int) -> Mask:
    """Dilation with the disk dy^2 + dx^2 <= radius^2: one shifted OR per pair of rows of horizontally grown edges."""
    height, width = edge.shape
    padded = np.zeros((height + 2 * radius, width), bool)
    padded[radius : radius + height] = edge
    out = np.zeros_like(edge)
    grown, reach = padded, 0
    for dy in range(radius, -1, -1):
        half_width = math.isqrt(radius**2 - dy**2)
        grown, reach = _grow_rows(grown, reach, half_width), half_width
        out |= grown[radius - dy : radius - dy + height]
        if dy:
            out |= grown[radius + dy : radius + dy + height]
    return out


def _grow_rows(rows: Mask, reach: int, half_width: int) -> Mask:
    """Rows dilated by `reach` to rows dilated by `half_width` >= reach."""
    for _ in range(half_width - reach):
        wider = rows.copy()
        wider[:, 1:] |= rows[:, :-1]
        wider[:, :-1] |= rows[:, 1:]
        rows = wider
    return rows
