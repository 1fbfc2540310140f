"""Exemplar: which of N surrogate classes does a transformed patch belong to? Dosovitskiy et al., NeurIPS 2014, TPAMI 2016.

A patch is taken where the gradient is strong, and shifted, scaled, turned and recoloured several times; all that comes of it
is one class of a softmax over `num_classes`.

A class here is a *video*: its row in the manifest modulo `num_classes`, which needs no table and is the same on every rank
and after every restart. With as many classes as the manifest has rows each video has its own; with fewer, videos whose rows
differ by a multiple share one, and are told to be alike. Departures besides: the place is drawn anew at each visit, in
proportion to the squared gradient of the patch around it; factors on Lab instead of on principal components and HSV; and
cosines with a temperature instead of plain logits, so that they can be compared beyond the classes, as follows.
A held-out video has no class. What is asked of every batch, in training too, is therefore which patch of the global batch is
another transformation of the same one (`accuracy`, `chance`, and what the nearest thumbnail answers,
`shortcut_baseline`); in evaluation the loss is that question's. `class_accuracy` is of training alone.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videossl.color import LAB_OFFSET, LAB_SCALE
from videossl.distributed import gather_rows
from videossl.io.drawing import NUM_DRAWN, Strip, contact_sheet, film, from_array
from videossl.models.encoder import StageInfo, pooled
from videossl.models.heads import mlp
from videossl.pretext._losses import (
    candidates,
    chance_of,
    finds_own,
    match,
    own_last,
    own_place,
    similarities,
)
from videossl.pretext._views import mean_pictures, warp_frames
from videossl.pretext.settings import ExemplarConfig
from videossl.pretext.task import PretextTask
from videossl.rng import RowRandom
from videossl.types import (
    ClipBatch,
    ClipSpec,
    FeatureMaps,
    Predictions,
    TaskResult,
    Views,
    metric_sum,
)


class Task(PretextTask):
    """Tells the surrogate class of a transformed patch; held-out ones by their other transformation."""

    Config = ExemplarConfig
    chance_is = "one of the candidates in the batch, on average"

    def __init__(self, config: ExemplarConfig, stages: Mapping[str, StageInfo]) -> None:
        super().__init__(config, stages)
        self.config = config
        side = round(config.crop_size * config.context)
        self.clip_spec = ClipSpec(1, config.num_frames, config.seconds_between_frames, side)
        angle = math.radians(config.rotation_degrees)
        corner = config.max_scale * (math.cos(angle) + math.sin(angle)) / 2
        self.margin = math.ceil(config.crop_size * (corner + config.shift))
        if side < 2 * self.margin + 1:
            raise ValueError(
                f"context {config.context:g} cannot hold a patch at its largest: it must be at least "
                f"{(2 * self.margin + 2) / config.crop_size:.2f}, or max_scale, shift or rotation_degrees smaller"
            )
        self.head = mlp(stages[config.stage].channels, config.hidden_dim, config.embed_dim)
        self.classes = nn.Parameter(torch.randn(config.num_classes, config.embed_dim))

    def make_views(self, batch: ClipBatch, rng: RowRandom) -> Views:
        config, count = self.config, self.config.num_variants
        clips = batch.clips[self.clip_spec][:, 0]
        seed = _strong_place(clips, rng.uniform(), size=config.crop_size, margin=self.margin)
        moved = config.crop_size * rng.uniform(count, 2, low=-config.shift, high=config.shift)
        angle = math.radians(config.rotation_degrees)
        patches = warp_frames(
            clips.repeat_interleave(count, 0),
            centre=(seed[:, None] + moved).flatten(0, 1),
            scale=(config.max_scale ** rng.uniform(count, low=-1.0)).flatten(),
            angle=rng.uniform(count, low=-angle, high=angle).flatten(),
            size=config.crop_size,
        )
        patches = self._recolour(patches, rng.uniform(count, 4, low=-1.0).flatten(0, 1))
        thumbnails = mean_pictures(patches)
        videos = batch.video_ids.to(clips.device, non_blocking=True)
        return Views({"patches": patches}, {"thumbnails": thumbnails, "videos": videos})

    def _recolour(self, patches: Tensor, draws: Tensor) -> Tensor:
        """Patches with their own power and contrast of L, saturation and hue: `draws` (N, 4) in [-1, 1)."""
        power, contrast, saturation, turn = draws.T[:, :, None, None, None]
        lightness = (patches[:, 0] * LAB_SCALE[0] + LAB_OFFSET[0]).clamp(0, 100) / 100
        lightness = 100 * lightness ** (self.config.gamma**power)
        mean = lightness.mean((1, 2, 3), keepdim=True)
        lightness = (mean + self.config.contrast**contrast * (lightness - mean)).clamp(0, 100)
        angle = math.radians(self.config.hue_degrees) * turn
        factor = self.config.contrast**saturation
        a, b = patches[:, 1], patches[:, 2]
        turned_a = factor * (angle.cos() * a - angle.sin() * b)
        turned_b = factor * (angle.sin() * a + angle.cos() * b)
        return torch.stack([(lightness - LAB_OFFSET[0]) / LAB_SCALE[0], turned_a, turned_b], 1)

    def forward(self, features: dict[str, FeatureMaps], targets: dict[str, Tensor]) -> TaskResult:
        embedded = self._embed(features)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.training):
            loss, metric_sums = self._match(embedded, targets)
        if self.training:
            labels = targets["videos"].repeat_interleave(self.config.num_variants)
            labels = labels % self.config.num_classes
            centres = F.normalize(self.classes.float(), dim=1)
            logits = similarities(embedded, centres) / self.config.temperature
            loss = F.cross_entropy(logits, labels)
            right = (logits.argmax(1) == labels).float()
            metric_sums["class_accuracy"] = metric_sum(right)
            metric_sums["class_chance"] = metric_sum(
                torch.full_like(right, 1 / self.config.num_classes)
            )
        return TaskResult(loss, metric_sums)

    def _embed(self, features: dict[str, FeatureMaps]) -> Tensor:
        return F.normalize(self.head(pooled(features["patches"])).float(), dim=1)

    def _match(
        self, embedded: Tensor, targets: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Which patch of the global batch is the next transformation of the same one, against those of other videos."""
        keys, excluded = self._keys(embedded, targets)
        matched = match(embedded, keys, excluded, temperature=self.config.temperature)
        return matched.loss, {
            "accuracy": metric_sum(matched.found),
            "chance": metric_sum(matched.chance),
            "shortcut_baseline": metric_sum(finds_own(self._by_thumbnail(targets), excluded)),
            "mutual_information": metric_sum(matched.information),
            "mutual_information_ceiling": metric_sum(matched.ceiling),
        }

    @torch.no_grad()
    def predictions(
        self, features: dict[str, FeatureMaps], targets: dict[str, Tensor]
    ) -> Predictions:
        """Each patch's score for other videos' and, last, for its next transformation. `thumbnails` takes the nearest."""
        embedded = self._embed(features)
        keys, excluded = self._keys(embedded, targets)
        scores = own_last(similarities(embedded, keys), excluded)
        rows = torch.arange(len(scores), device=scores.device)
        return Predictions(
            scores,
            own_place(scores),
            rows // self.config.num_variants,
            baselines={"thumbnails": own_last(self._by_thumbnail(targets), excluded).argmax(1)},
            chance=chance_of(scores),
        )

    def _keys(self, rows: Tensor, targets: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What each patch's row is compared with, and which of it not; see `losses.in_batch`."""
        videos = targets["videos"].repeat_interleave(self.config.num_variants)
        return candidates(
            self._next(rows), gather_rows(rows), videos[:, None] == gather_rows(videos)
        )

    def _by_thumbnail(self, targets: dict[str, Tensor]) -> Tensor:
        shown = targets["thumbnails"].float()
        return -torch.cdist(shown, self._keys(shown, targets)[0])

    def _next(self, rows: Tensor) -> Tensor:
        """For each patch the next variant of its video; after the last comes the first."""
        return rows.unflatten(0, (-1, self.config.num_variants)).roll(-1, 1).flatten(0, 1)

    @torch.no_grad()
    def draw(self, views: Views, features: dict[str, FeatureMaps]) -> dict[str, Tensor]:
        """The variants of a few patches, then the three patches of other videos of this rank nearest to the first."""
        embedded = self._embed(features)
        count = self.config.num_variants
        middles = views.inputs["patches"][:, :, self.config.num_frames // 2]
        cosines = embedded @ embedded.T
        strips = []
        for row in range(0, count * min(NUM_DRAWN, len(embedded) // count), count):
            ranked = cosines[row].argsort(descending=True).tolist()
            others = [i for i in ranked if i // count != row // count][:3]
            order = [*range(row, row + count), *others]
            said = ", ".join(f"{float(cosines[row, i]):.2f}" for i in order[1:])
            title = f"{count} variants, the nearest of other videos: cosines to the first {said}"
            strips.append(Strip(title, film(middles[order].transpose(0, 1))))
        return {"variants": from_array(contact_sheet(strips, height=96))}


def _strong_place(clips: Tensor, draw: Tensor, *, size: int, margin: int) -> Tensor:
    """(N, 2): of each clip a row and column at least `margin` from its edges, drawn by `draw` (N,) in [0, 1).

    In proportion to the mean squared gradient of L in the square of `size` around it, in the middle frame.
    """
    lightness = clips[:, 0, clips.shape[2] // 2]
    along = [F.pad(lightness.diff(dim=1), (0, 0, 0, 1)), F.pad(lightness.diff(dim=2), (0, 1))]
    energy = F.avg_pool2d((along[0] ** 2 + along[1] ** 2)[:, None], size, stride=1)[:, 0]
    first = margin - size // 2  # energy[0] is that of the square around size // 2
    side = clips.shape[-1] - 2 * margin
    energy = energy[:, first : first + side, first : first + side].flatten(1)
    # A flat frame has no strong place: all are as good.
    summed = (energy + 1e-12).cumsum(1)
    place = (summed <= draw[:, None] * summed[:, -1:]).sum(1).clamp_max(side * side - 1)
    return torch.stack([place // side, place % side], 1) + margin
