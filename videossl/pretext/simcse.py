"""SimCSE: which clip is this one, seen through another dropout mask? Gao, Yao, Chen, EMNLP 2021, arXiv:2104.08821.

`mode: unsupervised` (section 3): the same features go through the projection twice, under two masks, and find each other
among the clips of all other videos on all ranks. `mode: supervised` (section 4) needs no labels here either: the positive is
another clip of the same video, in place of an entailed sentence; and, in place of a contradiction, `hard_negative` is the
clip itself with its frames `reversed` or `shuffled` (or `none`), which joins the negatives of every clip (equation 5).

Departures: clips through one 3D-CNN; dropout acts in the projection alone, since the encoder is shared and has none. Masks
are drawn with the views, from the rows' own randomness: two ranks draw what one would, and held-out clips have masks too,
the same at each evaluation, so that accuracy means there what it means in training. Without masks the unsupervised question
would be whether two equal rows are equal.
Against shortcuts: none in `unsupervised`, whose answer is the clip itself. The nearest thumbnail finds it
(`shortcut_baseline`), so that an accuracy near 1 is no news; what training does is spread the clips out. In `supervised`
the rule is the nearest thumbnail too, told to pass over the clip's own hard negative, whose mean is the clip's. Rows of
one video are no negatives of each other but for that one. The bound on mutual information holds for negatives that are
drawn independently; a clip's own hard negative is not.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videossl.distributed import gather_rows
from videossl.io.drawing import NUM_DRAWN, Strip, contact_sheet, film, from_array
from videossl.models.encoder import StageInfo, pooled
from videossl.pretext._losses import (
    candidates,
    chance_of,
    finds_own,
    match,
    own_last,
    own_place,
    similarities,
)
from videossl.pretext._views import mean_pictures, reorder_frames
from videossl.pretext.settings import SimcseConfig
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
    """Finds a clip's positive among the positives and hard negatives of the global batch."""

    Config = SimcseConfig
    chance_is = "one of the candidates in the batch, on average"

    def __init__(self, config: SimcseConfig, stages: Mapping[str, StageInfo]) -> None:
        super().__init__(config, stages)
        self.config = config
        self.is_supervised = config.mode == "supervised"
        self.has_negative = self.is_supervised and config.hard_negative != "none"
        self.clip_spec = ClipSpec(
            2 if self.is_supervised else 1,
            config.num_frames,
            config.seconds_between_frames,
            config.crop_size,
            config.min_gap_seconds if self.is_supervised else 0.0,
            config.window_seconds if self.is_supervised else 0.0,
        )
        channels = stages[config.stage].channels
        # As heads.mlp, but that its masks come from outside.
        self.body = nn.Sequential(
            nn.BatchNorm1d(channels),
            nn.Linear(channels, config.hidden_dim),
            nn.BatchNorm1d(config.hidden_dim),
            nn.ReLU(),
        )
        self.project = nn.Linear(config.hidden_dim, config.embed_dim)

    def make_views(self, batch: ClipBatch, rng: RowRandom) -> Views:
        clips = batch.clips[self.clip_spec]
        inputs, reversals = {"anchor": clips[:, 0]}, {}
        if self.is_supervised:
            inputs["positive"] = clips[:, 1]
        if self.has_negative and self.config.hard_negative == "reversed":
            reversals["negative"] = "anchor"
        elif self.has_negative:
            order = _shuffled(rng.uniform(self.config.num_frames))
            inputs["negative"] = reorder_frames(clips[:, 0], order)
        # Of the anchor, of the positive, of the hard negative.
        masks = rng.uniform(2 + self.has_negative, self.config.hidden_dim) >= self.config.dropout
        shown = ("anchor", "positive" if self.is_supervised else "anchor")
        thumbnails = [mean_pictures(inputs[name]) for name in shown]
        targets = {
            "masks": masks,
            "thumbnails": torch.stack(thumbnails, 1),
            "videos": batch.video_ids.to(clips.device, non_blocking=True),
            # Of the global batch: a row's own hard negative is told from that of another row of its video.
            "rows": torch.arange(rng.first_row, rng.first_row + len(clips), device=clips.device),
        }
        return Views(inputs, targets, reversals)

    def forward(self, features: dict[str, FeatureMaps], targets: dict[str, Tensor]) -> TaskResult:
        anchor, keys, excluded = self._questions(features, targets)
        matched = match(anchor, keys, excluded, temperature=self.config.temperature)
        thumbnail_scores, without_negative = self._by_thumbnail(targets)
        return TaskResult(
            matched.loss,
            {
                "accuracy": metric_sum(matched.found),
                "chance": metric_sum(matched.chance),
                "shortcut_baseline": metric_sum(finds_own(thumbnail_scores, without_negative)),
                "mutual_information": metric_sum(matched.information),
                "mutual_information_ceiling": metric_sum(matched.ceiling),
            },
        )

    @torch.no_grad()
    def predictions(
        self, features: dict[str, FeatureMaps], targets: dict[str, Tensor]
    ) -> Predictions:
        """Each clip's score for all others and, last, for its positive. `thumbnails` takes the nearest."""
        anchor, keys, excluded = self._questions(features, targets)
        scores = own_last(similarities(anchor, keys), excluded)
        rows = torch.arange(len(scores), device=scores.device)
        return Predictions(
            scores,
            own_place(scores),
            rows,
            baselines={"thumbnails": own_last(*self._by_thumbnail(targets)).argmax(1)},
            chance=chance_of(scores),
        )

    def _embed(self, features: dict[str, FeatureMaps], targets: dict[str, Tensor]) -> Tensor:
        """(views, B, D) of length 1: anchor, positive and, where there is one, hard negative, each under its own mask."""
        names = ["anchor", "positive" if self.is_supervised else "anchor"]
        names += ["negative"] if self.has_negative else []
        # Together: batch statistics of one kind alone would tell the kinds apart.
        hidden = self.body(torch.cat([pooled(features[name]) for name in names]))
        kept = targets["masks"].transpose(0, 1) / (1 - self.config.dropout)
        masked = hidden.unflatten(0, (len(names), -1)) * kept
        return F.normalize(self.project(masked).float(), dim=-1)

    def _questions(
        self, features: dict[str, FeatureMaps], targets: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Anchors (B, D), keys, and which of them are none of an anchor's; see `losses.in_batch`."""
        anchor, positive, *negative = self._embed(features, targets)
        everyone = torch.cat([gather_rows(keys) for keys in (positive, *negative)])
        other_video = targets["videos"][:, None] != gather_rows(targets["videos"])
        same_row = targets["rows"][:, None] == gather_rows(targets["rows"])
        asked = [other_video, other_video | same_row] if negative else [other_video]
        return anchor, *candidates(positive, everyone, ~torch.cat(asked, 1))

    def _by_thumbnail(self, targets: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """How near each key's thumbnail is to the anchor's, and which keys are passed over: its own hard negative too."""
        anchor, positive = targets["thumbnails"].float().unbind(1)
        # A reversed or shuffled clip has the mean of the clip it was made of.
        kinds = [positive, anchor] if self.has_negative else [positive]
        other_video = targets["videos"][:, None] != gather_rows(targets["videos"])
        keys, excluded = candidates(
            positive,
            torch.cat([gather_rows(kind) for kind in kinds]),
            ~torch.cat([other_video] * len(kinds), 1),
        )
        return -torch.cdist(anchor, keys), excluded

    @torch.no_grad()
    def draw(self, views: Views, features: dict[str, FeatureMaps]) -> dict[str, Tensor]:
        """Middle frames of a clip, its positive, and the three positives of other videos of this rank nearest to it."""
        anchor, positive, *negative = self._embed(features, views.targets)
        cosines = anchor @ positive.T
        shown = views.inputs["positive" if self.is_supervised else "anchor"]
        middle = self.config.num_frames // 2
        strips = []
        for row in range(min(NUM_DRAWN, len(anchor))):
            ranked = cosines[row].argsort(descending=True).tolist()
            order = [row, *[i for i in ranked if i != row][:3]]
            said = ", ".join(f"{float(cosines[row, i]):.2f}" for i in order)
            hard = [
                f", its hard negative {float(anchor[row] @ keys[row]):.2f}" for keys in negative
            ]
            title = f"a clip, its positive, the nearest of others: cosines {said}{''.join(hard)}"
            frames = torch.stack(
                [views.inputs["anchor"][row, :, middle], *shown[order, :, middle]], 1
            )
            strips.append(Strip(title, film(frames)))
        return {"neighbours": from_array(contact_sheet(strips, height=96))}


def _shuffled(draws: Tensor) -> Tensor:
    """(B, T) uniform draws to orders of T frames, never the one they have."""
    order = draws.argsort(1)
    frames = torch.arange(order.shape[1], device=order.device)
    is_kept = (order == frames).all(1, keepdim=True)
    return torch.where(is_kept, frames.roll(1), order)
