"""Contrastive: which clip is of the same video? Two clips of each video against all clips of the others, over all ranks.

SimCLR (Chen et al., ICML 2020) on video, as in CVRL (Qian et al., CVPR 2021): projections of two clips at different times,
cropped and jittered on their own, InfoNCE with a temperature, negatives of both clips of every other video on every rank.
Departures: Lab clips; the two clips share the crop of their video but for a shift (data/transforms.py); the batch statistics
of the projection are each rank's own unless `train.sync_batchnorm`.
Against cheats: rows of one video in a global batch (small corpora) are no negatives of each other; and
beside the accuracy stands what the nearest thumbnail would answer (`cheat`): colour alone tells videos apart.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from videossl.distributed import gather_rows
from videossl.drawing import NUM_DRAWN, Strip, contact_sheet, film, from_array
from videossl.losses.metric import info_nce
from videossl.models.encoder import StageInfo, pooled
from videossl.models.heads import mlp
from videossl.pretext.task import PretextTask, TaskConfig
from videossl.rng import RowRandom
from videossl.types import ClipBatch, ClipSpec, FeatureMaps, TaskResult, Views, tally


class ContrastiveConfig(TaskConfig):
    num_frames: int = Field(8, ge=1)
    seconds_between_frames: float = Field(1 / 15, gt=0)
    crop_size: int = Field(112, ge=16, description="pixels, square")
    min_gap_seconds: float = Field(0.3, gt=0, description="between the starts of the two clips")
    window_seconds: float = Field(2.4, gt=0, description="both clips lie inside")
    temperature: float = Field(0.1, gt=0, description="of the cosine similarity; CVRL's 0.1")
    hidden: int = Field(512, ge=1, description="width of the projection's hidden layer")
    embedding: int = Field(128, ge=2, description="channels compared; SimCLR's 128")


class Task(PretextTask):
    """Finds the other clip of the same video among all clips of the global batch."""

    Config = ContrastiveConfig

    def __init__(self, config: ContrastiveConfig, stages: Mapping[str, StageInfo]) -> None:
        super().__init__(config, stages)
        self.config = config
        self.clip_spec = ClipSpec(
            2,
            config.num_frames,
            config.seconds_between_frames,
            config.crop_size,
            config.min_gap_seconds,
            config.window_seconds,
        )
        self.head = mlp(stages[config.stage].channels, config.hidden, config.embedding)

    def make_views(self, batch: ClipBatch, rng: RowRandom) -> Views:
        clips = batch.clips[self.clip_spec].flatten(0, 1)  # (2 B, 3, T, H, W), no copy
        thumbnails = F.adaptive_avg_pool3d(clips, (1, 8, 8)).flatten(1)
        videos = batch.video_ids.to(clips.device, non_blocking=True)
        return Views({"clips": clips}, {"thumbnails": thumbnails, "videos": videos})

    def forward(self, features: dict[str, FeatureMaps], targets: dict[str, Tensor]) -> TaskResult:
        embedded = F.normalize(self.head(pooled(features["clips"])).float(), dim=1)
        thumbnails, videos = targets["thumbnails"].float(), targets["videos"]
        everyone, all_thumbnails = gather_rows(embedded), gather_rows(thumbnails)
        same_video = videos[:, None] == gather_rows(videos).repeat_interleave(2)  # (B, 2 B ranks)
        others = ~torch.eye(len(videos), dtype=torch.bool, device=videos.device)
        # The right answers first, each for one row; then everybody, but for the row's own video.
        excluded = torch.cat([others, same_video], 1)
        losses, right, cheat = [], [], []
        for view in range(2):
            own, answer = embedded[view::2], embedded[1 - view :: 2]
            keys = torch.cat([answer, everyone])
            temperature = self.config.temperature
            losses.append(
                info_nce(own, keys, temperature=temperature, normalize=False, excluded=excluded)
            )
            right.append(_finds(own @ keys.T, excluded))
            shown = torch.cat([thumbnails[1 - view :: 2], all_thumbnails])
            cheat.append(_finds(-torch.cdist(thumbnails[view::2], shown), excluded))
        return TaskResult(
            torch.stack(losses).mean(),
            {
                "accuracy": tally(torch.stack(right)),
                "chance": tally(1 / (1 + (~same_video).sum(1))),
                "cheat": tally(torch.stack(cheat)),
            },
        )

    @torch.no_grad()
    def draw(self, views: Views, features: dict[str, FeatureMaps]) -> dict[str, Tensor]:
        """Middle frames of a clip, its other clip, and the three other clips of this rank that look nearest to the model."""
        embedded = F.normalize(self.head(pooled(features["clips"])).float(), dim=1)
        middles = views.inputs["clips"][:, :, self.config.num_frames // 2]  # (2 B, 3, H, W)
        similarity = embedded @ embedded.T
        strips = []
        for row in range(0, 2 * min(NUM_DRAWN, len(embedded) // 2), 2):
            rest = [
                i for i in similarity[row].argsort(descending=True).tolist() if i // 2 != row // 2
            ]
            order = [row, row + 1, *rest[:3]]
            said = ", ".join(f"{float(similarity[row, i]):.2f}" for i in order[1:])
            title = f"a clip, its other clip, the nearest of other videos: cosines {said}"
            strips.append(Strip(title, film(middles[order].transpose(0, 1))))
        return {"neighbours": from_array(contact_sheet(strips, height=96))}


def _finds(scores: Tensor, excluded: Tensor) -> Tensor:
    """(B,) whether the best of the keys that are not excluded is row i's own, key i."""
    best = scores.detach().masked_fill(excluded, -torch.inf).argmax(1)
    return (best == torch.arange(len(scores), device=scores.device)).float()
