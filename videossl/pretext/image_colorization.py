"""Image colorization: which colour has each place of a grey picture? Zhang, Isola, Efros, ECCV 2016, arXiv:1603.08511.

From L alone, a distribution over bins of a and b, 10 apart, that sRGB reaches (section 2.1): the targets are the 5 bins
nearest to the true colour, weighed by a Gaussian of sigma 5; losses are weighed by how rare the true colour's bin is, as its
smoothed frequency mixed with the uniform one at lambda 0.5 (section 2.2); pictures show the annealed mean at T = 0.38
(section 2.3).

Departures: one frame of a video through the shared encoder, at the cells of its stage; frequencies are counted on the
videos that tasks prepare on instead of on ImageNet; and the bins are derived: all that an 8-bit sRGB colour falls into,
which makes 261. The paper's table has 313: it also holds bins that no such colour reaches, as its first, (-90, 50).
Against shortcuts: a view carries no chroma. What the most frequent colour of a cell's lightness answers is the
`shortcut_baseline`.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from videossl.color import LAB_OFFSET, LAB_SCALE, chroma_bins, picture
from videossl.io.drawing import NUM_DRAWN, Strip, as_array, contact_sheet, from_array
from videossl.models.encoder import StageInfo
from videossl.pretext.settings import ImageColorizationConfig
from videossl.pretext.task import PretextTask, check_whole_cells
from videossl.rng import RowRandom
from videossl.types import (
    ClipBatch,
    ClipSpec,
    FeatureMaps,
    Predictions,
    TaskResult,
    Views,
    metric_sum,
    metric_sum_by_class,
)

LIGHTNESS_STEPS = 10  # of the rule that knows a colour by its lightness; chosen


class Task(PretextTask):
    """Predicts the distribution of each cell's colour."""

    Config = ImageColorizationConfig
    chance_is = "the share of the commonest colour"

    def __init__(self, config: ImageColorizationConfig, stages: Mapping[str, StageInfo]) -> None:
        super().__init__(config, stages)
        self.config = config
        info = stages[config.stage]
        check_whole_cells(stages, config.stage, crop_size=config.crop_size)
        self.clip_spec = ClipSpec(1, 1, 1.0, config.crop_size)
        self.spatial_stride = info.spatial_stride
        bins = chroma_bins(config.bin_size)
        self.register_buffer("bins", bins, persistent=False)  # (Q, 2)
        self.register_buffer("weights", torch.ones(len(bins)))  # of each true bin
        self.register_buffer("by_lightness", torch.zeros(LIGHTNESS_STEPS, dtype=torch.int64))
        self.bins: Tensor
        self.weights: Tensor
        self.by_lightness: Tensor
        self.head = nn.Sequential(
            nn.Conv3d(info.channels, config.hidden_dim, 1),
            nn.BatchNorm3d(config.hidden_dim),
            nn.ReLU(inplace=True),
            nn.Conv3d(config.hidden_dim, len(bins), 1),
        )

    @torch.no_grad()
    def prepare(self, batch: ClipBatch, seed: int) -> None:
        """Counts colours: how rare each is, and which is the most frequent of each lightness."""
        lightness, chroma = self._cells(batch.clips[self.clip_spec][:, 0])
        labels, _ = self._nearest(chroma)
        counts = torch.zeros(LIGHTNESS_STEPS, len(self.bins), device=labels.device)
        place = (lightness.flatten(), labels[:, 0].flatten())
        counts.index_put_(place, torch.ones_like(place[0], dtype=counts.dtype), accumulate=True)
        total = counts.sum(0)
        # A lightness that was not seen has the colour that is most frequent of all.
        self.by_lightness.copy_((counts + 1e-6 * total).argmax(1))
        self.weights.copy_(
            rebalancing(
                total, self.bins, sigma=self.config.sigma, uniform_share=self.config.uniform_share
            )
        )

    def make_views(self, batch: ClipBatch, rng: RowRandom) -> Views:
        frames = batch.clips[self.clip_spec][:, 0]  # (B, 3, 1, H, W)
        lightness, chroma = self._cells(frames)
        near, shares = self._nearest(chroma)
        grey = torch.cat([frames[:, :1], torch.zeros_like(frames[:, 1:])], 1)
        targets = {"lightness": lightness, "chroma": chroma, "near": near, "shares": shares}
        return Views({"grey": grey}, targets)

    def forward(self, features: dict[str, FeatureMaps], targets: dict[str, Tensor]) -> TaskResult:
        logits = self._logits(features)  # (B, Q, h, w)
        near, chroma = targets["near"], targets["chroma"]
        labels = near[:, 0]
        log_shares = logits.log_softmax(1).gather(1, near)
        losses = -(targets["shares"] * log_shares).sum(1) * self.weights[labels]
        right = (logits.argmax(1) == labels).float()
        # The share of the batch's most frequent bin: no guess made before looking can score more.
        num_bins = len(self.bins)
        counts = torch.zeros(num_bins, device=labels.device)
        counts.index_add_(0, labels.flatten(), torch.ones_like(right).flatten())
        majority = counts.amax() / labels.numel()
        error = (self._annealed_mean(logits) - chroma).norm(dim=1)
        return TaskResult(
            losses.mean(),
            {
                "accuracy": metric_sum(right),
                "chance": metric_sum(majority.expand_as(right)),
                "shortcut_baseline": metric_sum((self._by_lightness(targets) == labels).float()),
                "balanced_accuracy": metric_sum_by_class(right, labels, num_bins),
                "chroma_error": metric_sum(error),
                "grey_chroma_error": metric_sum(chroma.norm(dim=1)),
            },
        )

    @torch.no_grad()
    def predictions(
        self, features: dict[str, FeatureMaps], targets: dict[str, Tensor]
    ) -> Predictions:
        """The bin of each cell. `lightness` answers with the most frequent one of its lightness."""
        logits = self._logits(features)
        videos = torch.arange(len(logits), device=logits.device)
        labels = targets["near"][:, 0]
        return Predictions(
            rearrange(logits, "b q h w -> (b h w) q"),
            labels.flatten(),
            videos.repeat_interleave(labels[0].numel()),
            baselines={"lightness": self._by_lightness(targets).flatten()},
        )

    def _logits(self, features: dict[str, FeatureMaps]) -> Tensor:
        logits: Tensor = self.head(features["grey"].data)
        return logits[:, :, 0].float()

    def _cells(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, 1, H, W) to the step of L (B, h, w) int64 and the mean a, b (B, 2, h, w), in Lab units, of each cell."""
        means = F.avg_pool2d(frames[:, :, 0].float(), self.spatial_stride)
        lightness = (means[:, 0] * LAB_SCALE[0] + LAB_OFFSET[0]) * (LIGHTNESS_STEPS / 100)
        return lightness.long().clamp(0, LIGHTNESS_STEPS - 1), means[:, 1:] * LAB_SCALE[1]

    def _nearest(self, chroma: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest bins (B, neighbours, h, w) of each colour, nearest first, and their shares of it."""
        flat = rearrange(chroma, "b c h w -> (b h w) c")
        distance = torch.cdist(flat, self.bins, compute_mode="donot_use_mm_for_euclid_dist")
        nearest, index = distance.topk(self.config.num_neighbours, largest=False)
        # softmax: the Gaussian's weights, normalised
        shares = (-(nearest**2) / (2 * self.config.sigma**2)).softmax(1)
        size = (len(chroma), *chroma.shape[2:])
        near, shares = (t.unflatten(0, size).movedim(-1, 1) for t in (index, shares))
        return near, shares

    def _annealed_mean(self, logits: Tensor) -> Tensor:
        """(B, Q, h, w) to the a and b (B, 2, h, w) of the sharpened distribution's mean."""
        shares = (logits / self.config.temperature).softmax(1)
        # In bfloat16, as autocast would have it, a colour of 100 is wrong by half a unit.
        with torch.autocast(shares.device.type, enabled=False):
            return torch.einsum("bqhw,qc->bchw", shares, self.bins)

    def _by_lightness(self, targets: dict[str, Tensor]) -> Tensor:
        return self.by_lightness[targets["lightness"]]

    @torch.no_grad()
    def draw(self, views: Views, features: dict[str, FeatureMaps]) -> dict[str, Tensor]:
        """Frames with the true colours of their cells, grey as they are shown, and as they are coloured."""
        coloured = self._annealed_mean(self._logits(features))
        grey = views.inputs["grey"][:, :, 0].float()
        strips = []
        for row in range(min(NUM_DRAWN, len(grey))):
            pictures = [
                _paint(grey[row], chroma)
                for chroma in (
                    views.targets["chroma"][row],
                    torch.zeros_like(coloured[row]),
                    coloured[row],
                )
            ]
            title = (
                f"true colours of {self.spatial_stride}-pixel cells | what is seen | as coloured"
            )
            strips.append(Strip(title, [as_array(p) for p in pictures]))
        return {"colours": from_array(contact_sheet(strips, height=128))}


def rebalancing(counts: Tensor, bins: Tensor, *, sigma: float, uniform_share: float) -> Tensor:
    """(Q,) the weight of each bin: the inverse of its smoothed frequency mixed with the uniform one, 1 in the mean.

    `counts` (Q,) are smoothed by a Gaussian over the places `bins` (Q, 2); the mean is over what is counted, smoothed.
    Zhang et al., equation 4.
    """
    kernel = torch.exp(-torch.cdist(bins, bins).square() / (2 * sigma**2))
    smooth = kernel / kernel.sum(0) @ (counts / counts.sum())
    weights = 1 / ((1 - uniform_share) * smooth + uniform_share / len(bins))
    return weights / (smooth * weights).sum()


def _paint(grey: Tensor, chroma: Tensor) -> Tensor:
    """(3, H, W) uint8: the lightness of a frame with these a, b (2, h, w), in Lab units."""
    large = F.interpolate(chroma[None], grey.shape[1:], mode="bilinear")[0] / LAB_SCALE[1]
    return picture(torch.cat([grey[:1], large]))
