"""How much is lost where the same clips come from files coded in another way (P7)."""

from collections.abc import Set
from typing import NamedTuple

import numpy as np

from videossl.audit.findings import Check
from videossl.stats import bootstrap_over_videos

MAX_LOSS = 0.03  # shortcuts: more than 3 points is a cue of the codec


class Judged(NamedTuple):
    """Which questions were answered right (Q,), their weights (None: 1 each), and the videos they are about."""

    right: np.ndarray
    weights: np.ndarray | None
    videos: np.ndarray


def swap_check(
    who: str, variant: str, before: Judged, after: Judged, *, coded: Set[int], seed: int = 0
) -> Check:
    """What somebody loses from `before` to `after`, video by video; named if it is more than MAX_LOSS and beyond chance.

    Of the videos `coded` anew alone: the others are the same files before and after.
    """
    means, others = _by_video(before), _by_video(after)
    videos = np.array(sorted(means.keys() & others.keys() & coded))
    if not len(videos):
        return not_run(f"{who} is asked nothing about videos coded anew ({variant})")
    losses = np.array([means[video] - others[video] for video in videos])
    loss = bootstrap_over_videos(losses, np.ones(len(losses)), videos, seed=seed)
    is_clean = not (loss.estimate > MAX_LOSS and loss.low > 0)
    says = f"{who} loses {loss.estimate:+.3f} [{loss.low:+.3f}, {loss.high:+.3f}] where files are coded anew ({variant})"
    numbers = {"loss": loss.estimate, "low": loss.low, "high": loss.high, "videos": len(videos)}
    return Check("P7", f"{who}, {variant}", is_clean, says, numbers)


def not_run(why: str) -> Check:
    """That P7 says nothing, which is not that it found nothing."""
    return Check("P7", "files coded anew", None, f"P7 not run: {why}")


def _by_video(judged: Judged) -> dict[int, float]:
    weights = np.ones(len(judged.videos)) if judged.weights is None else judged.weights
    names, index = np.unique(judged.videos, return_inverse=True)
    totals = np.bincount(index, weights)
    sums = np.bincount(index, weights * judged.right)
    return {int(v): s / t for v, s, t in zip(names, sums, totals, strict=True) if t > 0}
