"""Contrastive predictive coding: which features come next? CPC and DPC.

CPC (van den Oord, Li, Vinyals, arXiv:1807.03748): a context summed up from what was seen predicts what follows, told apart
from other features by InfoNCE. On video DPC (Han, Xie, Zisserman, ICCVW 2019): blocks of frames, each encoded on its own, a
ConvGRU over their maps, each next block predicted from the context and fed back into it, a prediction at each place scored
by the inner product with the features of all future blocks (section 3). `negatives` are `easy`, of other videos, on all
ranks; `spatial`, of other places of the same video; and `hard`, of the same place at other times.

Departures: Lab blocks; one projection between encoder and scores, since the encoder ends in a ReLU; batch statistics of the
encoder are over all blocks, future ones too. Rows of one video in a global batch are no negatives of each other.
Against shortcuts: colours hold on while things move, so frames are grey at random, each on its own (as in DPC), in
evaluation too; and what the most alike colours to those of the same place in the last block seen answer is the
`shortcut_baseline`. The bound on mutual information counts spatial and hard negatives, which are not drawn independently:
a number to compare runs by, no bound, unless `negatives: [easy]`.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from videossl.color import picture
from videossl.distributed import gather_rows
from videossl.io.drawing import NUM_DRAWN, Strip, as_array, contact_sheet, from_array, mark_cell
from videossl.models.architectures import ConvGRU
from videossl.models.encoder import StageInfo
from videossl.pretext._losses import (
    candidates,
    chance_of,
    finds_own,
    match,
    own_last,
    own_place,
    similarities,
)
from videossl.pretext.settings import CpcConfig
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
)


class Task(PretextTask):
    """Finds the features of each place of each future block among those of others."""

    Config = CpcConfig
    chance_is = "one of the candidates in the batch, on average"

    def __init__(self, config: CpcConfig, stages: Mapping[str, StageInfo]) -> None:
        super().__init__(config, stages)
        self.config = config
        info = stages[config.stage]
        check_whole_cells(stages, config.stage, crop_size=config.crop_size)
        self.clip_spec = ClipSpec(
            1,
            config.num_blocks * config.block_frames,
            config.seconds_between_frames,
            config.crop_size,
        )
        self.spatial_stride = info.spatial_stride
        self.num_seen = config.num_blocks - config.num_predicted
        self.project = nn.Conv2d(info.channels, config.embed_dim, 1)
        self.context = ConvGRU(config.embed_dim, config.embed_dim, kernel=config.kernel)
        self.predict = nn.Sequential(
            nn.Conv2d(config.embed_dim, config.embed_dim, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(config.embed_dim, config.embed_dim, 1),
        )

    def make_views(self, batch: ClipBatch, rng: RowRandom) -> Views:
        clips = batch.clips[self.clip_spec][:, 0]
        has_colour = rng.uniform(clips.shape[2]) >= self.config.grey_share  # (B, T)
        chroma = clips[:, 1:] * has_colour[:, None, :, None, None]
        layout = "b c (n t) h w -> (b n) c t h w"
        blocks = rearrange(
            torch.cat([clips[:, :1], chroma], 1), layout, n=self.config.num_blocks
        ).contiguous()
        side = clips.shape[-1] // self.spatial_stride
        colours = F.adaptive_avg_pool3d(blocks, (1, side, side))[:, :, 0]
        targets = {
            "colours": colours.unflatten(0, (len(clips), -1)),
            "videos": batch.video_ids.to(clips.device, non_blocking=True),
            # Of the global batch: a row is told from another of the same video.
            "rows": torch.arange(rng.first_row, rng.first_row + len(clips), device=clips.device),
        }
        return Views({"blocks": blocks}, targets)

    def forward(self, features: dict[str, FeatureMaps], targets: dict[str, Tensor]) -> TaskResult:
        queries, keys, excluded = self._questions(features, targets)
        matched = match(queries, keys, excluded, temperature=1.0)
        return TaskResult(
            matched.loss,
            {
                "accuracy": metric_sum(matched.found),
                "chance": metric_sum(matched.chance),
                "shortcut_baseline": metric_sum(finds_own(self._by_colour(targets), excluded)),
                "mutual_information": metric_sum(matched.information),
                "mutual_information_ceiling": metric_sum(matched.ceiling),
            },
        )

    @torch.no_grad()
    def predictions(
        self, features: dict[str, FeatureMaps], targets: dict[str, Tensor]
    ) -> Predictions:
        """Each place's score for all others and, last, for its own features. `colours` takes the most alike colours."""
        queries, keys, excluded = self._questions(features, targets)
        scores = own_last(similarities(queries, keys), excluded)
        videos = torch.arange(len(targets["rows"]), device=scores.device)
        return Predictions(
            scores,
            own_place(scores),
            videos.repeat_interleave(len(scores) // len(videos)),
            baselines={"colours": own_last(self._by_colour(targets), excluded).argmax(1)},
            chance=chance_of(scores),
        )

    def _questions(
        self, features: dict[str, FeatureMaps], targets: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predictions (B K h w, D), keys, and which of them are none of a prediction's; see `losses.in_batch`."""
        embedded = self._embed(features["blocks"])
        predicted = self._predict(embedded[:, : self.num_seen])
        future = embedded[:, self.num_seen :]
        own, everyone = _places(future), _places(gather_rows(future))
        excluded = self._excluded(targets, num_places=future[0, 0, 0].numel())
        return _places(predicted), *candidates(own, everyone, excluded)

    def _embed(self, maps: FeatureMaps) -> Tensor:
        """(B, blocks, D, h, w) float."""
        blocks: Tensor = self.project(maps.data.mean(2))
        return blocks.unflatten(0, (-1, self.config.num_blocks)).float()

    def _predict(self, seen: Tensor) -> Tensor:
        """(B, seen, D, h, w) to the blocks that follow (B, predicted, D, h, w)."""
        state = self.context.start(seen[:, 0])
        for block in seen.unbind(1):
            state = self.context(F.relu(block), state)
        predicted = [self.predict(state)]
        while len(predicted) < self.config.num_predicted:
            state = self.context(F.relu(predicted[-1]), state)
            predicted.append(self.predict(state))
        return torch.stack(predicted, 1).float()

    def _excluded(self, targets: dict[str, Tensor], *, num_places: int) -> Tensor:
        """(B K P, ranks B K P): the keys that are none of `negatives`, each query's own among them."""
        rows, videos = targets["rows"], targets["videos"]
        # Axes: row, time and place of a query, then of a key.
        same_row = (rows[:, None] == gather_rows(rows))[:, None, None, :, None, None]
        other_video = (videos[:, None] != gather_rows(videos))[:, None, None, :, None, None]
        times = torch.eye(self.config.num_predicted, dtype=torch.bool, device=rows.device)
        places = torch.eye(num_places, dtype=torch.bool, device=rows.device)
        same_time = times[:, None, None, :, None]
        same_place = places[:, None, None, :]
        kinds = {
            "easy": other_video,
            "spatial": same_row & ~same_place,
            "hard": same_row & same_place & ~same_time,
        }
        asked = torch.zeros_like(same_row & same_time & same_place)
        for kind in self.config.negatives:
            asked = asked | kinds[kind]
        return rearrange(~asked, "b k p a l q -> (b k p) (a l q)")

    def _by_colour(self, targets: dict[str, Tensor]) -> Tensor:
        """The scores of the rule that nothing changes: how alike colours are to those of the last block seen."""
        colours = targets["colours"].float()  # (B, blocks, 3, h, w)
        last = colours[:, self.num_seen - 1, None].expand_as(colours[:, self.num_seen :])
        future = colours[:, self.num_seen :]
        keys = torch.cat([_places(future), _places(gather_rows(future))])
        return -torch.cdist(_places(last), keys)

    @torch.no_grad()
    def draw(self, views: Views, features: dict[str, FeatureMaps]) -> dict[str, Tensor]:
        """The last frame seen with a cell marked, and the cell of each future block most like what is predicted there."""
        embedded = self._embed(features["blocks"])
        predicted = self._predict(embedded[:, : self.num_seen])
        blocks = views.inputs["blocks"].unflatten(0, (len(embedded), -1))
        height, width = embedded.shape[3:]
        cell = (height // 2, width // 2)
        strips = []
        for row in range(min(NUM_DRAWN, len(embedded))):
            shown = picture(blocks[row, self.num_seen - 1, :, -1])
            pictures, shares = [mark_cell(shown, cell, self.spatial_stride)], []
            for ahead in range(self.config.num_predicted):
                query = predicted[row, ahead, :, cell[0], cell[1]]
                scores = torch.einsum("d,dhw->hw", query, embedded[row, self.num_seen + ahead])
                share, best = scores.flatten().softmax(0).max(0)
                frame = picture(blocks[row, self.num_seen + ahead, :, 0])
                found = divmod(int(best), width)
                pictures.append(mark_cell(frame, found, self.spatial_stride))
                shares.append(f"{float(share):.2f}")
            title = f"last seen | found in the next blocks with {', '.join(shares)} of {height * width} places"
            strips.append(Strip(title, [as_array(p) for p in pictures]))
        return {"predictions": from_array(contact_sheet(strips, height=96))}


def _places(maps: Tensor) -> Tensor:
    """(B, K, D, h, w) to one row for each place of each block, (B K h w, D)."""
    return rearrange(maps, "b k d h w -> (b k h w) d")
