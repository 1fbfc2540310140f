"""Frame order: Shuffle and Learn (Misra, Zitnick, Hebert, ECCV 2016) and VCOP (Xu et al., CVPR 2019).

`mode: verification`: five sub-clips a < b < c < d < e of a window; (b, c, d) and its reverse are in order, (b, a, d),
(b, e, d) and their reverses are not: positives and negatives share their first and last element. `mode: permutation`: three
clips in one of 3! = 6 orders, which one? Tuples are formed of *features*: each sub-clip is encoded once, and all tuples of
a window are judged, so that no label depends on a draw.

Departures: short sub-clips through a 3D-CNN instead of single frames through AlexNet; all tuples instead of one.
Against cheats: gaps are random, so neither a fixed distance nor one jump gives the answer away; windows are drawn where the
video moves (data/sampling.py); sub-clips are shifted and photometrically jittered independently (data/transforms.py);
tuples whose outsider looks like the middle are left out, as in the paper; and beside the accuracy stands what the
distances of three thumbnails give away (`cheat`).
"""

from collections.abc import Mapping
from itertools import permutations
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field
from torch import Tensor

from videossl.drawing import NUM_DRAWN, Strip, contact_sheet, film, from_array
from videossl.models.encoder import StageInfo
from videossl.models.heads import mlp, pool_grid
from videossl.pretext.task import PretextTask, TaskConfig
from videossl.rng import RowRandom
from videossl.types import ClipBatch, ClipSpec, FeatureMaps, TaskResult, Views, tally

A, B, C, D, E = range(5)
IN_ORDER = ((B, C, D), (D, C, B))
OUT_OF_ORDER = ((B, A, D), (D, A, B), (B, E, D), (D, E, B))
ORDERS = tuple(permutations(range(3)))


class OrderVerificationConfig(TaskConfig):
    mode: Literal["verification", "permutation"] = "verification"
    num_frames: int = Field(4, ge=1, description="frames of a sub-clip")
    seconds_between_frames: float = Field(1 / 15, gt=0)
    min_gap_seconds: float = Field(
        0.3, gt=0, description="between the starts of neighbouring sub-clips"
    )
    window_seconds: float = Field(
        2.4, gt=0, description="all sub-clips lie inside; the paper's 60 frames and more"
    )
    crop_size: int = Field(112, ge=16, description="pixels, square")
    positive_share: float = Field(
        0.5, gt=0, lt=1, description="weight of ordered tuples; the paper's best is 0.25"
    )
    min_difference: float = Field(
        0.05,
        ge=0,
        description="mean |difference| (normalised L, 8x8) of outsider and middle below which a tuple is left out",
    )
    cells: int = Field(
        2,
        ge=1,
        description="cells per side of the grid that the head sees; the paper's fc6 sees all",
    )
    hidden: int = Field(256, ge=1, description="width of the head's hidden layer")
    dropout: float = Field(0.5, ge=0, lt=1)


class Task(PretextTask):
    """Judges whether three sub-clips are in order (verification), or in which order they are (permutation)."""

    Config = OrderVerificationConfig

    def __init__(self, config: OrderVerificationConfig, stages: Mapping[str, StageInfo]) -> None:
        super().__init__(config, stages)
        self.config = config
        self.clip_spec = ClipSpec(
            num_clips=5 if config.mode == "verification" else 3,
            num_frames=config.num_frames,
            seconds_between_frames=config.seconds_between_frames,
            crop_size=config.crop_size,
            min_gap_seconds=config.min_gap_seconds,
            window_seconds=config.window_seconds,
        )
        channels = config.cells**2 * stages[config.stage].channels
        num_answers = 2 if config.mode == "verification" else len(ORDERS)
        # Pairwise features first, as in VCOP: the relation of two clips is easier than that of three. What differs is
        # given beside what they are, standardised: see heads.mlp.
        self.standardize = torch.nn.BatchNorm1d(channels)
        # Made once: a tensor made of numbers in each step would make a GPU wait for its transfer.
        tuples = IN_ORDER + OUT_OF_ORDER if config.mode == "verification" else ORDERS
        self.register_buffer("tuples", torch.tensor(tuples), persistent=False)
        labels = torch.arange(len(tuples))
        labels = (labels < len(IN_ORDER)).long() if config.mode == "verification" else labels
        self.register_buffer("labels", labels, persistent=False)
        self.tuples: Tensor
        self.labels: Tensor
        self.pair = torch.nn.Linear(3 * channels, config.hidden)
        self.head = mlp(3 * config.hidden, config.hidden, num_answers, dropout=config.dropout)

    def make_views(self, batch: ClipBatch, rng: RowRandom) -> Views:
        clips = batch.clips[self.clip_spec]  # (B, K, 3, T, H, W)
        middle = clips[:, :, 0, self.config.num_frames // 2]  # (B, K, H, W), lightness
        targets = {"thumbnails": F.adaptive_avg_pool2d(middle, 8)}
        return Views({"clips": rearrange(clips, "b k c t h w -> (b k) c t h w")}, targets)

    def forward(self, features: dict[str, FeatureMaps], targets: dict[str, Tensor]) -> TaskResult:
        pooled = pool_grid(features["clips"].data, groups=1, cells=self.config.cells)
        vectors = rearrange(pooled, "(b k) c -> b k c", k=self.clip_spec.num_clips)
        if self.config.mode == "verification":
            return self._verify(vectors, targets["thumbnails"])
        return self._sort(vectors, targets["thumbnails"])

    def _logits(self, vectors: Tensor) -> Tensor:
        """(B, K, C) features to (B, tuples, answers)."""
        standard = self.standardize(vectors.flatten(0, 1)).view_as(vectors)
        x = standard[:, self.tuples]  # (B, tuples, 3, C)
        pairs = torch.stack(
            [_relation(x[:, :, i], x[:, :, j]) for i, j in ((0, 1), (1, 2), (0, 2))], 2
        )
        related = F.relu(self.pair(pairs)).flatten(2)  # (B, tuples, 3 * hidden)
        logits: Tensor = self.head(related.flatten(0, 1)).view(*related.shape[:2], -1)
        return logits.float()

    def _verify(self, vectors: Tensor, thumbnails: Tensor) -> TaskResult:
        logits = self._logits(vectors)  # (B, 6, 2)
        labels = self.labels.expand(len(logits), -1)
        to_a, to_e = (
            (thumbnails[:, C] - thumbnails[:, outsider]).abs().mean(dim=(1, 2))
            >= self.config.min_difference
            for outsider in (A, E)
        )
        keep_positive = (to_a | to_e)[:, None].expand(-1, 2)
        keep = torch.cat(
            [keep_positive, to_a[:, None].expand(-1, 2), to_e[:, None].expand(-1, 2)], 1
        ).float()
        share = self.config.positive_share
        balance = torch.where(labels == 1, share / len(IN_ORDER), (1 - share) / len(OUT_OF_ORDER))
        per_tuple = F.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), reduction="none"
        ).view_as(keep)
        loss = (per_tuple * keep * balance).sum(1).mean()
        right = (logits.argmax(-1) == labels).float()
        recalls = _recalls(right, keep)
        cheat = (self._is_middle_between(thumbnails) == (labels == 1)).float()
        # Both classes weigh alike, so guessing scores one half whatever their shares are.
        return TaskResult(
            loss,
            {
                "accuracy": torch.cat(recalls, 1),
                "chance": tally(torch.full_like(right, 0.5)),
                "cheat": torch.cat(_recalls(cheat, keep), 1),
                "recall_in_order": recalls[0],
                "recall_out_of_order": recalls[1],
                "kept_share": tally(keep),
            },
        )

    def _sort(self, vectors: Tensor, thumbnails: Tensor) -> TaskResult:
        logits = self._logits(vectors)  # (B, 6, 6)
        labels = self.labels.expand(len(logits), -1)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        right = (logits.argmax(-1) == labels).float()
        # The pair furthest apart tells the middle one; which of the others came first remains a guess.
        knows_middle = self._is_middle_between(thumbnails)[:, :1].float().expand_as(right)
        return TaskResult(
            loss,
            {
                "accuracy": tally(right),
                "chance": tally(torch.full_like(right, 1 / len(ORDERS))),
                "cheat": tally(knows_middle / 2),
            },
        )

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
        pooled = pool_grid(features["clips"].data, groups=1, cells=self.config.cells)
        answers = self._logits(rearrange(pooled, "(b k) c -> b k c", k=num_clips)).softmax(-1)
        clips = rearrange(views.inputs["clips"], "(b k) c t h w -> b k c t h w", k=num_clips)
        strips = []
        for clip, answer in zip(clips[:NUM_DRAWN], answers, strict=False):
            if self.config.mode == "verification":
                names = ("bcd", "dcb", "bad", "dab", "bed", "deb")
                said = ", ".join(
                    f"{n} {float(p):.2f}" for n, p in zip(names, answer[:, 1], strict=True)
                )
                title = f"a b c d e; in order? {said} (right: 1 1 0 0 0 0)"
            else:
                right = answer.gather(1, self.labels[:, None])[:, 0]
                title = f"a b c; of its six orders the right one gets {float(right.mean()):.2f} (chance 0.17)"
            middle = clip[:, :, self.config.num_frames // 2].transpose(0, 1)  # (3, K, H, W)
            strips.append(Strip(title, film(middle)))
        return {"order": from_array(contact_sheet(strips, height=96))}


def _recalls(right: Tensor, keep: Tensor) -> list[Tensor]:
    """Of the tuples in order, and of those that are not."""
    split = len(IN_ORDER)
    return [tally(right[:, :split], keep[:, :split]), tally(right[:, split:], keep[:, split:])]


def _relation(first: Tensor, second: Tensor) -> Tensor:
    """(..., C) each to (..., 3 C): both, and their distance in each channel."""
    return torch.cat([first, second, (first - second).abs()], -1)
