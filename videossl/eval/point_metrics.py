"""The measures of three point benchmarks: PCK of JHMDB and of BADJA, and those of TAP-Vid. Arrays in, numbers out.

JHMDB: as evaluated by Jabri et al., NeurIPS 2020 (code ajabri/videowalk eval/eval_pck.py). BADJA: Biggs et al., ACCV
2018, arXiv:1811.05804, section 4, as evaluated by Harley et al., ECCV 2022 (code aharley/pips test_on_badja.py).
TAP-Vid: Doersch et al., NeurIPS 2022, arXiv:2211.03726 (code google-deepmind/tapnet tapvid/evaluation_datasets.py).
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from videossl.eval.points import Flags, Places

QueryMode = Literal["first", "strided"]
Errors = NDArray[np.float64]

PCK_ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5)
BOX_SHARE = 0.6  # of the diagonal of the joints' box: the size of a person (eval_pck.py)
BADJA_ALPHA = 0.2  # of the square root of the animal's area
TAPVID_PIXELS = (1, 2, 4, 8, 16)  # of a frame of 256x256


def joint_errors(places: Places, truth: Places, is_judged: Flags) -> Errors:
    """The error of each joint in each frame over 0.6 of the diagonal of the box of the judged joints, (J, T).

    `places` and `truth` are (J, T, 2), `is_judged` (J, T). Nan where nothing is judged: by `is_judged`, and in frame 0,
    where the joints are given. A place of nan is infinitely wrong.
    """
    judged = np.where(is_judged[..., None], truth, np.nan)
    extents = np.fmax.reduce(judged, axis=0) - np.fmin.reduce(judged, axis=0)  # (T, 2)
    sizes = BOX_SHARE * np.linalg.norm(extents, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = np.linalg.norm(places - truth, axis=2) / sizes
    errors = np.where(np.isnan(errors), np.inf, errors)
    errors = np.where(is_judged, errors, np.nan)
    errors[:, 0] = np.nan
    return errors


def mean_pck(errors: Sequence[Errors], alpha: float) -> float:
    """The share of errors <= alpha, per joint over all frames of all videos, then the mean over joints.

    `errors` are (J, T) per video, with the same joints in each. Joints that are never judged do not count; nan if none is.
    """
    pooled = np.concatenate(list(errors), axis=1)
    shares = [
        np.mean(joint[~np.isnan(joint)] <= alpha) for joint in pooled if not np.isnan(joint).all()
    ]
    return float(np.mean(shares)) if shares else float("nan")


def badja_pck(places: Places, truth: Places, is_judged: Flags, mask_areas: Errors) -> float:
    """The share of judged joints nearer to the truth than 0.2 * sqrt(area of the animal's mask in that frame).

    `places` and `truth` are (N, T, 2), `is_judged` (N, T), `mask_areas` (T,) in pixels of the same frames. Nan if nothing
    is judged.
    """
    is_near = np.linalg.norm(places - truth, axis=2) < BADJA_ALPHA * np.sqrt(mask_areas)
    return _share(is_near & is_judged, is_judged)


def tapvid_scores(
    places: Places,
    occluded: Flags,
    *,
    truth: Places,
    truth_occluded: Flags,
    query_frames: NDArray[np.int64],
    mode: QueryMode,
) -> dict[str, float]:
    """Average Jaccard `AJ`, `delta_avg` and occlusion accuracy `OA` of one video, in [0, 1], and each threshold's own.

    Places are (N, T, 2) in pixels of a frame of 256x256, occlusions (N, T). `first` judges the frames after each query,
    `strided` all but the query frame. A value whose denominator is 0 is nan.
    """
    times = np.arange(truth.shape[1])
    queried = query_frames[:, None]
    is_judged = times > queried if mode == "first" else times != queried
    is_seen, is_called_seen = ~truth_occluded & is_judged, ~occluded & is_judged
    distance2 = np.square(places - truth).sum(2)
    scores = {"OA": _share((occluded == truth_occluded) & is_judged, is_judged)}
    for pixels in TAPVID_PIXELS:
        is_near = distance2 < pixels**2  # nan is far
        scores[f"delta_{pixels}"] = _share(is_near & is_seen, is_seen)
        true_positives = is_near & is_seen & is_called_seen
        false_positives = is_called_seen & ~(is_near & is_seen)
        positives = is_seen.sum() + false_positives.sum()
        scores[f"jaccard_{pixels}"] = _ratio(true_positives.sum(), positives)
    for name, single in (("delta_avg", "delta"), ("AJ", "jaccard")):
        scores[name] = float(np.mean([scores[f"{single}_{pixels}"] for pixels in TAPVID_PIXELS]))
    return scores


def _share(hits: Flags, of: Flags) -> float:
    return _ratio(hits.sum(), of.sum())


def _ratio(part: np.integer, whole: np.integer) -> float:
    return float(part) / float(whole) if whole else float("nan")
