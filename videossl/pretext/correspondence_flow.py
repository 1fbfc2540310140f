"""Colorization along a path, with channel dropout: CorrFlow. Lai and Xie, BMVC 2019, arXiv:1905.00875.

Colours go from the first frame of a clip to the second and from there to the third; what is copied are classes of the whole
colour (k-means, k = 16). With probability 0.7 one or two of the three channels are hidden, the same ones in all frames of a
video, the rest scaled up (section 3.2). Scheduled sampling (section 3.3): the second frame hands on its true classes with a
probability that falls from 0.9 to 0.6, else those that were copied to it. Cycle (section 3.4): what the third frame got goes
back to the first, its loss weighs 0.1. Pointers move at most 6 cells.

Departures: L, a and b are what is hidden and classified, instead of R, G and B; cosine similarity with a low temperature by
default; the loss is on cells, not on pixels after enlargement; each frame's own crop offset, against "the same cell".
Against shortcuts: as in colorization. A channel that is not hidden may tell its class directly: with probability 0.3 none is
hidden in training, in evaluation always one or two are.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from videossl.color import picture
from videossl.io.drawing import NUM_DRAWN, Strip, as_array, contact_sheet, from_array
from videossl.models.attention import attention_copy, attention_statistics
from videossl.models.encoder import StageInfo
from videossl.pretext._views import (
    CellTruth,
    cell_answers,
    cell_metrics,
    classify,
    copied_loss,
    cut_frames,
    fit_classes,
    one_hot,
    some_samples,
)
from videossl.pretext.settings import CorrespondenceFlowConfig
from videossl.pretext.task import PretextTask, check_whole_cells, stage_keeping_time
from videossl.rng import RowRandom
from videossl.types import ClipBatch, ClipSpec, FeatureMaps, Predictions, TaskResult, Views

NUM_FRAMES = 3


class Task(PretextTask):
    """Predicts the colour classes of the third frame of a clip from those of the first, by way of the second."""

    Config = CorrespondenceFlowConfig
    chance_is = "the share of the commonest colour"
    wants_tracking: ClassVar[bool] = True

    def __init__(self, config: CorrespondenceFlowConfig, stages: Mapping[str, StageInfo]) -> None:
        super().__init__(config, stages)
        self.config = config
        info = stage_keeping_time(stages, config.stage, task="correspondence_flow")
        check_whole_cells(stages, config.stage, crop_size=config.crop_size)
        self.clip_spec = ClipSpec(
            1, NUM_FRAMES, config.seconds_between_frames, config.crop_size + 2 * config.frame_jitter
        )
        self.spatial_stride = info.spatial_stride
        self.head = nn.Conv3d(info.channels, config.embed_dim, 1)
        self.register_buffer("centroids", torch.zeros(config.num_classes, 3))
        self.centroids: Tensor
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.int64))  # trained on
        self.num_batches: Tensor

    def prepare(self, batch: ClipBatch, seed: int) -> None:
        """Fits the colour classes by k-means on the Lab of cells of these clips."""
        clips = batch.clips[self.clip_spec][:, 0]
        cells = F.adaptive_avg_pool3d(clips, (clips.shape[2], 32, 32))
        samples, chooser = some_samples(rearrange(cells, "b c t h w -> (b t h w) c"), seed)
        self.centroids.copy_(fit_classes(samples, self.config.num_classes, chooser))

    @torch.no_grad()
    def make_views(self, batch: ClipBatch, rng: RowRandom) -> Views:
        clips, config = batch.clips[self.clip_spec][:, 0], self.config
        offsets = rng.integers(NUM_FRAMES, 2, high=2 * config.frame_jitter + 1)
        if not self.training:
            offsets = torch.full_like(offsets, config.frame_jitter)
        clips = cut_frames(clips, offsets, config.crop_size)
        kept = self._kept_channels(rng)  # (B, 3)
        hidden = 3 - kept.sum(1)
        scaled = clips * (kept * (3 / (3 - hidden))[:, None])[:, :, None, None, None]
        colours = F.avg_pool3d(clips, (1, self.spatial_stride, self.spatial_stride))
        centroids = self.centroids.expand(len(clips), -1, -1)
        moved = (colours[:, 0, -1] - colours[:, 0, 0]).abs() >= config.moving_difference
        targets = {
            "classes": classify(colours, centroids),  # (B, T, h, w)
            "moved": moved,
            "is_true": rng.uniform(),  # (B,) compared with the share of true classes
        }
        return Views({"frames": scaled}, targets)

    def forward(self, features: dict[str, FeatureMaps], targets: dict[str, Tensor]) -> TaskResult:
        embedded = self._embed(features["frames"])
        truth = one_hot(targets["classes"], self.config.num_classes)  # (B, T, K, h, w)
        second = self._copy(embedded, 1, 0, truth[:, 0])
        share = self._share_of_truth()
        if self.training:
            self.num_batches += 1
        is_true = (targets["is_true"] < share) & self.training
        handed_on = torch.where(is_true[:, None, None, None], truth[:, 1], second)
        third = self._copy(embedded, 2, 1, handed_on)
        back = self._copy(embedded, 0, 1, self._copy(embedded, 1, 2, third))
        classes = targets["classes"]
        losses = [copied_loss(got, classes[:, frame]) for got, frame in ((second, 1), (third, 2))]
        loss = torch.stack(losses).mean() + self.config.cycle_weight * copied_loss(
            back, classes[:, 0]
        )
        return TaskResult(loss, cell_metrics(third.detach().argmax(1), self._truth(targets)))

    @torch.no_grad()
    def predictions(
        self, features: dict[str, FeatureMaps], targets: dict[str, Tensor]
    ) -> Predictions:
        """The class of each cell of the third frame, copied all the way from the first."""
        embedded = self._embed(features["frames"])
        second = self._copy(
            embedded, 1, 0, one_hot(targets["classes"], self.config.num_classes)[:, 0]
        )
        third = self._copy(embedded, 2, 1, second)
        entropy, offset = attention_statistics(
            embedded[:, 2],
            embedded[:, 1:2],
            temperature=self.config.temperature,
            radius=self.config.radius,
        )
        return cell_answers(third, self._truth(targets), {"entropy": entropy, "offset": offset})

    @torch.no_grad()
    def draw(self, views: Views, features: dict[str, FeatureMaps]) -> dict[str, Tensor]:
        """The first frame's classes, the third frame's true ones, and those copied to it, as colours."""
        embedded, truth = (
            self._embed(features["frames"]),
            one_hot(views.targets["classes"], self.config.num_classes),
        )
        copied = self._copy(embedded, 2, 1, self._copy(embedded, 1, 0, truth[:, 0]))
        strips = []
        for row in range(min(NUM_DRAWN, len(copied))):
            shown = (truth[row, 0], truth[row, 2], copied[row])
            strips.append(
                Strip(
                    "colour classes of the first frame | of the third | copied by way of the second",
                    [as_array(self._coloured(classes)) for classes in shown],
                )
            )
        return {"colours": from_array(contact_sheet(strips, height=128))}

    def _kept_channels(self, rng: RowRandom) -> Tensor:
        """(B, 3) float: 0 for the one or two channels that a row hides, if it hides any."""
        is_hiding = rng.uniform() < self.config.channel_dropout
        if not self.training:
            is_hiding = torch.ones_like(is_hiding)
        two = rng.integers(high=2)  # whether two are hidden
        rank = rng.permutations(3)
        return ((rank > two[:, None]) | ~is_hiding[:, None]).float()

    def _share_of_truth(self) -> Tensor:
        config = self.config
        progress = (self.num_batches / config.sampling_steps).clamp(max=1.0)
        return config.sampling_from + (config.sampling_to - config.sampling_from) * progress

    def _embed(self, maps: FeatureMaps) -> Tensor:
        embedded = self.head(maps.data).float()
        if self.config.similarity == "cosine":
            embedded = F.normalize(embedded, dim=1)
        return rearrange(embedded, "b d t h w -> b t d h w")

    def _copy(self, embedded: Tensor, target: int, source: int, values: Tensor) -> Tensor:
        """What the cells of one frame read of another's values (B, K, h, w)."""
        return attention_copy(
            embedded[:, target],
            embedded[:, source : source + 1],
            values[:, None],
            temperature=self.config.temperature,
            radius=self.config.radius,
        )

    def _truth(self, targets: dict[str, Tensor]) -> CellTruth:
        classes = targets["classes"]
        table = torch.zeros(len(classes), dtype=torch.int64, device=classes.device)
        # Of the first frame, whose colours are all that the model is given in evaluation.
        return CellTruth(
            classes[:, 2], classes[:, 0], targets["moved"], table, self.config.num_classes
        )

    def _coloured(self, classes: Tensor) -> Tensor:
        """(3, H, W) uint8 of class shares (K, h, w)."""
        colours = torch.einsum("khw,kc->chw", classes, self.centroids.to(classes.dtype))
        large = F.interpolate(colours[None], scale_factor=self.spatial_stride, mode="nearest")
        return picture(large[0])
