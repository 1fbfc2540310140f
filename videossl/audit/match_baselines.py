"""Shortcut baselines for tasks whose answer is a place: the cell a colour comes from, or the other clip of a video.

They take what looks most like it: the same cell of the frame before, the nearest visible colour, the nearest thumbnail,
histogram or noise. None is a leak, as each is asked what the task asks; the model has to beat them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from videossl.audit.shortcut_baselines import (
    Check,
    LinearClassifier,
    ShortcutBaseline,
    judged_baseline,
)
from videossl.audit.subject import Form, Seen, Side
from videossl.pretext._views import mean_pictures
from videossl.types import Views

RADIUS = 3  # cells around a cell of the target in which its like is looked for
TRAIN_CELLS = 16  # of each training clip that the per-cell classifier learns from
MIN_NATS = 1.0  # entropy of color classes below which one class answers nearly everything; chosen
MOVING = ", moving cells"
BINS, RANGE = 16, 2.5  # of each channel's histogram, over [-RANGE, RANGE] of normalised Lab
EPSILON = 1e-4


def copies_colors(views: Views) -> bool:
    """Tells whether the views are of a task that copies colours.

    Its view `frames` has the target last; its targets are `classes` (B, T, h, w) of cells, maybe `table` (B,) whose classes
    they are, and the `moved` cells of the target.
    """
    classes = views.targets.get("classes")
    has_cells = classes is not None and classes.ndim == 4
    return has_cells and "frames" in views.inputs and "moved" in views.targets


@dataclass(frozen=True)
class Cells:
    """C cells of target frames: their class, what copies answer, what is visible of them, and whether they moved."""

    classes: np.ndarray  # (C,)
    same_cell: np.ndarray
    nearest: np.ndarray
    visible: np.ndarray  # (C, D)
    moved: np.ndarray
    table: np.ndarray
    videos: np.ndarray

    def __getitem__(self, index: np.ndarray) -> "Cells":
        return Cells(*(getattr(self, name)[index] for name in Cells.__dataclass_fields__))


class ColorBaselines:
    """Gathers cells of evaluation clips, then judges copies of colours and answers from the cell's visible channels."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._random = np.random.default_rng(seed)
        self._parts: dict[Side, list[Cells]] = {"train": [], "heldout": []}

    @torch.no_grad()
    def look(self, seen: Seen) -> None:
        """Takes the cells of one batch; clips in other forms than evaluation are passed over."""
        if seen.form != "evaluation":
            return
        cells = _cells(seen)
        if seen.side == "train":
            count = min(len(cells.classes), TRAIN_CELLS * len(seen.videos))
            cells = cells[self._random.choice(len(cells.classes), count, replace=False)]
        self._parts[seen.side].append(cells)

    def chance(self) -> float:
        """The accuracy of the best constant answer on the held-out cells."""
        return _majority(self._joined("heldout"))

    def baselines(self) -> list[ShortcutBaseline]:
        """Copies of colours, and what is visible of the cell itself; on all cells and on those that moved."""
        train, heldout = self._joined("train"), self._joined("heldout")
        answers = {
            ("P2", "visible channels of the same cell"): _by_visible(train, heldout),
            ("P4", "same cell of the last reference"): heldout.same_cell,
            ("P4", f"nearest visible colour within {RADIUS} cells"): heldout.nearest,
        }
        found = []
        for (probe, name), said in answers.items():
            for suffix, rows in (("", np.ones_like(heldout.moved)), (MOVING, heldout.moved)):
                cells = heldout[rows]
                baseline = judged_baseline(
                    *(probe, name + suffix, said[rows] == cells.classes, cells.videos),
                    chance=_majority(cells),
                    to_beat=True,
                    seed=self._seed,
                    asks_the_same=suffix == "",
                )
                found.append(baseline)
        return found

    def checks(self) -> list[Check]:
        """Tells whether the cells are of more than one colour class, by the entropy of their classes."""
        heldout = self._joined("heldout")
        counts = np.unique(heldout.classes, return_counts=True)[1]
        shares = counts / counts.sum()
        nats = float(-(shares * np.log(shares)).sum())
        moved = float(heldout.moved.mean())
        says = f"classes of cells have an entropy of {nats:.2f} nats; {moved:.0%} of cells moved"
        numbers = {"nats": nats, "moved": moved}
        return [Check("P0", "colour classes", nats >= MIN_NATS, says, numbers)]

    def _joined(self, side: Side) -> Cells:
        parts = self._parts[side]
        names = Cells.__dataclass_fields__
        return Cells(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _cells(seen: Seen) -> Cells:
    frames, targets = seen.views.inputs["frames"], seen.views.targets
    classes = targets["classes"]
    count, _, height, width = classes.shape
    visible = F.adaptive_avg_pool3d(frames.float(), (frames.shape[2], height, width))
    table = targets.get("table", torch.zeros(count, dtype=torch.int64, device=classes.device))
    target = visible[:, :, -1]
    pairs = [target[:, i] * target[:, j] for i in range(3) for j in range(i, 3)]
    features = torch.cat([target, torch.stack(pairs, 1)], 1)

    def flat(values: Tensor) -> np.ndarray:
        array: np.ndarray = values.flatten().cpu().numpy()
        return array

    return Cells(
        classes=flat(classes[:, -1]),
        same_cell=flat(classes[:, -2]),
        nearest=flat(nearest_class(visible, classes)),
        visible=rearrange(features, "b d h w -> (b h w) d").cpu().numpy(),
        moved=flat(targets["moved"]).astype(bool),
        table=flat(repeat(table, "b -> b h w", h=height, w=width)),
        videos=np.repeat(seen.videos, height * width),
    )


def nearest_class(visible: Tensor, classes: Tensor) -> Tensor:
    """(B, h, w): the class of the reference cell, within RADIUS cells, that looks most like each cell of the last frame.

    `visible` (B, 3, T, h, w) are the cells as the encoder sees them, `classes` (B, T, h, w).
    """
    height, width = classes.shape[2:]

    def around(values: Tensor) -> Tensor:
        """(B, C, T - 1, window, h w) of (B, C, T, h, w)."""
        references = values[:, :, :-1].flatten(0, 1)
        padded = F.pad(references, (RADIUS,) * 4, mode="replicate")
        columns = F.unfold(padded.flatten(0, 1)[:, None], 2 * RADIUS + 1)
        return columns.unflatten(0, (len(values), values.shape[1], -1))

    target = visible[:, :, -1].flatten(2)[:, :, None, None]  # (B, 3, 1, 1, h w)
    distance = (around(visible) - target).square().sum(1).flatten(1, 2)  # (B, T - 1 window, h w)
    found = around(classes[:, None].float())[:, 0].flatten(1, 2)
    nearest = found.gather(1, distance.argmin(1, keepdim=True))[:, 0]
    return nearest.round().long().unflatten(1, (height, width))


def _majority(cells: Cells) -> float:
    """The share of cells that are of their table's most frequent class."""
    if not len(cells.classes):
        return float("nan")
    tables = np.unique(cells.table)
    most = [np.bincount(cells.classes[cells.table == table]).max() for table in tables]
    return float(sum(most) / len(cells.classes))


def _by_visible(train: Cells, heldout: Cells) -> np.ndarray:
    said = np.full_like(heldout.classes, -1)
    for table in np.unique(train.table):
        own, theirs = train[train.table == table], heldout.table == table
        classifier = LinearClassifier(own.visible, own.classes, is_balanced=False)
        said[theirs] = classifier.answer(heldout.visible[theirs])
    return said


def pairs_clips(views: Views) -> bool:
    """Tells whether the views are of a task that looks for the other clip of the same video.

    Its targets name the `videos` (B,) of pairs of clips: rows 2i and 2i + 1 of the view `clips`, or row i of `clips` and of
    the slow view `keys`, or row i of `anchor` and of `positive`, if there is one, or the first two of a video's `patches`.
    """
    return "videos" in views.targets and bool({"clips", "anchor", "patches"} & views.inputs.keys())


def noise_residual(clips: Tensor) -> Tensor:
    """(N, 66): how strong what blurring takes away is, in 8 x 8 places, and its shape: noise of codec and sensor."""
    lightness = clips[:, 0]
    blurred = F.avg_pool2d(F.pad(lightness, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    residual = lightness - blurred
    energy = F.adaptive_avg_pool2d(residual.square(), 8).mean(1).flatten(1)
    right = (residual[..., 1:] * residual[..., :-1]).mean((1, 2, 3))
    down = (residual[..., 1:, :] * residual[..., :-1, :]).mean((1, 2, 3))
    total = residual.square().mean((1, 2, 3)) + EPSILON
    shape = torch.stack([right / total, down / total], 1)
    return torch.cat([(energy + EPSILON).log(), shape], 1)


def color_histogram(clips: Tensor) -> Tensor:
    """(N, 3 * 16) shares of the pixels in bins of L, a and b."""
    place = ((clips + RANGE) / (2 * RANGE) * BINS).long().clamp(0, BINS - 1).flatten(2)
    counts = torch.zeros(len(clips), 3, BINS, device=clips.device)
    counts = counts.scatter_add_(2, place, torch.ones_like(place, dtype=counts.dtype))
    return counts.flatten(1) / place.shape[2]


FINGERPRINTS: dict[str, Callable[[Tensor], Tensor]] = {
    "thumbnails, 8 x 8": mean_pictures,
    "noise residual": noise_residual,
    "colour histogram": color_histogram,
}


class PairBaselines:
    """Gathers which clip of each held-out batch is nearest in each fingerprint, as evaluation and training show them."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._right: dict[tuple[str, Form], list[np.ndarray]] = {}
        self._videos: dict[Form, list[np.ndarray]] = {}
        self._chances: list[np.ndarray] = []
        self._num_equal = 0
        self._asks_the_same = True

    @torch.no_grad()
    def look(self, seen: Seen) -> None:
        """Takes one held-out batch; the training side and other forms are passed over."""
        if seen.side != "heldout" or seen.form not in ("evaluation", "training"):
            return
        clips = _pairs(seen.views).float()
        self._asks_the_same = _are_in_batch(seen.views)
        videos = torch.from_numpy(seen.videos).repeat_interleave(2).to(clips.device)
        itself = torch.eye(len(clips), dtype=torch.bool, device=clips.device)
        partner = itself.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
        excluded = (videos[:, None] == videos) & ~partner
        for name, describe in FINGERPRINTS.items():
            right = _finds(describe(clips), partner, excluded)
            self._right.setdefault((name, seen.form), []).append(right.cpu().numpy())
        self._videos.setdefault(seen.form, []).append(videos.cpu().numpy())
        if seen.form == "evaluation":
            self._chances.append((1 / (~excluded).sum(1)).cpu().numpy())
            self._num_equal += int((excluded.sum(1) > 1).sum()) // 2

    def chance(self) -> float:
        """The task's chance; not known here where its candidates are others than the clips of the batch."""
        return self._chance_in_batch() if self._asks_the_same else float("nan")

    def _chance_in_batch(self) -> float:
        """The accuracy of a guess among the clips of other videos in the batch and the right one."""
        return float(np.concatenate(self._chances).mean())

    def baselines(self) -> list[ShortcutBaseline]:
        """Measures how often the nearest clip is the right one, by each fingerprint."""
        return [
            judged_baseline(
                "P4" if name.startswith("thumbnails") else "P2",
                *(name, np.concatenate(parts), np.concatenate(self._videos[form])),
                chance=self._chance_in_batch(),
                to_beat=True,
                seed=self._seed,
                form=form,
                asks_the_same=self._asks_the_same,
            )
            for (name, form), parts in self._right.items()
        ]

    def checks(self) -> list[Check]:
        """Counts how often a video stands twice in a batch: its clips are no negatives of each other."""
        says = f"{self._num_equal} videos stand in a batch more than once; their clips are left out as negatives"
        return [Check("P0", "repeated videos", True, says, {"repeated": self._num_equal})]


def _are_in_batch(views: Views) -> bool:
    """Tells whether the task's candidates are the clips of the batch; those of a slow view come from a queue.

    Candidates of `anchor` and `patches` are other ones too: positives and hard negatives alone, or all patches.
    """
    return "clips" in views.inputs and not views.slow_inputs


def _pairs(views: Views) -> Tensor:
    """(2 B, 3, T, H, W): the clips of each video, one after the other."""
    if "anchor" in views.inputs:
        anchor = views.inputs["anchor"]
        return torch.stack([anchor, views.inputs.get("positive", anchor)], 1).flatten(0, 1)
    if "patches" in views.inputs:
        of_video = views.inputs["patches"].unflatten(0, (len(views.targets["videos"]), -1))
        return of_video[:, :2].flatten(0, 1)
    clips = views.inputs["clips"]
    if "keys" not in views.slow_inputs:
        return clips
    return torch.stack([clips, views.slow_inputs["keys"]], 1).flatten(0, 1)


def _finds(numbers: Tensor, partner: Tensor, excluded: Tensor) -> Tensor:
    """(N,) float: whether the nearest of the clips that are not excluded is the partner, in standardised numbers."""
    standard = (numbers - numbers.mean(0)) / (numbers.std(0) + EPSILON)
    distance = torch.cdist(standard, standard, p=1).masked_fill(excluded, torch.inf)
    nearest = F.one_hot(distance.argmin(1), len(distance)).bool()
    return (nearest & partner).any(1).float()
