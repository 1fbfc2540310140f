"""Arrow of time: does the clip run forward or backward? Wei, Lim, Zisserman, Freeman, CVPR 2018.

As in T-CAM (section 3.2), temporal groups are pooled apart and fused late: the head reads the first part of a clip beside
the second. Departures: Lab clips through one 3D-CNN instead of optical flow through a 2D-CNN per group; and the score of a
clip is the head's answer less its answer to the reversed clip, so that only direction can tell (a batch holds both anyway).
Against cheats: both directions are one tensor and its flip, made after every augmentation and judged in the same batch,
so that content, border, codec path and augmentation cannot tell them apart; clips never start at a file's first frame nor
reach its end (data/sampling.py), frame borders are cut (data/transforms.py), and clips without motion are left out.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from videossl.drawing import NUM_DRAWN, Strip, contact_sheet, film, from_array
from videossl.models.encoder import StageInfo
from videossl.models.heads import mlp, pool_grid
from videossl.pretext.task import PretextTask, TaskConfig
from videossl.rng import RowRandom
from videossl.types import (
    Answers,
    ClipBatch,
    ClipSpec,
    FeatureMaps,
    Questions,
    TaskResult,
    Views,
    tally,
)


class ArrowOfTimeConfig(TaskConfig):
    num_frames: int = Field(8, ge=2)
    seconds_between_frames: float = Field(1 / 15, gt=0)
    crop_size: int = Field(112, ge=16, description="pixels, square")
    num_clips: int = Field(
        1,
        ge=1,
        description="of each video; clips of the same shape and window as another task's are shared with it",
    )
    min_gap_seconds: float = Field(0.0, ge=0, description="between the starts of several clips")
    window_seconds: float = Field(0.0, ge=0, description="all of several clips lie inside")
    num_groups: int = Field(
        2, ge=1, description="parts of a clip that are pooled apart; T-CAM's T = 2"
    )
    cells: int = Field(
        2, ge=1, description="cells per side of the grid that the head sees of each group"
    )
    hidden: int = Field(256, ge=1, description="width of the head's hidden layer")
    dropout: float = Field(0.5, ge=0, lt=1)
    min_motion: float = Field(
        0.02,
        ge=0,
        description="mean |difference| of neighbouring frames (normalised L) below which a clip is left out",
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
            config.crop_size,
            config.min_gap_seconds,
            config.window_seconds,
        )
        self.config = config
        features_per_clip = config.num_groups * config.cells**2 * stages[config.stage].channels
        self.head = mlp(features_per_clip, config.hidden, 1, dropout=config.dropout)
        if config.num_frames // stages[config.stage].temporal_stride < config.num_groups:
            raise ValueError(
                f"{config.num_frames} frames give fewer features in time than num_groups {config.num_groups}: "
                "raise num_frames or set encoder.keep_time=true"
            )

    def make_views(self, batch: ClipBatch, rng: RowRandom) -> Views:
        clip = batch.clips[self.clip_spec].flatten(0, 1)  # (B K, 3, T, H, W), no copy
        lightness = clip[:, 0]
        motion = (lightness[:, 1:] - lightness[:, :-1]).abs().mean(dim=(1, 2, 3))
        moving = (motion >= self.config.min_motion).float()
        return Views({"forward": clip}, {"moving": moving}, {"backward": "forward"})

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
                "accuracy": tally(right, moving),
                "chance": tally(torch.full_like(right, 0.5)),
                "accuracy_without_reversal": tally(alone, moving),
                "moving_share": tally(moving),
            },
        )

    def _scores(self, features: dict[str, FeatureMaps]) -> tuple[Tensor, Tensor]:
        """(B,) of each direction, by one call of the head: its batch statistics cannot tell them apart."""
        both = torch.cat([self._pool(features["forward"]), self._pool(features["backward"])])
        forward, backward = self.head(both).squeeze(1).float().chunk(2)
        return forward, backward

    @torch.no_grad()
    def answers(self, features: dict[str, FeatureMaps], targets: dict[str, Tensor]) -> Answers:
        """Two questions a clip, forward and backward, each judged by its own score; `pairwise` is whether forward won."""
        forward, backward = self._scores(features)
        scores = torch.cat([forward, backward])
        labels = torch.cat([torch.ones_like(forward), torch.zeros_like(backward)]).long()
        won = (forward > backward).float() + 0.5 * (forward == backward).float()
        return Answers(
            torch.stack([-scores, scores], 1),
            labels,
            self._video_of_clips(len(forward), forward.device).repeat(2),
            targets["moving"].repeat(2),
            numbers={"pairwise": won.repeat(2)},
        )

    def questions(self, views: Views) -> Questions:
        """Each clip that moves, forward and backward."""
        moving = views.targets["moving"].bool()
        both = [views.clips(name)[moving].movedim(1, 2) for name in ("forward", "backward")]
        videos = self._video_of_clips(len(moving), moving.device)[moving]
        labels = torch.tensor([1, 0]).repeat_interleave(len(videos)).to(videos.device)
        return Questions(torch.cat(both), labels, videos.repeat(2), 2)

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
        return pool_grid(maps.data, groups=self.config.num_groups, cells=self.config.cells)
