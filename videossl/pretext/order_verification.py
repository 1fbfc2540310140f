"""Frame-order verification: are three moments of a window in order? Shuffle and Learn: Misra, Zitnick, Hebert, ECCV 2016.

Five sub-clips a < b < c < d < e of a window; (b, c, d) and its reverse are in order, (b, a, d), (b, e, d) and their reverses
are not: positives and negatives share their first and last element (section 3.1). With `tau_max_seconds` and
`tau_min_seconds` the gaps are the paper's: b to d at most tau_max, a to b and d to e at least tau_min. Tuples are formed of
*features*: each sub-clip is encoded once, and all tuples of a window are judged, so that no label depends on a draw.

Departures: short sub-clips through a 3D-CNN instead of single frames through AlexNet (`num_frames: 1` is the paper's); all
tuples instead of one; pairs of features, and learned cosines of them, before the answer (`heads.TupleHead`).
Against shortcuts: gaps are random, so neither a fixed distance nor one jump gives the answer away; windows are drawn
where the video moves (data/sampling.py); each sub-clip is cut at an offset of its own (`clip_jitter`), also in
evaluation, and shows, if asked, one colour channel of its own: compared pixel by pixel, moments then tell little; tuples
whose outsider looks like the middle are left out, as in the paper; and beside the accuracy stands what distances of three
thumbnails, cut and coloured alike, give away (`shortcut_baseline`).
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from videossl.io.drawing import NUM_DRAWN, Strip, contact_sheet, film, from_array
from videossl.models.encoder import StageInfo
from videossl.models.heads import TupleHead, pool_grid
from videossl.pretext._views import show_apart, thumbnails
from videossl.pretext.settings import OrderVerificationConfig
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

A, B, C, D, E = range(5)
IN_ORDER = ((B, C, D), (D, C, B))
OUT_OF_ORDER = ((B, A, D), (D, A, B), (B, E, D), (D, E, B))
TUPLES = IN_ORDER + OUT_OF_ORDER
NAMES = ("bcd", "dcb", "bad", "dab", "bed", "deb")


class Task(PretextTask):
    """Judges whether three sub-clips of a window are in order."""

    Config = OrderVerificationConfig

    def __init__(self, config: OrderVerificationConfig, stages: Mapping[str, StageInfo]) -> None:
        super().__init__(config, stages)
        self.config = config
        self.clip_spec = _clip_spec(config)
        labels = (torch.arange(len(TUPLES)) < len(IN_ORDER)).long()
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer("tuples", torch.tensor(TUPLES), persistent=False)
        self.labels: Tensor
        self.tuples: Tensor
        self.head = TupleHead(
            config.cells**2 * stages[config.stage].channels,
            TUPLES,
            hidden=config.hidden_dim,
            num_answers=2,
            dropout=config.dropout,
        )

    def make_views(self, batch: ClipBatch, rng: RowRandom) -> Views:
        clips = batch.clips[self.clip_spec]  # (B, K, 3, T, H, W)
        middle = thumbnails(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])
        views = show_apart(
            clips,
            rng,
            size=self.config.crop_size,
            shift=self.config.clip_jitter,
            is_split=self.config.split_channels,
        )
        # What moved is asked of the window itself, what gives the answer away of what is shown.
        shown = thumbnails(views).unflatten(0, clips.shape[:2])
        return Views({"clips": views}, {"thumbnails": shown, "differs": self._differs(middle)})

    def forward(self, features: dict[str, FeatureMaps], targets: dict[str, Tensor]) -> TaskResult:
        logits = self._logits(features)  # (B, 6, 2)
        labels = self.labels.expand(len(logits), -1)
        keep = targets["differs"]
        share = self.config.positive_share
        balance = torch.where(labels == 1, share / len(IN_ORDER), (1 - share) / len(OUT_OF_ORDER))
        per_tuple = F.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), reduction="none"
        ).view_as(keep)
        loss = (per_tuple * keep * balance).sum(1).mean()
        right = (logits.argmax(-1) == labels).float()
        recalls = _recalls(right, keep)
        shortcut_baseline = (
            self._is_middle_between(targets["thumbnails"]) == (labels == 1)
        ).float()
        # Both classes weigh alike, so guessing scores one half whatever their shares are.
        return TaskResult(
            loss,
            {
                "accuracy": torch.cat(recalls, 1),
                "chance": metric_sum(torch.full_like(right, 0.5)),
                "shortcut_baseline": torch.cat(_recalls(shortcut_baseline, keep), 1),
                "recall_in_order": recalls[0],
                "recall_out_of_order": recalls[1],
                "kept_share": metric_sum(keep),
            },
        )

    @torch.no_grad()
    def predictions(
        self, features: dict[str, FeatureMaps], targets: dict[str, Tensor]
    ) -> Predictions:
        """Each tuple of each window, whose two classes weigh alike. `thumbnails` is the shortcut_baseline's answer."""
        logits = self._logits(features)
        labels = self.labels.expand(len(logits), -1)
        kept = targets["differs"]
        in_order, out_of_order = kept.split([len(IN_ORDER), len(OUT_OF_ORDER)], 1)
        weights = torch.cat(
            [part / part.sum(1, keepdim=True).clamp_min(1) for part in (in_order, out_of_order)], 1
        )
        between = self._is_middle_between(targets["thumbnails"])
        return Predictions(
            logits.flatten(0, 1),
            labels.flatten(),
            self._video_of_tuples(len(logits)),
            weights.flatten(),
            baselines={"thumbnails": between.long().flatten()},
        )

    def shortcut_inputs(self, views: Views) -> ShortcutInputs:
        """The frames of each tuple that is not left out, one sub-clip after the other."""
        num_clips = self.clip_spec.num_clips
        clips = rearrange(views.inputs["clips"], "(b k) c t h w -> b k t c h w", k=num_clips)
        shown = rearrange(clips[:, self.tuples], "b q n t c h w -> (b q) (n t) c h w")
        kept = views.targets["differs"].bool().flatten()
        labels = self.labels.expand(len(clips), -1).flatten()
        return ShortcutInputs(shown[kept], labels[kept], self._video_of_tuples(len(clips))[kept], 2)

    def _logits(self, features: dict[str, FeatureMaps]) -> Tensor:
        pooled = pool_grid(features["clips"].data, groups=1, cells=self.config.cells)
        vectors = rearrange(pooled, "(b k) c -> b k c", k=self.clip_spec.num_clips)
        logits: Tensor = self.head(vectors)
        return logits

    def _video_of_tuples(self, num_videos: int) -> Tensor:
        videos = torch.arange(num_videos, device=self.labels.device)
        return videos.repeat_interleave(len(TUPLES))

    def _differs(self, thumbnails: Tensor) -> Tensor:
        """(B, 6) float: whether the outsider of a tuple, or any of both for those in order, looks unlike the middle."""
        to_a, to_e = (
            (thumbnails[:, C] - thumbnails[:, outsider]).abs().mean(dim=(1, 2))
            >= self.config.min_difference
            for outsider in (A, E)
        )
        kept = [(to_a | to_e), to_a, to_e]
        return torch.cat([k[:, None].expand(-1, 2) for k in kept], 1).float()

    def _is_middle_between(self, thumbnails: Tensor) -> Tensor:
        """(B, tuples): whether first and last are the two that look least alike. No network, and often right."""
        shown = thumbnails[:, self.tuples]  # (B, tuples, 3, h, w)
        first, middle, last = (
            (shown[:, :, i] - shown[:, :, j]).abs().mean((2, 3))
            for i, j in ((0, 1), (0, 2), (1, 2))
        )
        return middle >= torch.maximum(first, last)

    @torch.no_grad()
    def draw(self, views: Views, features: dict[str, FeatureMaps]) -> dict[str, Tensor]:
        """The middle frames of each window's clips in their order, and the answers' probabilities."""
        num_clips = self.clip_spec.num_clips
        answers = self._logits(features).softmax(-1)
        clips = rearrange(views.inputs["clips"], "(b k) c t h w -> b k c t h w", k=num_clips)
        strips = []
        for clip, answer in zip(clips[:NUM_DRAWN], answers, strict=False):
            said = ", ".join(
                f"{n} {float(p):.2f}" for n, p in zip(NAMES, answer[:, 1], strict=True)
            )
            title = f"a b c d e; in order? {said} (right: 1 1 0 0 0 0)"
            middle = clip[:, :, self.config.num_frames // 2].transpose(0, 1)  # (3, K, H, W)
            strips.append(Strip(title, film(middle)))
        return {"order": from_array(contact_sheet(strips, height=96))}


def _clip_spec(config: OrderVerificationConfig) -> ClipSpec:
    """Five sub-clips, by the paper's taus or inside one window."""
    size = config.crop_size + 2 * config.clip_jitter
    if config.tau_max_seconds is None:
        return ClipSpec(
            5,
            config.num_frames,
            config.seconds_between_frames,
            size,
            config.min_gap_seconds,
            config.window_seconds,
        )
    if config.tau_max_seconds < 2 * config.min_gap_seconds:
        raise ValueError(
            f"tau_max_seconds {config.tau_max_seconds:g} cannot hold two gaps of min_gap_seconds "
            f"{config.min_gap_seconds:g}: raise it or lower min_gap_seconds"
        )
    inner = (config.min_gap_seconds, config.tau_max_seconds / 2)
    # The paper bounds the outer gaps from below alone; twice as far at most keeps windows short.
    outer = (config.tau_min_seconds, 2 * config.tau_min_seconds)
    return ClipSpec(
        5,
        config.num_frames,
        config.seconds_between_frames,
        size,
        gap_ranges=(outer, inner, inner, outer),
    )


def _recalls(right: Tensor, keep: Tensor) -> list[Tensor]:
    """The recall of the tuples in order, and of those that are not."""
    split = len(IN_ORDER)
    return [
        metric_sum(right[:, :split], keep[:, :split]),
        metric_sum(right[:, split:], keep[:, split:]),
    ]
