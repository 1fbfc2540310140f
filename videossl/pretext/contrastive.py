"""Contrastive: which clip is of the same video? Two clips of each video against clips of the others, over all ranks.

`mode: simclr` (Chen et al., ICML 2020; on video CVRL, Qian et al., CVPR 2021): projections of two clips at different times,
cropped and jittered on their own, negatives of both clips of every other video on every rank. `mode: moco` (He et al., CVPR
2020; on video rho-MoCo, Feichtenhofer et al., CVPR 2021): the second clip goes through a slowly following copy of encoder
and projection, and the negatives are a queue of such keys. `loss: info_nce`, or another of the metric-learning family
(`_losses.py`) on the clips of the global batch with videos as labels (simclr only).

Departures: Lab clips; the two clips share the crop of their video but for a shift (data/transforms.py); batch statistics are
each rank's own unless `train.sync_batchnorm`; MoCo's shuffling of batches is left out: where they tell the pair, loss falls
in training and not in evaluation.
Against shortcuts: rows of one video (small corpora, a queue that has seen it) are no negatives of each other; and beside the
accuracy stands what the nearest thumbnail would answer (`shortcut_baseline`): colour alone tells videos apart. The bound
on mutual information, log N - loss, stands beside its ceiling log N (docs/mutual_information.md).
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from videossl.distributed import gather_rows
from videossl.io.drawing import NUM_DRAWN, Strip, contact_sheet, film, from_array
from videossl.models.encoder import StageInfo, pooled
from videossl.models.heads import KeyQueue, follow, mlp, slow_copy
from videossl.pretext import _losses
from videossl.pretext._losses import (
    candidates,
    chance_of,
    finds_own,
    match,
    own_last,
    own_place,
    similarities,
)
from videossl.pretext._views import mean_pictures
from videossl.pretext.settings import ContrastiveConfig
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

THUMBNAIL = 8  # pixels a side


class Task(PretextTask):
    """Finds the other clip of the same video among the clips of others."""

    Config = ContrastiveConfig
    chance_is = "one of the candidates in the batch, on average"

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
        self.head = mlp(stages[config.stage].channels, config.hidden_dim, config.embed_dim)
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []  # keys of this step's batches
        if config.mode == "moco":
            self.momentum = config.momentum
            self.slow_head = slow_copy(self.head)
            self.queue = KeyQueue(config.queue_size, config.embed_dim, 3 * THUMBNAIL**2)

    def make_views(self, batch: ClipBatch, rng: RowRandom) -> Views:
        clips = batch.clips[self.clip_spec].flatten(0, 1)  # (2 B, 3, T, H, W), no copy
        thumbnails = mean_pictures(clips, THUMBNAIL)
        videos = batch.video_ids.to(clips.device, non_blocking=True)
        targets = {"thumbnails": thumbnails, "videos": videos}
        if self.config.mode == "simclr":
            return Views({"clips": clips}, targets)
        return Views({"clips": clips[::2]}, targets, slow_inputs={"keys": clips[1::2]})

    def forward(self, features: dict[str, FeatureMaps], targets: dict[str, Tensor]) -> TaskResult:
        raw = self.head(pooled(features["clips"])).float()
        questions = self._questions(raw, features, targets)
        matched, shortcut_baseline = [], []
        for own, keys, shown, shown_keys, excluded in questions:
            matched.append(match(own, keys, excluded, temperature=self.config.temperature))
            shortcut_baseline.append(finds_own(-torch.cdist(shown, shown_keys), excluded))
        found, chance, bound, ceiling = (
            torch.stack([getattr(of_view, name) for of_view in matched])
            for name in ("found", "chance", "information", "ceiling")
        )
        loss = torch.stack([of_view.loss for of_view in matched]).mean()
        metric_sums = {
            "accuracy": metric_sum(found),
            "chance": metric_sum(chance),
            "shortcut_baseline": metric_sum(torch.cat(shortcut_baseline)),
        }
        if self.config.loss == "info_nce":
            metric_sums["mutual_information"] = metric_sum(bound)
            metric_sums["mutual_information_ceiling"] = metric_sum(ceiling)
        else:
            loss = self._other_loss(raw, questions, targets)
        return TaskResult(loss, metric_sums)

    @torch.no_grad()
    def predictions(
        self, features: dict[str, FeatureMaps], targets: dict[str, Tensor]
    ) -> Predictions:
        """Each clip's similarity to those of other videos and, last, to its other clip; `thumbnails` takes the nearest."""
        raw = self.head(pooled(features["clips"])).float()
        scores, baselines = [], []
        for own, keys, shown, shown_keys, excluded in self._questions(raw, features, targets):
            scores.append(own_last(similarities(own, keys), excluded))
            baselines.append(own_last(-torch.cdist(shown, shown_keys), excluded))
        videos = torch.arange(len(targets["videos"]), device=scores[0].device)
        joined = torch.cat(scores)
        return Predictions(
            joined,
            own_place(joined),
            videos.repeat(len(scores)),
            baselines={"thumbnails": torch.cat(baselines).argmax(1)},
            chance=chance_of(joined),
        )

    def after_step(self, skipped: Tensor) -> None:
        """Lets the slow projection follow, and the keys of the step into the queue."""
        if self.config.mode == "moco":
            follow(self.slow_head, self.head, self.config.momentum, skipped)
            for keys, thumbnails, videos in self._pending:
                self.queue.push(keys, thumbnails, videos, skipped)
        self._pending = []

    def forget_videos(self) -> None:
        """Keys of the queue stay, as keys of nobody."""
        if self.config.mode == "moco":
            self.queue.videos.fill_(-1)

    def _questions(
        self, raw: Tensor, features: dict[str, FeatureMaps], targets: dict[str, Tensor]
    ) -> list["_Question"]:
        """Queries (B, D) and keys, the first B of them right; the thumbnails of both; which keys are none of a query's."""
        thumbnails, videos = targets["thumbnails"].float(), targets["videos"]
        embedded = F.normalize(raw, dim=1)
        if self.config.mode == "moco":
            answer = F.normalize(self.slow_head(pooled(features["keys"])).float(), dim=1).detach()
            if self.training:
                held = (answer, thumbnails[1::2], videos)
                self._pending.append(tuple(gather_rows(part) for part in held))  # type: ignore[arg-type]
            same_video = videos[:, None] == self.queue.videos
            keys, excluded = candidates(answer, self.queue.keys.clone(), same_video)
            shown_keys = torch.cat([thumbnails[1::2], self.queue.rival_keys])
            return [(embedded, keys, thumbnails[::2], shown_keys, excluded)]
        everyone, all_thumbnails = gather_rows(embedded), gather_rows(thumbnails)
        same_video = videos[:, None] == gather_rows(videos).repeat_interleave(2)  # (B, 2 B ranks)
        questions = []
        for view in range(2):
            keys, excluded = candidates(embedded[1 - view :: 2], everyone, same_video)
            shown_keys = torch.cat([thumbnails[1 - view :: 2], all_thumbnails])
            questions.append((embedded[view::2], keys, thumbnails[view::2], shown_keys, excluded))
        return questions

    def _other_loss(
        self, raw: Tensor, questions: list["_Question"], targets: dict[str, Tensor]
    ) -> Tensor:
        """The rest of the family, on the clips of the global batch: each rank has the same loss, of all rows."""
        if self.config.loss == "nce":
            return torch.stack(
                [_noise_contrastive(question, self.config.temperature) for question in questions]
            ).mean()
        if self.config.loss == "n_pair":  # as given: the paper compares raw products
            rows, videos = gather_rows(raw), gather_rows(targets["videos"])
            same = videos[:, None] == videos
            pairs = ((rows[::2], rows[1::2]), (rows[1::2], rows[::2]))
            return torch.stack([_losses.n_pair(a, b, excluded=same) for a, b in pairs]).mean()
        _, keys, *_ = questions[0]
        everyone = keys[len(targets["videos"]) :]
        labels = gather_rows(targets["videos"]).repeat_interleave(2)
        if self.config.loss == "contrastive":
            return _losses.contrastive(everyone, labels)
        if self.config.loss == "triplet":
            return _losses.triplet(everyone, labels)
        if self.config.loss == "lifted_structured":
            return _losses.lifted_structured(everyone, labels)
        return _losses.soft_nearest_neighbour(everyone, labels, temperature=self.config.temperature)

    @torch.no_grad()
    def draw(self, views: Views, features: dict[str, FeatureMaps]) -> dict[str, Tensor]:
        """Middle frames of a clip, its other clip, and the three clips of other videos of this rank that look nearest."""
        embedded = F.normalize(self.head(pooled(features["clips"])).float(), dim=1)
        clips = views.inputs["clips"]
        if self.config.mode == "moco":  # in the order of simclr: a clip, its other clip
            keys = F.normalize(self.slow_head(pooled(features["keys"])).float(), dim=1)
            embedded = torch.stack([embedded, keys], 1).flatten(0, 1)
            clips = torch.stack([clips, views.slow_inputs["keys"]], 1).flatten(0, 1)
        middles = clips[:, :, self.config.num_frames // 2]  # (2 B, 3, H, W)
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


_Question = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _noise_contrastive(question: "_Question", temperature: float) -> Tensor:
    """Other videos' clips as noise, cosines over the temperature as log-ratios; what is excluded weighs nothing."""
    own, keys, _, _, excluded = question
    ratios = similarities(own, keys[len(own) :]) / temperature
    noise = ratios.masked_fill(excluded[:, len(own) :], -torch.inf)
    data = (own * keys[: len(own)]).sum(1) / temperature
    return _losses.noise_contrastive(data, noise)
