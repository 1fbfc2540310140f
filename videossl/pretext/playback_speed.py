"""Playback speed: is the clip shown at its own speed, or sped up? SpeedNet and PacePred.

SpeedNet (Benaim et al., CVPR 2020): 1x or 2x, both speeds of the same video in the same batch. PacePred (Wang, Jiao, Liu,
ECCV 2020) asks which of several paces, as `speeds: (1, 2, 4, 8)` does here. A speed s shows every s-th frame.

Departures: Lab clips, and every speed of a clip in each batch, so that no label depends on a draw. `frame_gaps` varies what
1x is from video to video; SpeedNet skips single frames instead, which leaves steps of one and two frames in a slow clip, of
two and three in a fast one: how uneven the steps are would tell the speeds apart.
Against shortcuts: all speeds are cut of one decoded clip and have equally many frames; each is cut at a scale and place
of its own (SpeedNet's random resize), so that pixels per frame do not tell; clips that hardly move are left out. What
sorting the batch's clips by how much changes from frame to frame answers stands beside the accuracy
(`shortcut_baseline`), and what it says of two speeds of one clip (`pairwise_baseline`) beside whether the head gives the
faster the higher speed (`pairwise`).
"""

from collections.abc import Mapping
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from videossl.io.drawing import NUM_DRAWN, Strip, contact_sheet, film, from_array
from videossl.models.encoder import StageInfo
from videossl.models.heads import mlp
from videossl.pretext._views import change, reorder_frames, warp_frames
from videossl.pretext.settings import PlaybackSpeedConfig
from videossl.pretext.task import PretextTask
from videossl.rng import RowRandom
from videossl.types import (
    ClipBatch,
    ClipSpec,
    FeatureMaps,
    Predictions,
    ShortcutInputs,
    TaskResult,
    Views,
    metric_sum,
)


class Task(PretextTask):
    """Predictions at which of `speeds` a clip is shown."""

    Config = PlaybackSpeedConfig

    def __init__(self, config: PlaybackSpeedConfig, stages: Mapping[str, StageInfo]) -> None:
        super().__init__(config, stages)
        self.config = config
        self.clip_spec = ClipSpec(
            1,
            (config.num_frames - 1) * max(config.speeds) * max(config.frame_gaps) + 1,
            config.seconds_between_frames,
            round(config.crop_size * config.max_scale),
        )
        self.names = [f"x{speed}" for speed in config.speeds]
        # Made once: a tensor made of numbers in each step would make a GPU wait for its transfer.
        self.register_buffer("frame_gaps", torch.tensor(config.frame_gaps), persistent=False)
        self.frame_gaps: Tensor
        self.head = mlp(
            stages[config.stage].channels,
            config.hidden_dim,
            len(self.names),
            dropout=config.dropout,
        )

    def make_views(self, batch: ClipBatch, rng: RowRandom) -> Views:
        clips = batch.clips[self.clip_spec][:, 0]  # (B, 3, frames, H, W)
        moving = (change(clips) >= self.config.min_motion).float()
        gap = self.frame_gaps[rng.integers(high=len(self.frame_gaps))]  # (B,)
        views = {}
        for name, speed in zip(self.names, self.config.speeds, strict=True):
            step = torch.arange(self.config.num_frames, device=clips.device) * gap[:, None] * speed
            room = clips.shape[2] - 1 - step[:, -1]
            start = (rng.uniform() * (room + 1)).long().minimum(room)
            views[name] = self._cut(reorder_frames(clips, start[:, None] + step), rng)
        changes = torch.stack([change(view) for view in views.values()], 1)
        return Views(views, {"moving": moving, "change": changes})

    def _cut(self, clips: Tensor, rng: RowRandom) -> Tensor:
        """A square of each clip at a scale and place of its own."""
        size = self.config.crop_size
        room = clips.shape[-1] / size
        scale = room ** rng.uniform()  # uniform in log scale: as many octaves in as out
        half = scale * size / 2
        centre = half[:, None] + rng.uniform(2) * (clips.shape[-1] - 2 * half)[:, None]
        return warp_frames(
            clips, centre=centre, scale=scale, angle=torch.zeros_like(scale), size=size
        )

    def forward(self, features: dict[str, FeatureMaps], targets: dict[str, Tensor]) -> TaskResult:
        logits = self._logits(features)  # (B, shown, answers)
        moving = targets["moving"]
        labels = self._labels(logits)
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        right = (logits.argmax(-1) == labels).float()
        shortcut_baseline = (self._sorted(targets) == labels).float()
        weights = moving[:, None].expand_as(right)
        # A fixed denominator keeps the mean over ranks equal to the mean over the whole batch.
        loss = (losses * weights.flatten()).mean()
        return TaskResult(
            loss,
            {
                "accuracy": metric_sum(right, weights),
                "chance": metric_sum(torch.full_like(right, 1 / len(self.names))),
                "shortcut_baseline": metric_sum(shortcut_baseline, weights),
                "pairwise": metric_sum(_rising_pairs(self._expected(logits)), moving),
                "pairwise_baseline": metric_sum(_rising_pairs(targets["change"]), moving),
                "moving_share": metric_sum(moving),
            },
        )

    @torch.no_grad()
    def predictions(
        self, features: dict[str, FeatureMaps], targets: dict[str, Tensor]
    ) -> Predictions:
        """Each speed of each clip. `motion` sorts the batch; `pairwise` is the share of the clip's pairs that are right."""
        logits = self._logits(features)
        count = len(self.names)
        pairs = _rising_pairs(self._expected(logits))
        return Predictions(
            logits.flatten(0, 1),
            self._labels(logits).flatten(),
            torch.arange(len(logits), device=logits.device).repeat_interleave(count),
            targets["moving"].repeat_interleave(count),
            baselines={"motion": self._sorted(targets).flatten()},
            numbers={"pairwise": pairs.repeat_interleave(count)},
        )

    def shortcut_inputs(self, views: Views) -> ShortcutInputs:
        """Each clip that moves, at each speed."""
        moving = views.targets["moving"].bool()
        shown = torch.stack([views.inputs[name][moving].movedim(1, 2) for name in self.names], 1)
        videos = torch.arange(len(moving), device=moving.device)[moving]
        labels = torch.arange(len(self.names), device=moving.device)
        return ShortcutInputs(
            shown.flatten(0, 1),
            labels.repeat(len(videos)),
            videos.repeat_interleave(len(labels)),
            len(labels),
        )

    def _logits(self, features: dict[str, FeatureMaps]) -> Tensor:
        """(B, shown, answers), by one call of the head: its batch statistics cannot tell the speeds apart."""
        # The greatest over space: what moves fastest tells the speed, the rest stands still at any.
        peaks = [features[name].data.amax((3, 4)).mean(2) for name in self.names]
        logits: Tensor = self.head(torch.stack(peaks, 1).flatten(0, 1))
        return logits.unflatten(0, (-1, len(self.names))).float()

    def _labels(self, logits: Tensor) -> Tensor:
        return torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)

    def _expected(self, logits: Tensor) -> Tensor:
        """(B, shown) the mean answer of each shown clip: rises with the chance of high speeds."""
        numbers = torch.arange(logits.shape[-1], device=logits.device)
        return (logits.softmax(-1) * numbers).sum(-1)

    def _sorted(self, targets: dict[str, Tensor]) -> Tensor:
        """(B, shown) the answers if of this rank's moving clips those that change most had the highest speed, and so on."""
        moving = targets["moving"]
        changes = targets["change"].masked_fill(moving[:, None] == 0, -1.0)
        place = changes.flatten().argsort(descending=True).argsort()  # 0 changes most
        place = place.view_as(changes)
        answer = len(self.names) - 1 - place // moving.sum().clamp_min(1)
        return answer.clamp_min(0).long()

    @torch.no_grad()
    def draw(self, views: Views, features: dict[str, FeatureMaps]) -> dict[str, Tensor]:
        """Each speed of a few clips, and how sure the head is of it."""
        sure = self._logits(features).softmax(-1)
        strips = []
        for row in range(min(NUM_DRAWN, len(sure))):
            still = "" if views.targets["moving"][row] else ", left out: too little moves"
            for answer, name in enumerate(self.names):
                title = (
                    f"{name}: the head says so with {float(sure[row, answer, answer]):.2f}{still}"
                )
                strips.append(Strip(title, film(views.inputs[name][row])))
        return {"speed": from_array(contact_sheet(strips, height=72))}


def _rising_pairs(values: Tensor) -> Tensor:
    """(B, speeds) to (B,): the share of pairs of speeds whose faster has the greater value; ties count half."""
    pairs = [
        (values[:, fast] > values[:, slow]).float() + 0.5 * (values[:, fast] == values[:, slow])
        for slow, fast in combinations(range(values.shape[1]), 2)
    ]
    return torch.stack(pairs).mean(0)
