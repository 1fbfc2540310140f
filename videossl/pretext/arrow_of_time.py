"""Arrow of time: does the clip run forward or backward? Wei, Lim, Zisserman, Freeman, CVPR 2018.

As in T-CAM (section 3.2), temporal groups are pooled apart and fused late: the head reads the first part of a clip beside
the second, as a grid of means or (`fusion: tcam`) by the paper's two convolutions over both. `stabilize` lays all frames
over the centre one and leaves out clips where that fails (section 4). Departures: Lab clips through one 3D-CNN instead of
optical flow through a 2D-CNN per group; and the score of a clip is the head's answer less its answer to the reversed clip,
so that only direction can tell (a batch holds both anyway).
Against shortcuts: both directions are one tensor and its flip, made after every augmentation and judged in the same batch,
so that content, border, codec path and augmentation cannot tell them apart; clips never start at a file's first frame nor
reach its end (data/sampling.py), black bars and frame borders are cut, and clips without motion are left out.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videossl.io.drawing import NUM_DRAWN, Strip, contact_sheet, film, from_array
from videossl.models.encoder import StageInfo
from videossl.models.heads import LateFusion, mlp, pool_grid
from videossl.pretext._views import change, require_opencv, stabilize
from videossl.pretext.settings import ArrowOfTimeConfig
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
    """Scores a clip against its reversal: positive means forward; the loss is logistic."""

    Config = ArrowOfTimeConfig

    def __init__(self, config: ArrowOfTimeConfig, stages: Mapping[str, StageInfo]) -> None:
        super().__init__(config, stages)
        self.clip_spec = ClipSpec(
            config.num_clips,
            config.num_frames,
            config.seconds_between_frames,
            config.crop_size + (2 * config.stabilize_margin if config.stabilize else 0),
            config.min_gap_seconds,
            config.window_seconds,
        )
        self.config = config
        channels = config.num_groups * stages[config.stage].channels
        self.head: nn.Module
        if config.fusion == "tcam":
            self.head = LateFusion(channels, config.hidden_dim, dropout=config.dropout)
        else:
            self.head = mlp(
                channels * config.cells**2, config.hidden_dim, 1, dropout=config.dropout
            )
        if config.stabilize:
            require_opencv()
            if config.num_frames % 2 == 0:
                raise ValueError(
                    f"num_frames must be odd to be stabilised, so that the centre frame is in the middle both ways; "
                    f"got {config.num_frames}"
                )
        if config.num_frames // stages[config.stage].temporal_stride < config.num_groups:
            raise ValueError(
                f"{config.num_frames} frames give fewer features in time than num_groups {config.num_groups}: "
                "raise num_frames or set encoder.keep_time=true"
            )

    def make_views(self, batch: ClipBatch, rng: RowRandom) -> Views:
        clip = batch.clips[self.clip_spec].flatten(0, 1)  # (B K, 3, T, H, W), no copy
        stable = torch.ones(len(clip), dtype=torch.bool, device=clip.device)
        if self.config.stabilize:
            clip, stable = stabilize(clip, self.config.stabilize_margin)
        moving = ((change(clip) >= self.config.min_motion) & stable).float()
        targets = {"moving": moving, "stable": stable.float()}
        return Views({"forward": clip}, targets, {"backward": "forward"})

    def forward(self, features: dict[str, FeatureMaps], targets: dict[str, Tensor]) -> TaskResult:
        forward, backward = self._scores(features)
        # Against its own reversal: what the clip shows cancels, its direction is left; the reversal scores the negative.
        score = forward - backward
        moving = targets["moving"]
        # A fixed denominator keeps the mean over ranks equal to the mean over the whole batch.
        loss = (F.softplus(-score) * moving).mean()
        right = (score > 0).float() + 0.5 * (score == 0).float()
        alone = torch.stack([forward > 0, backward < 0]).float().mean(0)
        return TaskResult(
            loss,
            {
                "accuracy": metric_sum(right, moving),
                "chance": metric_sum(torch.full_like(right, 0.5)),
                "accuracy_without_reversal": metric_sum(alone, moving),
                "moving_share": metric_sum(moving),
                **(
                    {"stable_share": metric_sum(targets["stable"])} if self.config.stabilize else {}
                ),
            },
        )

    def _scores(self, features: dict[str, FeatureMaps]) -> tuple[Tensor, Tensor]:
        """(B,) of each direction, by one call of the head: its batch statistics cannot tell them apart."""
        both = torch.cat([self._pool(features["forward"]), self._pool(features["backward"])])
        forward, backward = self.head(both).squeeze(1).float().chunk(2)
        return forward, backward

    @torch.no_grad()
    def predictions(
        self, features: dict[str, FeatureMaps], targets: dict[str, Tensor]
    ) -> Predictions:
        """Two questions a clip, forward and backward, each judged by its score less that of its reversal, as it is trained.

        That is the pairwise measure. `alone` is judged by its own score, whose threshold no loss has set.
        """
        forward, backward = self._scores(features)
        scores = torch.cat([forward - backward, backward - forward])
        labels = torch.cat([torch.ones_like(forward), torch.zeros_like(backward)]).long()
        won = (forward > backward).float() + 0.5 * (forward == backward).float()
        alone = torch.cat([forward > 0, backward < 0]).float()
        return Predictions(
            torch.stack([-scores, scores], 1),
            labels,
            self._video_of_clips(len(forward), forward.device).repeat(2),
            targets["moving"].repeat(2),
            numbers={"pairwise": won.repeat(2), "alone": alone},
        )

    def shortcut_inputs(self, views: Views) -> ShortcutInputs:
        """Each clip that moves, forward and backward."""
        moving = views.targets["moving"].bool()
        both = [views.clips(name)[moving].movedim(1, 2) for name in ("forward", "backward")]
        videos = self._video_of_clips(len(moving), moving.device)[moving]
        labels = torch.tensor([1, 0]).repeat_interleave(len(videos)).to(videos.device)
        return ShortcutInputs(torch.cat(both), labels, videos.repeat(2), 2)

    def _video_of_clips(self, count: int, device: torch.device) -> Tensor:
        return torch.arange(count, device=device) // self.clip_spec.num_clips

    @torch.no_grad()
    def draw(self, views: Views, features: dict[str, FeatureMaps]) -> dict[str, Tensor]:
        """Clips forward in time, and their scores: positive where the answer is right."""
        forward, backward = self._scores(features)
        strips = []
        for row, clip in enumerate(views.inputs["forward"][:NUM_DRAWN]):
            score = float(forward[row] - backward[row])
            still = "" if views.targets["moving"][row] else ", left out: too little moves"
            title = f"forward score {score:+.2f}: {'right' if score > 0 else 'wrong'}{still}"
            strips.append(Strip(title, film(clip)))
        return {"arrow": from_array(contact_sheet(strips, height=96))}

    def _pool(self, maps: FeatureMaps) -> Tensor:
        if self.config.fusion == "tcam":
            groups = F.adaptive_avg_pool3d(
                maps.data, (self.config.num_groups, *maps.data.shape[3:])
            )
            return groups.flatten(1, 2)  # (N, C groups, h, w)
        return pool_grid(maps.data, groups=self.config.num_groups, cells=self.config.cells)
