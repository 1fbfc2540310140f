"""Cheats on tasks that say what their questions show: cheap classifiers of the frames in the order shown (P0, P2 to P6)."""

from collections.abc import Callable, Set
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from videossl.audit.classifier import Cheater, class_weights
from videossl.audit.findings import Cheat, Check, measure
from videossl.audit.labels import Places, label_checks
from videossl.audit.probes import PROBES, Probe, asks_direction, everything
from videossl.audit.subject import Form, Seen, Side
from videossl.audit.swap import Judged, swap_check
from videossl.types import Questions, Views

ALL = "all of them together"
NUM_SHUFFLES = 20
MOVING: tuple[Form, ...] = ("evaluation", "training")
STILL: dict[Form, str] = {"static": "one frame repeated", "flicker": "one frame, flickering"}
SWAPPED = next(probe for probe in PROBES if probe.needs_direction)
SAME = 1e-6  # of normalised L: frames closer than this are one frame


@dataclass(frozen=True)
class Rows:
    """Numbers about many questions: features by probe, labels, and the videos and positions they are about."""

    features: dict[str, np.ndarray]  # (Q, D)
    labels: np.ndarray  # (Q,)
    videos: np.ndarray
    positions: np.ndarray
    shows_change: np.ndarray  # (Q,) bool: not all frames shown are one


class Asked:
    """Gathers the questions of batches, and tries every cheat on them. `ask` is the task's `questions`.

    Where `asks_of_time` is false, one frame may answer what a single frame is asked: P5 is a baseline then.
    """

    def __init__(
        self,
        ask: Callable[[Views], Questions | None],
        *,
        batch_size: int,
        seed: int,
        asks_of_time: bool = True,
    ) -> None:
        self._ask, self._batch_size, self._seed = ask, batch_size, seed
        self._asks_of_time = asks_of_time
        self._parts: dict[tuple[Side, Form], list[Rows]] = {}
        self._is_direction: bool | None = None
        self.num_answers = 0

    @torch.no_grad()
    def look(self, seen: Seen) -> None:
        """Takes one batch in one form."""
        questions = self._ask(seen.views)
        assert questions is not None
        parts = self._parts.setdefault((seen.side, seen.form), [])
        self.num_answers = questions.num_answers
        if not len(questions.frames):
            return
        if self._is_direction is None:
            self._is_direction = asks_direction(questions)
        wanted: list[tuple[str, Callable[[Questions], Tensor]]] = [(ALL, everything)]
        if seen.form not in STILL:
            wanted += [(probe.name, probe.features) for probe in PROBES]
        rows = questions.videos.cpu().numpy()
        change = (questions.frames - questions.frames[:, :1]).abs().flatten(1).amax(1) > SAME
        parts.append(
            Rows(
                {name: features(questions).cpu().numpy() for name, features in wanted},
                questions.labels.cpu().numpy(),
                seen.videos[rows],
                seen.positions[rows],
                change.cpu().numpy(),
            )
        )

    def chance(self) -> float:
        """What a constant answer scores: all labels weigh alike."""
        heldout = self._rows("heldout", "evaluation")
        return 1 / max(1, len(np.unique(heldout.labels))) if heldout else float("nan")

    def cheats(self) -> list[Cheat]:
        """P2 to P6."""
        found: list[Cheat] = []
        for form in MOVING:
            train, heldout = self._rows("train", form), self._rows("heldout", form)
            if train is None or heldout is None:
                continue
            for probe in PROBES:
                found.append(self._try(probe, train, heldout, form))
            if form == "evaluation":
                found.append(self._try_shuffled(train, heldout))
        for form, name in STILL.items():
            train, heldout = self._rows("train", form), self._rows("heldout", form)
            if train is not None and heldout is not None:
                probe = Probe("P5", name, everything, is_baseline=not self._asks_of_time)
                found.append(self._try(probe, train, heldout, form))
        return found

    def checks(self) -> list[Check]:
        """P0, and whether static clips are shown differently by label (P5)."""
        sides = [self._rows(side, "evaluation") for side in ("train", "heldout")]
        known = [rows for rows in sides if rows is not None]
        if not known:
            return [Check("P0", "questions", False, "no question is asked: all clips are left out")]
        # Positions of the two sides are of two datasets: those of the larger one are looked at.
        largest = max(known, key=lambda rows: len(rows.labels))
        places = Places(largest.positions, self._batch_size)
        return [*label_checks(largest.labels, places, seed=self._seed), self._static_check()]

    def swap_check(self, variant: str, coded: Set[int]) -> Check | None:
        """P7: what the probe of quality loses on the videos `coded` anew; None where nothing was asked of them."""
        train, heldout = self._rows("train", "evaluation"), self._rows("heldout", "evaluation")
        other = self._rows("heldout", variant)
        if train is None or heldout is None or other is None:
            return None
        cheater = Cheater(train.features[SWAPPED.name], train.labels)
        before, after = (
            Judged(cheater.answer(r.features[SWAPPED.name]) == r.labels, None, r.videos)
            for r in (heldout, other)
        )
        who = f"the probe of {SWAPPED.name}"
        return swap_check(who, variant, before, after, coded=coded, seed=self._seed)

    def _static_check(self) -> Check:
        name = "static clips look alike whatever the label"
        sides = [self._rows(side, "static") for side in ("train", "heldout")]
        rows = [side for side in sides if side is not None]
        if not rows:
            return Check("P5", name, True, "nothing is asked of static clips")
        labels = np.concatenate([side.labels for side in rows])
        change = np.concatenate([side.shows_change for side in rows])
        shares = {label: float(change[labels == label].mean()) for label in np.unique(labels)}
        says = ", ".join(f"label {label}: {share:.0%}" for label, share in shares.items())
        is_clean = max(shares.values()) - min(shares.values()) < 0.05
        prefix = "static clips change alike" if is_clean else "static clips are changed by label"
        return Check("P5", name, is_clean, f"{prefix} ({says} of them differ between frames)")

    def _try(self, probe: Probe, train: Rows, heldout: Rows, form: Form) -> Cheat:
        name = probe.name if probe.name in train.features else ALL
        cheater = Cheater(train.features[name], train.labels)
        right = cheater.answer(heldout.features[name]) == heldout.labels
        is_baseline = probe.is_baseline or (probe.needs_direction and not self._is_direction)
        return self._cheat(probe.number, probe.name, right, heldout, form, is_baseline=is_baseline)

    def _try_shuffled(self, train: Rows, heldout: Rows) -> Cheat:
        """P6. What shuffled labels happen to favour is right, or wrong, about all videos alike: the interval is one over
        shuffles."""
        random = np.random.default_rng(self._seed)
        weights = class_weights(heldout.labels)
        accuracies = []
        for _ in range(NUM_SHUFFLES):
            cheater = Cheater(train.features[ALL], random.permutation(train.labels))
            right = cheater.answer(heldout.features[ALL]) == heldout.labels
            accuracies.append(float((right * weights).sum() / weights.sum()))
        chance = 1 / len(np.unique(heldout.labels))
        shuffles = np.arange(NUM_SHUFFLES)
        interval, verdict = measure(
            np.array(accuracies), np.ones(NUM_SHUFFLES), shuffles, chance=chance, seed=self._seed
        )
        name = f"labels shuffled {NUM_SHUFFLES} times, all probes"
        videos = len(np.unique(heldout.videos))
        return Cheat("P6", name, interval, chance, verdict, len(heldout.labels), videos)

    def _cheat(
        self,
        probe: str,
        name: str,
        right: np.ndarray,
        heldout: Rows,
        form: Form,
        *,
        is_baseline: bool = False,
    ) -> Cheat:
        chance = 1 / len(np.unique(heldout.labels))
        interval, verdict = measure(
            right.astype(float),
            class_weights(heldout.labels),
            heldout.videos,
            chance=chance,
            is_baseline=is_baseline,
            seed=self._seed,
        )
        videos = len(np.unique(heldout.videos))
        return Cheat(probe, name, interval, chance, verdict, len(right), videos, form)

    def _rows(self, side: Side, form: Form) -> Rows | None:
        parts = self._parts.get((side, form))
        if not parts:
            return None
        return Rows(
            {
                name: np.concatenate([part.features[name] for part in parts])
                for name in parts[0].features
            },
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("labels", "videos", "positions", "shows_change")
            ),
        )
