"""Clip order: in which order are N clips of a window shown? VCOP and OPN.

VCOP (Xu et al., CVPR 2019): three clips, 3! = 6 answers, an interval between clips, each clip cropped on its own.
OPN (Lee et al., ICCV 2017): four frames, and `merge_reversals`: an order and the same frames shown from last to first are
one answer, 4! / 2 = 12; channel splitting and a jitter of 5 pixels for each frame (section 4.1). Orders are formed of
*features*: each clip is encoded once, and all orders of a window are judged, so that no label depends on a draw.

Departures: all N! orders instead of one; one shared crop of a window, moved for each clip; learned cosines beside the
pairwise features (`heads.TupleHead`).
Against shortcuts: gaps are random, offsets and channels too, in evaluation as in training; beside the accuracy stands
what the shortest way through thumbnails, cut and coloured alike, answers (`shortcut_baseline`); in which direction time
runs on it, it guesses.
"""

from collections.abc import Mapping
from itertools import pairwise, permutations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from videossl.io.drawing import NUM_DRAWN, Strip, contact_sheet, film, from_array
from videossl.models.encoder import StageInfo
from videossl.models.heads import TupleHead, pool_grid
from videossl.pretext._views import show_apart, thumbnails
from videossl.pretext.settings import ClipOrderConfig
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


def orders(num_clips: int, *, merge_reversals: bool) -> tuple[list[tuple[int, ...]], list[int]]:
    """All orders of N clips and the answer that each is: its own, or that of its reverse too."""
    shown = list(permutations(range(num_clips)))
    if not merge_reversals:
        return shown, list(range(len(shown)))
    classes: dict[tuple[int, ...], int] = {}
    answers = []
    for order in shown:
        same = min(order, order[::-1])
        answers.append(classes.setdefault(same, len(classes)))
    return shown, answers


class Task(PretextTask):
    """Predictions in which of its orders a window's clips are shown."""

    Config = ClipOrderConfig

    def __init__(self, config: ClipOrderConfig, stages: Mapping[str, StageInfo]) -> None:
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
        shown, answers = orders(config.num_clips, merge_reversals=config.merge_reversals)
        self.num_answers = max(answers) + 1
        # Made once: a tensor made of numbers in each step would make a GPU wait for its transfer.
        self.register_buffer("tuples", torch.tensor(shown), persistent=False)
        self.register_buffer("labels", torch.tensor(answers), persistent=False)
        inverse = torch.tensor(shown).argsort(1)  # the place at which each clip is shown
        self.register_buffer("places", inverse, persistent=False)
        index = {order: row for row, order in enumerate(shown)}
        last = config.num_clips - 1
        backward = torch.tensor([index[tuple(last - clip for clip in order)] for order in shown])
        self.register_buffer("backward", backward, persistent=False)
        self.tuples: Tensor
        self.labels: Tensor
        self.places: Tensor
        self.backward: Tensor
        self.head = TupleHead(
            config.cells**2 * stages[config.stage].channels,
            shown,
            hidden=config.hidden_dim,
            num_answers=self.num_answers,
            dropout=config.dropout,
        )

    def make_views(self, batch: ClipBatch, rng: RowRandom) -> Views:
        clips = batch.clips[self.clip_spec]
        views = show_apart(
            clips,
            rng,
            size=self.config.crop_size,
            shift=self.config.clip_jitter,
            is_split=self.config.split_channels,
        )
        shown = thumbnails(views).unflatten(0, clips.shape[:2])
        return Views({"clips": views}, {"thumbnails": shown})

    def forward(self, features: dict[str, FeatureMaps], targets: dict[str, Tensor]) -> TaskResult:
        logits = self._logits(features)  # (B, N!, answers)
        labels = self.labels.expand(len(logits), -1)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        right = (logits.argmax(-1) == labels).float()
        return TaskResult(
            loss,
            {
                "accuracy": metric_sum(right),
                "chance": metric_sum(torch.full_like(right, 1 / self.num_answers)),
                "shortcut_baseline": metric_sum(self._expected(targets["thumbnails"])),
            },
        )

    @torch.no_grad()
    def predictions(
        self, features: dict[str, FeatureMaps], targets: dict[str, Tensor]
    ) -> Predictions:
        """Each order of each window, and what the shortest way through its thumbnails scores on it (`shortcut_baseline`)."""
        logits = self._logits(features)
        videos = torch.arange(len(logits), device=logits.device)
        return Predictions(
            logits.flatten(0, 1),
            self.labels.repeat(len(logits)),
            videos.repeat_interleave(len(self.labels)),
            numbers={"shortcut_baseline": self._expected(targets["thumbnails"]).flatten()},
        )

    def shortcut_inputs(self, views: Views) -> ShortcutInputs:
        """The frames of each order, one clip after the other."""
        count = self.config.num_clips
        clips = rearrange(views.inputs["clips"], "(b k) c t h w -> b k t c h w", k=count)
        shown = rearrange(clips[:, self.tuples], "b q n t c h w -> (b q) (n t) c h w")
        videos = torch.arange(len(clips), device=shown.device)
        labels = self.labels.repeat(len(clips))
        return ShortcutInputs(
            shown, labels, videos.repeat_interleave(len(self.labels)), self.num_answers
        )

    def _logits(self, features: dict[str, FeatureMaps]) -> Tensor:
        pooled = pool_grid(features["clips"].data, groups=1, cells=self.config.cells)
        logits: Tensor = self.head(rearrange(pooled, "(b k) c -> b k c", k=self.config.num_clips))
        return logits

    def _shortest_way(self, thumbnails: Tensor) -> tuple[Tensor, Tensor]:
        """Both (B, N!): the answer if time ran along the shortest way through the thumbnails, and if it ran back."""
        distance = (thumbnails[:, :, None] - thumbnails[:, None]).abs().mean((3, 4))  # (B, K, K)
        length = torch.stack(
            [
                distance[:, self.tuples[:, i], self.tuples[:, j]]
                for i, j in pairwise(range(self.config.num_clips))
            ]
        ).sum(0)  # (B, N!), of each way through the window's clips
        rank = self.places[length.argmin(1)]  # (B, K): which of the way each clip is taken to be
        forth = self._index_of(rank[:, self.tuples])
        return self.labels[forth], self.labels[self.backward[forth]]

    def _index_of(self, order: Tensor) -> Tensor:
        """(B, N!, K) orders to their rows in `tuples`."""
        return (order[:, :, None] == self.tuples).all(-1).long().argmax(2)

    def _expected(self, thumbnails: Tensor) -> Tensor:
        """(B, N!) what the shortest way scores: a half where one of its two directions is right, 1 where both are."""
        forth, back = self._shortest_way(thumbnails)
        labels = self.labels.expand(len(forth), -1)
        return ((forth == labels).float() + (back == labels).float()) / 2

    @torch.no_grad()
    def draw(self, views: Views, features: dict[str, FeatureMaps]) -> dict[str, Tensor]:
        """The middle frames of each window's clips in their order, and how sure the head is of the orders shown."""
        count = self.config.num_clips
        sure = self._logits(features).softmax(-1)
        right = sure.gather(2, self.labels.expand(len(sure), -1)[..., None])[..., 0].mean(1)
        clips = rearrange(views.inputs["clips"], "(b k) c t h w -> b k c t h w", k=count)
        strips = []
        for clip, share in zip(clips[:NUM_DRAWN], right, strict=False):
            title = f"in order; the right answer gets {float(share):.2f}, chance {1 / self.num_answers:.2f}"
            middle = clip[:, :, self.config.num_frames // 2].transpose(0, 1)
            strips.append(Strip(title, film(middle)))
        return {"order": from_array(contact_sheet(strips, height=96))}
