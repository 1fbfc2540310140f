"""Points carried through a video by features: queries in, a place and a visibility per frame out.

Joints of Jabri et al., NeurIPS 2020, arXiv:2006.14613 (code ajabri/videowalk data/jhmdb.py, utils/test_utils.py): a
Gaussian per point at feature resolution is copied like a mask, and a place is the weighted mean of its highest cells.
Departures: the Gaussian stands at the exact place and cells are read at their centres (there, places are cut down to
whole cells and read at corners); there is no background plane, since soft labels are copied plane by plane and no
place is read from it; a point whose plane is empty stays where it was last (there, it drops out of the score).

Places are (x, y) in pixels of the frame; the corner of the first pixel is (0, 0), its centre (0.5, 0.5).
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import tee
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from videossl.errors import UserError
from videossl.tracking.propagation import MakeLabels, propagate_labels
from videossl.tracking.protocol import Protocol

Places = NDArray[np.float64]  # (..., 2) x, y
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Reading:
    """How points become labels and labels become points. Lengths are in feature cells.

    Raises ValueError for settings out of range.
    """

    sigma: float = 0.5  # of the Gaussian, as in CRW; cut off at three of them, as there
    top_cells: int = 3  # whose weighted mean is the place: 3 in CRW, 5 in RVM
    cycle_cells: float = 4.0  # chosen, measured on no benchmark: see `_are_lost`

    def __post_init__(self) -> None:
        if not self.sigma >= 0.25:
            # Farther than 3 sigma from every cell centre a point would have no label at all.
            raise ValueError(f"sigma must be >= 0.25, got {self.sigma}")
        if self.top_cells < 1:
            raise ValueError(f"top_cells must be >= 1, got {self.top_cells}")
        if not self.cycle_cells > 0:
            raise ValueError(f"cycle_cells must be > 0, got {self.cycle_cells}")

    def as_dict(self) -> dict[str, object]:
        """Plain types for JSON."""
        return asdict(self)


class Queries(NamedTuple):
    """Which points to follow: the frame at which each is known, (N,) int, and its place there, (N, 2)."""

    frames: NDArray[np.int64]
    places: Places


class Tracks(NamedTuple):
    """Where the points are: places (N, T, 2), and whether each is hidden, (N, T) bool."""

    places: Places
    occluded: Flags


def check_protocol(protocol: Protocol) -> None:
    """Raises UserError for a protocol that cannot carry points."""
    if protocol.hard_labels:
        raise UserError(
            "points need soft labels, but this protocol has hard_labels=true: the winner of a cell is never a point, "
            "which fills a part of it; take another preset, or add --set hard_labels=false"
        )


@torch.no_grad()
def track_points(
    features: Iterable[Tensor],
    queries: Queries,
    protocol: Protocol,
    *,
    size: tuple[int, int],
    both_ways: bool = False,
    reading: Reading | None = None,
) -> Tracks:
    """Follows each query from its frame to the last one, and with `both_ways` also to the first.

    `features` gives (D, h, w) per frame, whose cells tile frames of `size` (H, W). At its own frame a point is the query
    itself. Without `both_ways`, frames before a query hold its place, as hidden. Raises UserError for a protocol of hard
    labels.
    """
    check_protocol(protocol)
    reading = reading or Reading()
    if not both_ways:
        return _follow(features, queries, protocol, size, reading)
    kept = list(features)
    forward = _follow(kept, queries, protocol, size, reading)
    mirrored = Queries(len(kept) - 1 - queries.frames, queries.places)
    backward = _follow(kept[::-1], mirrored, protocol, size, reading)
    is_before = np.arange(len(kept)) < queries.frames[:, None]  # (N, T)
    return Tracks(
        np.where(is_before[..., None], backward.places[:, ::-1], forward.places),
        np.where(is_before, backward.occluded[:, ::-1], forward.occluded),
    )


def standing_still(queries: Queries, num_frames: int) -> Tracks:
    """The baseline: each point stays at its query and is never hidden."""
    places = np.repeat(queries.places[:, None], num_frames, 1)
    return Tracks(places, np.zeros(places.shape[:2], bool))


def point_labels(
    places: Places,
    cells: Sequence[int],
    device: torch.device | str = "cpu",
    *,
    size: tuple[int, int],
    sigma: float = 0.5,
) -> Tensor:
    """A plane per point, (N, h, w) float in [0, 1]: exp(-d^2 / 2 sigma^2) of the distance d in cells, 0 beyond 3 sigma.

    `size` is (H, W) of the frame. A point farther than 3 sigma outside the frame has an empty plane.
    """
    height, width = int(cells[0]), int(cells[1])
    x, y = torch.from_numpy(places).to(device, torch.float32).unbind(1)
    columns = torch.arange(width, device=device) + 0.5 - x[:, None] * width / size[1]  # (N, w)
    rows = torch.arange(height, device=device) + 0.5 - y[:, None] * height / size[0]  # (N, h)
    distance2 = rows.square()[:, :, None] + columns.square()[:, None]
    return torch.where(distance2 <= (3 * sigma) ** 2, torch.exp(-distance2 / (2 * sigma**2)), 0.0)


def read_places(labels: Tensor, *, size: tuple[int, int], top_cells: int = 3) -> Places:
    """The mean of the centres of the `top_cells` highest cells of each plane, weighted by their labels, (N, 2).

    `labels` is (N, h, w), `size` (H, W) of the frame. An empty plane gives nan.
    """
    height, width = labels.shape[1:]
    flat = labels.flatten(1).double()
    weights, cells = flat.topk(min(top_cells, height * width), dim=1)
    total = weights.sum(1)
    x = ((cells % width + 0.5) * weights).sum(1) / total * (size[1] / width)
    y = ((cells // width + 0.5) * weights).sum(1) / total * (size[0] / height)
    return torch.stack([x, y], 1).cpu().numpy()  # 0 / 0 = nan


def _follow(
    features: Iterable[Tensor],
    queries: Queries,
    protocol: Protocol,
    size: tuple[int, int],
    reading: Reading,
) -> Tracks:
    """Forward in time only."""
    rows_of = {int(t): np.flatnonzero(queries.frames == t) for t in np.unique(queries.frames)}
    starts: dict[int, MakeLabels] = {
        start: partial(point_labels, queries.places[rows], size=size, sigma=reading.sigma)
        for start, rows in rows_of.items()
    }
    shown, copied_from = tee(features)
    known: dict[int, Tensor] = {}  # features of the query frames
    place, places, occluded = queries.places.copy(), [], []
    copied = propagate_labels(copied_from, starts, protocol)
    for index, (feature, groups) in enumerate(zip(shown, copied, strict=True)):
        is_hidden = np.ones(len(place), bool)
        for start, labels in groups.items():
            rows = rows_of[start]
            if start == index:
                known[start] = feature
                is_hidden[rows] = False
                continue
            found = read_places(labels, size=size, top_cells=reading.top_cells)
            is_empty = np.isnan(found[:, 0])
            place[rows] = np.where(is_empty[:, None], place[rows], found)
            are_lost = _are_lost(
                feature, known[start], place[rows], queries.places[rows], size, reading.cycle_cells
            )
            is_hidden[rows] = is_empty | are_lost
        places.append(place.copy())
        occluded.append(is_hidden)
    return Tracks(np.stack(places, 1), np.stack(occluded, 1))


def _are_lost(
    feature: Tensor,
    query_feature: Tensor,
    found: Places,
    queries: Places,
    size: tuple[int, int],
    cycle_cells: float,
) -> Flags:
    """Whether the way back from where points were found misses their queries by more than `cycle_cells`, (N,) bool.

    The way back is one step: the cell of the query frame most similar (cosine) to the cell where the point was found. A
    hidden point was found on what hides it, which looks like some other place of the query frame.
    """
    height, width = feature.shape[1:]
    cells_per_pixel = np.array([width / size[1], height / size[0]])
    at = np.floor(found * cells_per_pixel).astype(int)
    columns, rows = at[:, 0].clip(0, width - 1), at[:, 1].clip(0, height - 1)
    seen = functional.normalize(feature[:, rows, columns], dim=0)  # (D, N)
    best = (seen.T @ functional.normalize(query_feature.flatten(1), dim=0)).argmax(1).cpu().numpy()
    back = np.stack([best % width, best // width], 1) + 0.5
    return np.linalg.norm(back - queries * cells_per_pixel, axis=1) > cycle_cells


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
