"""Odd one out: which of N + 1 sub-clips of a video is not in order? O3N: Fernando et al., CVPR 2017.

N + 1 = 6 sub-clips, one of which has its frames shuffled (section 3); the answer is its place. Every sub-clip is encoded
twice, in order and shuffled, and each takes its turn as the odd one, so that no label depends on a draw.

Departures: sub-clips through a 3D-CNN instead of sums or stacks of frame differences through AlexNet; the same small network
scores each sub-clip beside the mean of all, so that places cannot be learned by heart, instead of one layer on all features
side by side (section 3.4).
Against shortcuts: a shuffled clip jumps, and a jump is seen without any understanding of order: beside the accuracy
stands what the largest sum of differences between neighbouring thumbnails answers (`shortcut_baseline`). `clip_jitter`
moves each frame's crop, in all clips alike, so that the jump hides among others.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from videossl.io.drawing import NUM_DRAWN, Strip, contact_sheet, film, from_array
from videossl.models.encoder import StageInfo
from videossl.models.heads import mlp, pool_grid
from videossl.pretext._views import cut_frames, reorder_frames
from videossl.pretext.settings import OddOneOutConfig
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
    """Answers which of a video's sub-clips has its frames shuffled."""

    Config = OddOneOutConfig

    def __init__(self, config: OddOneOutConfig, stages: Mapping[str, StageInfo]) -> None:
        super().__init__(config, stages)
        self.config = config
        self.clip_spec = ClipSpec(
            config.num_clips,
            config.num_frames,
            config.seconds_between_frames,
            config.crop_size + 2 * config.clip_jitter,
            config.min_gap_seconds,
            config.window_seconds,
        )
        channels = 2 * config.cells**2 * stages[config.stage].channels  # in two parts of time
        self.standardize = torch.nn.BatchNorm1d(channels)
        self.head = mlp(3 * channels, config.hidden_dim, 1, dropout=config.dropout)

    def make_views(self, batch: ClipBatch, rng: RowRandom) -> Views:
        clips = batch.clips[self.clip_spec].flatten(0, 1)  # (B K, 3, T, H, W)
        count, frames = self.config.num_clips, self.config.num_frames
        if self.config.clip_jitter:
            offsets = rng.integers(count, frames, 2, high=2 * self.config.clip_jitter + 1)
            clips = cut_frames(clips, offsets.flatten(0, 1), self.config.crop_size)
        order = _shuffled(rng.uniform(count, frames))
        views = {"ordered": clips, "shuffled": reorder_frames(clips, order.flatten(0, 1))}
        jumps = [_jump(view).unflatten(0, (len(batch), count)) for view in views.values()]
        return Views(views, {"jumps": torch.stack(jumps, 1)})

    def forward(self, features: dict[str, FeatureMaps], targets: dict[str, Tensor]) -> TaskResult:
        logits = self._logits(features)  # (B, odd one, sub-clip)
        labels = torch.arange(self.config.num_clips, device=logits.device).expand(len(logits), -1)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        right = (logits.argmax(-1) == labels).float()
        return TaskResult(
            loss,
            {
                "accuracy": metric_sum(right),
                "chance": metric_sum(torch.full_like(right, 1 / self.config.num_clips)),
                "shortcut_baseline": metric_sum(
                    (self._most_jumpy(targets["jumps"]) == labels).float()
                ),
            },
        )

    @torch.no_grad()
    def predictions(
        self, features: dict[str, FeatureMaps], targets: dict[str, Tensor]
    ) -> Predictions:
        """One question for each place of the odd one. `jumps` answers with the clip whose thumbnails differ most."""
        logits = self._logits(features)
        places = torch.arange(self.config.num_clips, device=logits.device)
        videos = torch.arange(len(logits), device=logits.device)
        return Predictions(
            logits.flatten(0, 1),
            places.repeat(len(logits)),
            videos.repeat_interleave(len(places)),
            baselines={"jumps": self._most_jumpy(targets["jumps"]).flatten()},
        )

    def shortcut_inputs(self, views: Views) -> ShortcutInputs:
        """The frames of all sub-clips, one after the other, for each place of the odd one."""
        count = self.config.num_clips
        ordered, shuffled = (
            rearrange(views.inputs[name], "(b k) c t h w -> b k t c h w", k=count)
            for name in ("ordered", "shuffled")
        )
        shown = _each_odd(ordered, shuffled)  # (B, odd, K, T, 3, H, W)
        places = torch.arange(count, device=ordered.device)
        videos = torch.arange(len(ordered), device=ordered.device)
        return ShortcutInputs(
            rearrange(shown, "b q k t c h w -> (b q) (k t) c h w"),
            places.repeat(len(ordered)),
            videos.repeat_interleave(count),
            count,
        )

    def _logits(self, features: dict[str, FeatureMaps]) -> Tensor:
        pooled = [
            pool_grid(features[name].data, groups=2, cells=self.config.cells)
            for name in ("ordered", "shuffled")
        ]
        # Together: batch statistics of one kind alone would tell the kinds apart.
        both = self.standardize(torch.cat(pooled))
        ordered, shuffled = both.unflatten(0, (-1, self.config.num_clips)).chunk(2)  # (B, K, C)
        x = _each_odd(ordered, shuffled)  # (B, odd, K, C)
        mean = x.mean(2, keepdim=True).expand_as(x)
        logits: Tensor = self.head(torch.cat([x, mean, (x - mean).abs()], -1).flatten(0, 2))
        return logits.view(x.shape[:3]).float()

    def _most_jumpy(self, jumps: Tensor) -> Tensor:
        """(B, 2, K) jumps of the clips in order and shuffled to the jumpiest clip for each odd one, (B, K)."""
        return _each_odd(jumps[:, 0], jumps[:, 1]).argmax(-1)

    @torch.no_grad()
    def draw(self, views: Views, features: dict[str, FeatureMaps]) -> dict[str, Tensor]:
        """A sub-clip in order and shuffled, and how often the shuffled ones of its video were found."""
        places = torch.arange(self.config.num_clips, device=features["ordered"].data.device)
        found = (self._logits(features).argmax(-1) == places).float()
        strips = []
        for row in range(min(NUM_DRAWN, len(found))):
            first = row * self.config.num_clips
            said = "found" if found[row, 0] else "not found"
            share = float(found[row].mean())
            strips.append(Strip("in order", film(views.inputs["ordered"][first])))
            title = f"shuffled: {said} among {self.config.num_clips} (of all its turns {share:.2f})"
            strips.append(Strip(title, film(views.inputs["shuffled"][first])))
        return {"odd one": from_array(contact_sheet(strips, height=72))}


def _each_odd(ordered: Tensor, shuffled: Tensor) -> Tensor:
    """(B, K, ...) each to (B, K, K, ...): for each place of the odd one the shuffled clip there, the others in order."""
    odd = torch.eye(ordered.shape[1], dtype=torch.bool, device=ordered.device)
    odd = odd.view(*odd.shape, *[1] * (ordered.ndim - 2))
    return torch.where(odd, shuffled[:, None], ordered[:, None])


def _shuffled(draws: Tensor) -> Tensor:
    """(B, K, T) uniform draws to orders of T frames that are neither in order nor in its reverse."""
    order = draws.argsort(-1)
    frames = torch.arange(order.shape[-1], device=order.device)
    is_kept = (order == frames).all(-1) | (order == frames.flip(0)).all(-1)
    # One frame moved from the middle to the front is a shuffle for any T >= 3.
    swapped = torch.cat([frames[1:2], frames[:1], frames[2:]])
    return torch.where(is_kept[..., None], swapped, order)


def _jump(clips: Tensor) -> Tensor:
    """(N,) the mean difference of neighbouring thumbnails of each clip."""
    small = F.adaptive_avg_pool3d(clips[:, :1], (clips.shape[2], 8, 8))[:, 0]
    return (small[:, 1:] - small[:, :-1]).abs().mean((1, 2, 3))
