"""Colorization by copying from reference frames; tracking emerges from it. Vondrick et al., ECCV 2018, arXiv:1806.09594.

`hide: both` (Vondrick): every frame enters grey, and the target's colour is copied from the references.
`hide: one` (channel dropout in Lab: CorrFlow, Lai & Xie, BMVC 2019; MAST, Lai et al., CVPR 2020): one of a and b, drawn per
video, is hidden in all frames and copied; the other is doubled.
What is copied is `predict: classes` (one-hot k-means classes of the hidden colour, cross-entropy) or `values` (smooth L1).

Departures: a stage of the shared encoder and one 1x1x1 convolution instead of ResNet-18 with coordinates and five dilated 3D
convolutions behind it (section 3.4); cosine similarity with a low temperature by default (`similarity: dot` is the papers'),
random reversal, and each frame's own crop offset. Against shortcuts: a frame never carries a hidden channel into the encoder
(the gradient with respect to it is exactly 0, whatever the temporal kernels); the offsets make "the same cell" the wrong
answer; and the report sets what copying the same cell scores (`shortcut_baseline`) beside the accuracy, on all cells and
on those that moved.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from videossl.color import picture
from videossl.io.drawing import (
    NUM_DRAWN,
    Strip,
    as_array,
    brighten,
    contact_sheet,
    from_array,
    mark_cell,
)
from videossl.models.attention import attention_copy, attention_map, attention_statistics
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
from videossl.pretext.settings import ColorizationConfig
from videossl.pretext.task import PretextTask, check_whole_cells, stage_keeping_time
from videossl.rng import RowRandom
from videossl.types import (
    ClipBatch,
    ClipSpec,
    FeatureMaps,
    Predictions,
    TaskResult,
    Views,
)

CHROMA = slice(1, 3)  # of normalised Lab


class Task(PretextTask):
    """Predicts the hidden colours of the last frame of a clip from the frames before it."""

    Config = ColorizationConfig
    chance_is = "the share of the commonest colour"
    wants_tracking: ClassVar[bool] = True

    def __init__(self, config: ColorizationConfig, stages: Mapping[str, StageInfo]) -> None:
        super().__init__(config, stages)
        self.config = config
        info = stage_keeping_time(stages, config.stage, task="colorization")
        check_whole_cells(stages, config.stage, crop_size=config.crop_size)
        self.clip_spec = ClipSpec(
            num_clips=1,
            num_frames=config.num_references * max(config.frame_gaps) + 1,
            seconds_between_frames=config.seconds_between_frames,
            crop_size=config.crop_size + 2 * config.frame_jitter,
        )
        self.spatial_stride = info.spatial_stride
        self.head = nn.Conv3d(info.channels, config.embed_dim, 1)
        # One table of classes over (a, b), or one over a and one over b: (tables, classes, hidden channels).
        tables, hidden = (1, 2) if config.hide == "both" else (2, 1)
        self.register_buffer("centroids", torch.zeros(tables, config.num_classes, hidden))
        self.centroids: Tensor
        # Made once: a tensor made of numbers in each step would make a GPU wait for its transfer.
        self.register_buffer("frame_gaps", torch.tensor(config.frame_gaps), persistent=False)
        self.frame_gaps: Tensor

    def prepare(self, batch: ClipBatch, seed: int) -> None:
        """Fits the colour classes by k-means on the chroma of cells of these clips."""
        chroma = batch.clips[self.clip_spec][:, 0, CHROMA]
        cells = F.adaptive_avg_pool3d(chroma, (chroma.shape[2], 32, 32))
        samples, chooser = some_samples(rearrange(cells, "b c t h w -> (b t h w) c"), seed)
        columns = [samples] if self.config.hide == "both" else [samples[:, :1], samples[:, 1:]]
        for table, values in zip(self.centroids, columns, strict=True):
            table.copy_(fit_classes(values, self.config.num_classes, chooser))

    @torch.no_grad()
    def make_views(self, batch: ClipBatch, rng: RowRandom) -> Views:
        clip = self._choose_frames(batch.clips[self.clip_spec][:, 0], rng)
        clip = self._shift_frames(clip, rng)  # (B, 3, T, H, W), target last
        hidden_channel = rng.integers(high=2)  # (B,): 0 hides a, 1 hides b
        colours = F.avg_pool3d(clip, (1, self.spatial_stride, self.spatial_stride))
        lightness, chroma = colours[:, 0], colours[:, CHROMA]
        if self.config.hide == "both":
            hidden = chroma
            view = torch.cat([clip[:, :1], torch.zeros_like(clip[:, CHROMA])], 1)
            table = torch.zeros_like(hidden_channel)
        else:
            rows = torch.arange(len(clip), device=clip.device)
            hidden = chroma[rows, hidden_channel].unsqueeze(1)
            kept = torch.stack([hidden_channel, 1 - hidden_channel], 1)[:, :, None, None, None]
            view = torch.cat([clip[:, :1], 2 * kept * clip[:, CHROMA]], 1)
            table = hidden_channel
        moved = (lightness[:, -1] - lightness[:, -2]).abs() >= self.config.moving_difference
        targets = {
            "hidden": hidden,
            "classes": classify(hidden, self.centroids[table]),
            "table": table,
            "moved": moved,
        }
        return Views({"frames": view}, targets)

    def forward(self, features: dict[str, FeatureMaps], targets: dict[str, Tensor]) -> TaskResult:
        embedded = self._embed(features["frames"])
        classes, values = targets["classes"], self._values(targets)  # (B, T, h, w), (B, T, V, h, w)
        copied = self._copy(embedded, values[:, :-1])
        if self.config.predict == "classes":
            loss = copied_loss(copied, classes[:, -1])
            predicted = copied.argmax(1)
        else:
            loss = F.smooth_l1_loss(copied, values[:, -1])
            predicted = classify(copied.unsqueeze(2), self.centroids[targets["table"]])[:, 0]
        return TaskResult(loss, cell_metrics(predicted.detach(), self._truth(targets)))

    @torch.no_grad()
    def predictions(
        self, features: dict[str, FeatureMaps], targets: dict[str, Tensor]
    ) -> Predictions:
        """The hidden colour class of each cell of the target; `same_cell` copies that of the last reference.

        `entropy` (nats) and `offset` (cells) say how widely and how far a cell looks.
        """
        embedded = self._embed(features["frames"])
        copied = self._copy(embedded, self._values(targets)[:, :-1])  # (B, V, h, w)
        if self.config.predict == "values":
            flat = rearrange(copied, "b v h w -> b (h w) v")
            distance = torch.cdist(flat, self.centroids[targets["table"]])  # (B, h w, classes)
            copied = rearrange(-distance, "b (h w) k -> b k h w", h=copied.shape[2])
        entropy, offset = attention_statistics(
            embedded[:, -1],
            embedded[:, :-1],
            temperature=self.config.temperature,
            radius=self.config.radius,
        )
        return cell_answers(copied, self._truth(targets), {"entropy": entropy, "offset": offset})

    def _truth(self, targets: dict[str, Tensor]) -> CellTruth:
        classes = targets["classes"]
        return CellTruth(
            classes[:, -1],
            classes[:, -2],
            targets["moved"],
            targets["table"],
            self.config.num_classes,
            len(self.centroids),
        )

    def _values(self, targets: dict[str, Tensor]) -> Tensor:
        """What is copied, (B, T, V, h, w): one-hot classes, or the hidden colours themselves."""
        if self.config.predict == "values":
            return rearrange(targets["hidden"].float(), "b v t h w -> b t v h w")
        return one_hot(targets["classes"], self.config.num_classes)

    def _embed(self, maps: FeatureMaps) -> Tensor:
        """(B, T, D, h, w), of length 1 where cosines are compared."""
        embedded = self.head(maps.data).float()
        if self.config.similarity == "cosine":
            embedded = F.normalize(embedded, dim=1)
        return rearrange(embedded, "b d t h w -> b t d h w")

    def _copy(self, embedded: Tensor, values: Tensor) -> Tensor:
        """What the target reads of the references' values (B, T - 1, V, h, w): (B, V, h, w)."""
        return attention_copy(
            embedded[:, -1],
            embedded[:, :-1],
            values,
            temperature=self.config.temperature,
            radius=self.config.radius,
        )

    @torch.no_grad()
    def draw(self, views: Views, features: dict[str, FeatureMaps]) -> dict[str, Tensor]:
        """The last reference, the target, the target with copied colours; and where one moving cell looked."""
        embedded = self._embed(features["frames"])
        hidden = views.targets["hidden"]
        copied = self._copy(embedded, rearrange(hidden.float(), "b v t h w -> b t v h w")[:, :-1])
        strips = []
        for row in range(min(NUM_DRAWN, len(copied))):
            frames, table = views.inputs["frames"][row], int(views.targets["table"][row])
            reference = self._coloured(frames[:, -2], hidden[row, :, -2], table)
            truth = self._coloured(frames[:, -1], hidden[row, :, -1], table)
            guess = self._coloured(frames[:, -1], copied[row], table)
            change = (frames[0, -1] - frames[0, -2]).abs()
            change = F.avg_pool2d(change[None, None], self.spatial_stride)[0, 0]
            cell = divmod(int(change.argmax()), change.shape[1])
            looked = attention_map(
                embedded[row, -1],
                cell,
                embedded[row, -2:-1],
                temperature=self.config.temperature,
                radius=self.config.radius,
            )[0]
            marked = mark_cell(truth, cell, self.spatial_stride)
            strips.append(
                Strip(
                    "reference | true colours, a cell marked | colours copied | where the marked cell looked",
                    [as_array(p) for p in (reference, marked, guess, brighten(reference, looked))],
                )
            )
        return {"colours": from_array(contact_sheet(strips, height=128))}

    def _coloured(self, frame: Tensor, hidden: Tensor, table: int) -> Tensor:
        """(3, H, W) uint8: a view's frame with these hidden colours (V, h, w) instead of its own."""
        large = F.interpolate(hidden[None].float(), frame.shape[1:], mode="bilinear")[0]
        if self.config.hide == "both":
            return picture(torch.cat([frame[:1].float(), large]))
        shown = [frame[1:2].float() / 2, frame[2:3].float() / 2]
        shown[table] = large
        return picture(torch.cat([frame[:1].float(), *shown]))

    def _choose_frames(self, clip: Tensor, rng: RowRandom) -> Tensor:
        """(B, 3, T, H, W): references and target of each row, at its drawn gap; backward in time for half the rows."""
        gap = self.frame_gaps[rng.integers(high=len(self.frame_gaps))]
        steps = torch.arange(self.config.num_references + 1, device=clip.device)
        reverse = rng.integers(high=2).bool() & self.training
        steps = torch.where(reverse[:, None], steps.flip(0), steps)  # (B, T)
        index = repeat(
            steps * gap[:, None], "b t -> b c t h w", c=3, h=clip.shape[3], w=clip.shape[4]
        )
        return clip.gather(2, index)

    def _shift_frames(self, clip: Tensor, rng: RowRandom) -> Tensor:
        """Cuts `crop_size` out of each frame at an offset of its own; the centre in evaluation."""
        size, slack = self.config.crop_size, 2 * self.config.frame_jitter
        num_frames = clip.shape[2]
        offsets = rng.integers(num_frames, 2, high=slack + 1)  # (B, T, 2)
        if not self.training:
            offsets = torch.full_like(offsets, self.config.frame_jitter)
        return cut_frames(clip, offsets, size)
