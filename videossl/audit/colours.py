"""Cheats on tasks that copy colours into hidden channels: rules that no correspondence is needed for.

Such a task's views hold `frames`, target last, its targets `classes` (B, T, h, w) of cells, maybe `table` (B,) whose classes
they are, and `moved` cells of the target. All rules are baselines; a leak is another matter (`hidden.py`).
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from videossl.audit.classifier import Cheater
from videossl.audit.findings import Cheat, Check, measure
from videossl.audit.subject import Seen, Side
from videossl.types import Views

RADIUS = 3  # cells around a cell of the target in which its like is looked for
TRAIN_CELLS = 16  # of each training clip that the per-cell classifier learns from
MOVING = ", moving cells"


def copies_colours(views: Views) -> bool:
    """Whether these are views of a task that this examiner understands."""
    classes = views.targets.get("classes")
    return (
        "frames" in views.inputs
        and "moved" in views.targets
        and classes is not None
        and (classes.ndim == 4)
    )


@dataclass(frozen=True)
class Cells:
    """Cells of target frames: their class, what copies answer, what is visible of them, and whether they moved."""

    classes: np.ndarray  # (C,)
    same_cell: np.ndarray
    nearest: np.ndarray
    visible: np.ndarray  # (C, D)
    moved: np.ndarray
    table: np.ndarray
    videos: np.ndarray


class Colours:
    """Gathers cells of evaluation clips."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._random = np.random.default_rng(seed)
        self._parts: dict[Side, list[Cells]] = {"train": [], "heldout": []}

    @torch.no_grad()
    def look(self, seen: Seen) -> None:
        """Takes one batch of the evaluation form, and passes over others."""
        if seen.form != "evaluation":
            return
        cells = _cells(seen)
        if seen.side == "train":
            count = min(len(cells.classes), TRAIN_CELLS * len(seen.videos))
            cells = _rows(cells, self._random.choice(len(cells.classes), count, replace=False))
        self._parts[seen.side].append(cells)

    def chance(self) -> float:
        """The best constant answer on the held-out cells."""
        return _majority(self._joined("heldout"))

    def cheats(self) -> list[Cheat]:
        """Constant answer, copies, and what is visible of the cell itself; on all cells and on those that moved."""
        train, heldout = self._joined("train"), self._joined("heldout")
        answers = {
            ("P2", "most frequent class"): _most_frequent(train, heldout),
            ("P2", "visible channels of the same cell"): _by_visible(train, heldout),
            ("P4", "same cell of the last reference"): heldout.same_cell,
            ("P4", f"nearest visible colour within {RADIUS} cells"): heldout.nearest,
        }
        found = []
        for (probe, name), said in answers.items():
            for suffix, rows in (("", np.ones_like(heldout.moved)), (MOVING, heldout.moved)):
                cells = _rows(heldout, np.flatnonzero(rows))
                right = (said[rows] == cells.classes).astype(float)
                chance = _majority(cells)
                interval, verdict = measure(
                    right,
                    np.ones(len(right)),
                    cells.videos,
                    chance=chance,
                    is_baseline=True,
                    seed=self._seed,
                )
                videos = len(np.unique(cells.videos))
                count, is_all = len(right), suffix == ""
                found.append(
                    Cheat(
                        probe,
                        name + suffix,
                        interval,
                        chance,
                        verdict,
                        count,
                        videos,
                        asks_the_same=is_all,
                    )
                )
        return found

    def checks(self) -> list[Check]:
        """Whether colours are more than one class: the entropy of the classes (shortcuts: at least 1.5 nats)."""
        heldout = self._joined("heldout")
        counts = np.unique(heldout.classes, return_counts=True)[1]
        shares = counts / counts.sum()
        nats = float(-(shares * np.log(shares)).sum())
        moved = float(heldout.moved.mean())
        says = f"classes of cells have an entropy of {nats:.2f} nats; {moved:.0%} of cells moved"
        return [Check("P0", "colour classes", nats >= 1.0, says, {"nats": nats, "moved": moved})]

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


def _rows(cells: Cells, index: np.ndarray) -> Cells:
    return Cells(*(getattr(cells, name)[index] for name in Cells.__dataclass_fields__))


def _majority(cells: Cells) -> float:
    """The share of cells that are of their table's most frequent class."""
    if not len(cells.classes):
        return float("nan")
    tables = np.unique(cells.table)
    most = [np.bincount(cells.classes[cells.table == table]).max() for table in tables]
    return float(sum(most) / len(cells.classes))


def _most_frequent(train: Cells, heldout: Cells) -> np.ndarray:
    said = np.full_like(heldout.classes, -1)
    for table in np.unique(train.table):
        counts = np.bincount(train.classes[train.table == table])
        said[heldout.table == table] = counts.argmax()
    return said


def _by_visible(train: Cells, heldout: Cells) -> np.ndarray:
    said = np.full_like(heldout.classes, -1)
    for table in np.unique(train.table):
        own, theirs = train.table == table, heldout.table == table
        cheater = Cheater(train.visible[own], train.classes[own], is_balanced=False)
        said[theirs] = cheater.answer(heldout.visible[theirs])
    return said
