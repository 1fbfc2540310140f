"""Cheats on tasks that look for the other clip of the same video: fingerprints that need no understanding of it.

Such a task's targets name the `videos` (B,) of pairs of clips: rows 2i and 2i + 1 of the view `clips`, or its row i and
row i of the slow view `keys`; or row i of `anchor` and of `positive`, if there is one; or the first two of each video's
`patches`. A cheat takes the clip of the batch that is nearest in thumbnails, colours or noise.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from videossl.audit.findings import Cheat, Check, measure
from videossl.audit.subject import Form, Seen
from videossl.pretext._views import mean_pictures
from videossl.types import Views

BINS = 16  # of each channel's histogram, over [-RANGE, RANGE] of normalised Lab
RANGE = 2.5
EPSILON = 1e-4


def pairs_clips(views: Views) -> bool:
    """Whether these are views of a task that this examiner understands."""
    return "videos" in views.targets and bool({"clips", "anchor", "patches"} & views.inputs.keys())


def noise_residual(clips: Tensor) -> Tensor:
    """(N, 64 + frames' spectrum): how strong what blurring takes away is, in 8 x 8 places: codec and sensor noise."""
    lightness = clips[:, 0]
    blurred = F.avg_pool2d(F.pad(lightness, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    residual = lightness - blurred
    energy = F.adaptive_avg_pool2d(residual.square(), 8).mean(1).flatten(1)
    right = (residual[..., 1:] * residual[..., :-1]).mean((1, 2, 3))
    down = (residual[..., 1:, :] * residual[..., :-1, :]).mean((1, 2, 3))
    total = residual.square().mean((1, 2, 3)) + EPSILON
    shape = torch.stack([right / total, down / total], 1)
    return torch.cat([(energy + EPSILON).log(), shape], 1)


def colour_histogram(clips: Tensor) -> Tensor:
    """(N, 3 * 16) shares of the pixels in bins of L, a and b."""
    place = ((clips + RANGE) / (2 * RANGE) * BINS).long().clamp(0, BINS - 1).flatten(2)
    counts = torch.zeros(len(clips), 3, BINS, device=clips.device)
    return (
        counts.scatter_add_(2, place, torch.ones_like(place, dtype=counts.dtype)).flatten(1)
        / place.shape[2]
    )


FINGERPRINTS: dict[str, Callable[[Tensor], Tensor]] = {
    "thumbnails, 8 x 8": mean_pictures,
    "noise residual": noise_residual,
    "colour histogram": colour_histogram,
}


class Instances:
    """Gathers which clip of each held-out batch is nearest, as evaluation and as training show them."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._right: dict[tuple[str, Form], list[np.ndarray]] = {}
        self._videos: dict[Form, list[np.ndarray]] = {}
        self._chances: list[np.ndarray] = []
        self._num_equal = 0
        self._asks_the_same = True

    @torch.no_grad()
    def look(self, seen: Seen) -> None:
        """Takes one held-out batch, and passes over others."""
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
        """The task's, which is not known here where its candidates are others than those of the batch."""
        return self._chance_in_batch() if self._asks_the_same else float("nan")

    def _chance_in_batch(self) -> float:
        """Of a guess among the clips of other videos in the batch and the right one."""
        return float(np.concatenate(self._chances).mean())

    def cheats(self) -> list[Cheat]:
        """How often the nearest clip is the right one."""
        found, chance = [], self._chance_in_batch()
        for (name, form), parts in self._right.items():
            right, videos = np.concatenate(parts), np.concatenate(self._videos[form])
            interval, verdict = measure(
                right,
                np.ones(len(right)),
                videos,
                chance=chance,
                is_baseline=True,
                seed=self._seed,
            )
            probe = "P4" if name.startswith("thumbnails") else "P2"
            count = len(np.unique(videos))
            found.append(
                Cheat(
                    probe,
                    name,
                    interval,
                    chance,
                    verdict,
                    len(right),
                    count,
                    form,
                    asks_the_same=self._asks_the_same,
                )
            )
        return found

    def checks(self) -> list[Check]:
        """How often a video stands twice in a batch: its clips are no negatives of each other."""
        says = f"{self._num_equal} videos stand in a batch more than once; their clips are left out as negatives"
        return [Check("P0", "repeated videos", True, says, {"repeated": self._num_equal})]


def _are_in_batch(views: Views) -> bool:
    """Whether the task's candidates are the clips of the batch; those of a slow view come from a queue.

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
