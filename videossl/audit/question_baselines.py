"""Shortcut baselines for tasks that say which frames each question shows: numbers off the frames, fitted and judged.

Each probe turns `ShortcutInputs` into (Q, D) numbers that hold neither motion nor objects: values per frame (P2), the
border or the centre alone (P3), differences between frames (P4). A linear classifier learns the answers on training
videos and is judged on held-out ones; then all numbers together on clips in which nothing happens (P5) and with shuffled
labels (P6).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from videossl.audit.input_checks import label_checks
from videossl.audit.shortcut_baselines import (
    Check,
    Judged,
    LinearClassifier,
    ShortcutBaseline,
    class_weights,
    judged_baseline,
    measure,
)
from videossl.audit.subject import STILL_FORMS, Form, Seen, Side
from videossl.types import ShortcutInputs, Views

# Added to energies of normalised L before the logarithm: far below what 8-bit rounding leaves.
EPSILON = 1e-4
GRID = 8  # pixels of the blocks that codecs transform
OUTLINE_DIRECTIONS, OUTLINE_CELLS = 8, 4  # of a half turn, and cells a side; chosen
RIM_SHARE = 8 / 112  # of the side
# Longer questions are shown by as many frames, evenly spread, to keep the numbers few.
MAX_REGION_FRAMES, MAX_COMPARED_FRAMES = 12, 6
SAME = 1e-6  # of normalised L: frames closer than this are one frame
NUM_SHUFFLES = 20
MUST_STAY = "all probes that must stay at chance"
STILL_NAMES = {"static": "one frame repeated", "flicker": "one frame, flickering"}


@dataclass(frozen=True)
class Probe:
    """Defines what one baseline sees of the questions.

    Above chance it is a leak, unless the task itself asks about such numbers: always with `to_beat`, and with
    `needs_direction` in every task but those that tell clips from their reversals.
    """

    number: str
    name: str
    features: Callable[[ShortcutInputs], Tensor]
    to_beat: bool = False
    needs_direction: bool = False

    def is_to_beat(self, *, asks_direction: bool) -> bool:
        """Tells whether the probe is no leak in a task that tells clips from their reversals, or in one that does not."""
        return self.to_beat or (self.needs_direction and not asks_direction)


def scalars(questions: ShortcutInputs) -> Tensor:
    """(Q, 3 F): mean, spread and Laplacian energy of each frame."""
    lightness = _lightness(questions)
    parts = [lightness.mean((2, 3)), lightness.std((2, 3)), _sharpness(lightness)]
    return torch.cat(parts, 1)


def quality_ramp(questions: ShortcutInputs) -> Tensor:
    """(Q, about 2 F): sharpness and blockiness, later less earlier, since codecs mark the ends of files and key frames."""
    lightness = _lightness(questions)
    traces = (_sharpness(lightness), _blockiness(lightness))
    return torch.cat([_antisymmetric(trace) for trace in traces], 1)


def quality_and_change_ramp(questions: ShortcutInputs) -> Tensor:
    """(Q, about 3 F): the quality ramp, and the same of the energy of change between neighbouring frames."""
    change = _lightness(questions).diff(dim=1).square().mean((2, 3))
    return torch.cat([quality_ramp(questions), _antisymmetric(_log(change))], 1)


def rim(questions: ShortcutInputs) -> Tensor:
    """(Q, 12 F): mean, spread and sharpness of four strips at the border, which show bars, overlays and padding."""
    lightness, width = _lightness_and_rim(questions)
    strips = [lightness[..., :width, :], lightness[..., -width:, :]]
    return _regions([*strips, lightness[..., :width], lightness[..., -width:]])


def middle(questions: ShortcutInputs) -> Tensor:
    """(Q, 12 F): mean, spread and sharpness of the four quarters inside the rim."""
    lightness, width = _lightness_and_rim(questions)
    inside = lightness[..., width:-width, width:-width]
    return _regions(
        [part for row in inside.tensor_split(2, -2) for part in row.tensor_split(2, -1)]
    )


def outline_distances(questions: ShortcutInputs) -> Tensor:
    """(Q, pairs): how unlike the outlines of up to six frames are, less the question's mean.

    Outlines are histograms of gradients by direction, the idea of HOG (Dalal and Triggs, CVPR 2005), which see no brightness
    and little of a shift.
    """
    outlines = _outlines(_evenly(_lightness(questions), MAX_COMPARED_FRAMES))
    first, second = torch.combinations(torch.arange(outlines.shape[1])).unbind(1)
    logs = _log((outlines[:, first] - outlines[:, second]).abs().mean(2))
    # A video in which much moves is not to look different from one in which little does.
    return logs - logs.mean(1, keepdim=True) if len(first) else logs


def sizes_of_change(questions: ShortcutInputs) -> Tensor:
    """(Q, 3): how much thumbnails of neighbouring frames differ, and the largest difference and the spread beside that."""
    frames = questions.frames.float()
    small = F.adaptive_avg_pool2d(frames.flatten(0, 1), 8).unflatten(0, frames.shape[:2])
    jumps = _log(small.diff(dim=1).abs().mean((2, 3, 4)))
    if not jumps.shape[1]:
        return frames.new_zeros(len(frames), 3)
    amount, jumps = jumps.mean(1), jumps - jumps.mean(1, keepdim=True)
    return torch.stack([amount, jumps.amax(1), jumps.square().mean(1).sqrt()], 1)


PROBES = (
    Probe("P2", "mean, spread, sharpness of each frame", scalars),
    Probe("P2", "quality at one end against the other", quality_ramp),
    Probe("P2", "quality and change at one end", quality_and_change_ramp, needs_direction=True),
    Probe("P3", "border alone", rim),
    Probe("P3", "centre alone", middle),
    Probe("P4", "distances between outlines", outline_distances, to_beat=True),
    Probe("P4", "sizes of changes alone", sizes_of_change, to_beat=True),
)
RAMP = next(probe for probe in PROBES if probe.needs_direction)


def together(questions: ShortcutInputs) -> Tensor:
    """(Q, D): the numbers of all probes, for where nothing at all may tell the answers apart."""
    return torch.cat([probe.features(questions) for probe in PROBES], 1)


def asks_direction(questions: ShortcutInputs) -> bool:
    """Tells whether each question is asked of the reversed frames too, with the other of two answers."""
    if questions.num_answers != 2 or not len(questions.frames):
        return False
    trace = scalars(questions).unflatten(1, (3, -1))
    for video in questions.videos.unique():
        rows = questions.videos == video
        own, labels = trace[rows], questions.labels[rows]
        apart = (own[:, None] - own.flip(2)[None]).abs().amax((2, 3))
        is_reversed = (apart < 1e-4) & (labels[:, None] != labels[None])
        if not bool(is_reversed.any(1).all()):
            return False
    return True


@dataclass(frozen=True)
class Rows:
    """Numbers about Q questions by probe, with their labels, and the videos and positions they are about."""

    features: dict[str, np.ndarray]  # (Q, D)
    labels: np.ndarray  # (Q,)
    videos: np.ndarray
    positions: np.ndarray
    shows_change: np.ndarray  # (Q,) bool: not all frames shown are one

    @property
    def together(self) -> np.ndarray:
        """(Q, D) the numbers of all probes beside each other."""
        return np.concatenate(list(self.features.values()), 1)


class QuestionBaselines:
    """Gathers the questions of a task batch by batch, then fits and judges every probe. `ask` is the task's `questions`.

    Where `asks_of_time` is false a single frame may well answer, so that P5 is a score to beat and no leak.
    """

    def __init__(
        self,
        ask: Callable[[Views], ShortcutInputs | None],
        *,
        batch_size: int,
        seed: int,
        asks_of_time: bool = True,
    ) -> None:
        self._ask, self._batch_size, self._seed = ask, batch_size, seed
        self._asks_of_time = asks_of_time
        self._asks_direction: bool | None = None
        self._parts: dict[tuple[Side, Form], list[Rows]] = {}

    @torch.no_grad()
    def look(self, seen: Seen) -> None:
        """Takes the numbers of one batch in one form."""
        questions = self._ask(seen.views)
        assert questions is not None
        if not len(questions.frames):
            return
        if self._asks_direction is None:
            self._asks_direction = asks_direction(questions)
        rows = questions.videos.cpu().numpy()
        change = (questions.frames - questions.frames[:, :1]).abs().flatten(1).amax(1) > SAME
        part = Rows(
            {p.name: p.features(questions).cpu().numpy() for p in self._wanted(seen.form)},
            questions.labels.cpu().numpy(),
            seen.videos[rows],
            seen.positions[rows],
            change.cpu().numpy(),
        )
        self._parts.setdefault((seen.side, seen.form), []).append(part)

    def _wanted(self, form: Form) -> list[Probe]:
        """The probes that are fitted, or judged, on clips of a form; those of files coded anew show their quality."""
        if form in ("evaluation", *STILL_FORMS):
            return list(PROBES)
        if form != "training":
            return [RAMP]
        direction = bool(self._asks_direction)
        return [probe for probe in PROBES if not probe.is_to_beat(asks_direction=direction)]

    def chance(self) -> float:
        """The accuracy of a constant answer, all labels weighing alike."""
        heldout = self._rows("heldout", "evaluation")
        return 1 / max(1, len(np.unique(heldout.labels))) if heldout else float("nan")

    def baselines(self) -> list[ShortcutBaseline]:
        """Fits P2 to P4 on evaluation clips, all together on shuffled labels and on training, static, flickering ones."""
        found = []
        for probe in PROBES:
            to_beat = probe.is_to_beat(asks_direction=bool(self._asks_direction))
            found += self._fit(probe.number, probe.name, "evaluation", to_beat, probe=probe)
        found += self._shuffled()
        found += self._fit("P2", MUST_STAY, "training", False)
        for form, name in STILL_NAMES.items():
            found += self._fit("P5", name, form, not self._asks_of_time)
        return found

    def checks(self) -> list[Check]:
        """Returns P0, and whether static clips are shown differently by label (P5)."""
        sides = [self._rows(side, "evaluation") for side in ("train", "heldout")]
        known = [rows for rows in sides if rows is not None]
        if not known:
            return [Check("P0", "questions", False, "no question is asked: all clips are left out")]
        # The two sides have positions of their own: those of the larger one are looked at.
        largest = max(known, key=lambda rows: len(rows.labels))
        tied = label_checks(
            largest.labels, largest.positions, batch_size=self._batch_size, seed=self._seed
        )
        return [*tied, self._static_check()]

    def before_and_after(self, variant: Form) -> tuple[Judged, Judged] | None:
        """The answers of the ramp on files as they are and coded anew (P7); None where nothing was asked of them."""
        sides, other = self._sides("evaluation"), self._rows("heldout", variant)
        if sides is None or other is None:
            return None
        classifier = LinearClassifier(sides[0].features[RAMP.name], sides[0].labels)
        before, after = (
            Judged(classifier.answer(r.features[RAMP.name]) == r.labels, None, r.videos)
            for r in (sides[1], other)
        )
        return before, after

    def _static_check(self) -> Check:
        name = "static clips look alike whatever the label"
        rows = [side for s in ("train", "heldout") if (side := self._rows(s, "static")) is not None]
        if not rows:
            return Check("P5", name, True, "nothing is asked of static clips")
        labels = np.concatenate([side.labels for side in rows])
        change = np.concatenate([side.shows_change for side in rows])
        shares = {label: float(change[labels == label].mean()) for label in np.unique(labels)}
        says = ", ".join(f"label {label}: {share:.0%}" for label, share in shares.items())
        is_clean = max(shares.values()) - min(shares.values()) < 0.05
        prefix = "static clips change alike" if is_clean else "static clips are changed by label"
        return Check("P5", name, is_clean, f"{prefix} ({says} of them differ between frames)")

    def _fit(
        self, number: str, name: str, form: Form, to_beat: bool, *, probe: Probe | None = None
    ) -> list[ShortcutBaseline]:
        """The baseline that sees one probe's numbers or all of the form's; none where nothing was asked."""
        sides = self._sides(form)
        if sides is None:
            return []
        seen, asked = (rows.features[probe.name] if probe else rows.together for rows in sides)
        labels = sides[1].labels
        right = LinearClassifier(seen, sides[0].labels).answer(asked) == labels
        baseline = judged_baseline(
            *(number, name, right, sides[1].videos),
            chance=1 / len(np.unique(labels)),
            weights=class_weights(labels),
            to_beat=to_beat,
            seed=self._seed,
            form=form,
        )
        return [baseline]

    def _shuffled(self) -> list[ShortcutBaseline]:
        """P6, with an interval over shuffles: what one shuffle favours by luck is right or wrong of all videos alike."""
        sides = self._sides("evaluation")
        if sides is None:
            return []
        train, heldout = sides
        random = np.random.default_rng(self._seed)
        seen, asked, weights = train.together, heldout.together, class_weights(heldout.labels)
        accuracies = []
        for _ in range(NUM_SHUFFLES):
            answers = LinearClassifier(seen, random.permutation(train.labels)).answer(asked)
            accuracies.append(np.average(answers == heldout.labels, weights=weights))
        chance = 1 / len(np.unique(heldout.labels))
        ones, shuffles = np.ones(NUM_SHUFFLES), np.arange(NUM_SHUFFLES)
        interval, verdict = measure(
            np.array(accuracies), ones, shuffles, chance=chance, seed=self._seed
        )
        name = f"labels shuffled {NUM_SHUFFLES} times, all probes"
        counts = len(heldout.labels), len(np.unique(heldout.videos))
        return [ShortcutBaseline("P6", name, interval, chance, verdict, *counts)]

    def _sides(self, form: Form) -> tuple[Rows, Rows] | None:
        """The questions to learn from and those to judge on; None where either is missing."""
        train, heldout = self._rows("train", form), self._rows("heldout", form)
        return None if train is None or heldout is None else (train, heldout)

    def _rows(self, side: Side, form: Form) -> Rows | None:
        parts = self._parts.get((side, form))
        if not parts:
            return None
        names = parts[0].features
        features = {n: np.concatenate([part.features[n] for part in parts]) for n in names}
        others = ("labels", "videos", "positions", "shows_change")
        return Rows(features, *(np.concatenate([getattr(p, n) for p in parts]) for n in others))


def _lightness(questions: ShortcutInputs) -> Tensor:
    return questions.frames[:, :, 0].float()


def _lightness_and_rim(questions: ShortcutInputs) -> tuple[Tensor, int]:
    """Lightness of up to twelve frames, and the width of their rim in pixels."""
    lightness = _evenly(_lightness(questions), MAX_REGION_FRAMES)
    return lightness, max(3, round(RIM_SHARE * lightness.shape[-1]))


def _outlines(lightness: Tensor) -> Tensor:
    """(Q, F, H, W) to (Q, F, D): in a grid of cells the share of gradients of each direction, without sign."""
    down = lightness.diff(dim=2)[..., :-1]
    across = lightness.diff(dim=3)[..., :-1, :]
    strength = torch.hypot(down, across)
    direction = (torch.atan2(down, across) / torch.pi * OUTLINE_DIRECTIONS).floor()
    direction = direction.long() % OUTLINE_DIRECTIONS
    shape = *strength.shape[:2], OUTLINE_DIRECTIONS, *strength.shape[2:]
    of_direction = strength.new_zeros(shape)
    of_direction.scatter_(2, direction.unsqueeze(2), strength.unsqueeze(2))
    cells = F.adaptive_avg_pool2d(of_direction.flatten(0, 1), OUTLINE_CELLS).flatten(1)
    cells = cells / cells.sum(1, keepdim=True).clamp_min(EPSILON)
    return cells.view(*strength.shape[:2], -1)


def _evenly(frames: Tensor, count: int) -> Tensor:
    """At most `count` of (Q, F, ...) frames, evenly over them, the first and the last among them."""
    number = frames.shape[1]
    if number <= count:
        return frames
    return frames[:, torch.linspace(0, number - 1, count).round().long().to(frames.device)]


def _sharpness(lightness: Tensor) -> Tensor:
    """(Q, F) log energy of the Laplacian."""
    inner = lightness[..., 1:-1, 1:-1]
    around = lightness[..., 2:, 1:-1] + lightness[..., :-2, 1:-1]
    around = around + lightness[..., 1:-1, 2:] + lightness[..., 1:-1, :-2]
    return _log((4 * inner - around).square().mean((2, 3)))


def _blockiness(lightness: Tensor) -> Tensor:
    """(Q, F) log of how much larger steps are across the lines of an 8-pixel grid than elsewhere."""
    steps = lightness.diff(dim=-1).abs()
    across = steps[..., GRID - 1 :: GRID].mean((2, 3))
    return _log(across) - _log(steps.mean((2, 3)))


def _regions(regions: list[Tensor]) -> Tensor:
    parts = [[r.mean((2, 3)), r.std((2, 3)), _sharpness(r)] for r in regions]
    return torch.cat([number for numbers in parts for number in numbers], 1)


def _antisymmetric(values: Tensor) -> Tensor:
    """(Q, 2 (F // 2) - 1): each value less its mirror image's in time, and the steps between those.

    All of it changes its sign when time runs backward. The steps say nothing new, but content differs little between
    neighbours, so that a linear rule finds a mark on single frames there from few examples.
    """
    levels = (values - values.flip(1))[:, : values.shape[1] // 2]
    return torch.cat([levels, levels.diff(dim=1)], 1)


def _log(values: Tensor) -> Tensor:
    return (values + EPSILON).log()
