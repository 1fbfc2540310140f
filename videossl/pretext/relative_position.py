"""Relative position: where does a second patch lie, seen from the first? Doersch, Gupta, Efros, ICCV 2015.

Nine patches of a frame, with gaps between them and each moved by a few pixels (section 3.1); each of the eight around the
centre is asked for its place. `cells: space-time` asks it of cells of a clip, 3 x 3 x 3 of them: a neighbour may also be
earlier or later, 26 places. Each patch is encoded once, and every neighbour is judged beside the centre, so that no label
depends on a draw.

Departures: Lab patches through the shared encoder; one hidden layer on the pair instead of fc7 to fc9; no patches of
lower resolution. Against shortcuts: gaps, so that edges do not run on; jitter; and against lenses, whose colour fringes tell
where in the picture a patch was, `colour`: `drop` leaves each patch one of red, green and blue, as grey (the paper fills
the other two with faint noise), `project` takes away the axis from green to magenta, `keep` takes away nothing. The place
whose facing edges are most alike is what a rule without a network answers (`shortcut_baseline`).
"""

from collections.abc import Mapping
from itertools import product

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from videossl.color import picture
from videossl.io.drawing import NUM_DRAWN, Strip, as_array, contact_sheet, from_array
from videossl.models.encoder import StageInfo
from videossl.models.heads import mlp, pool_grid
from videossl.pretext._views import split_channels, without_green_magenta
from videossl.pretext.settings import RelativePositionConfig
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

EDGE_SIDE = 8  # cells a side of the thumbnails whose edges are compared; chosen


class Task(PretextTask):
    """Answers which neighbour of the centre a patch is."""

    Config = RelativePositionConfig

    def __init__(self, config: RelativePositionConfig, stages: Mapping[str, StageInfo]) -> None:
        super().__init__(config, stages)
        self.config = config
        in_time = config.cells == "space-time"
        times = (-1, 0, 1) if in_time else (0,)
        places = list(product(times, (-1, 0, 1), (-1, 0, 1)))  # time, row, column
        self.centre = places.index((0, 0, 0))
        self.directions = [place for place in places if place != (0, 0, 0)]
        extra = 2 * (config.num_frames + config.time_gap + config.time_jitter) if in_time else 0
        self.clip_spec = ClipSpec(
            1,
            config.num_frames + extra,
            config.seconds_between_frames,
            3 * config.crop_size + 2 * (config.gap + config.jitter),
        )
        steps = torch.tensor(
            [config.num_frames + config.time_gap, *2 * [config.crop_size + config.gap]]
        )
        first = torch.tensor(places) - torch.tensor(places[0])
        # Made once: a tensor made of numbers in each step would make a GPU wait for its transfer.
        self.register_buffer("starts", first * steps, persistent=False)  # (P, 3), before jitter
        around = [row for row in range(len(places)) if row != self.centre]
        self.register_buffer("around", torch.tensor(around), persistent=False)
        self.starts: Tensor
        self.around: Tensor
        channels = config.grid**2 * stages[config.stage].channels
        self.head = mlp(
            3 * channels, config.hidden_dim, len(self.directions), dropout=config.dropout
        )

    def make_views(self, batch: ClipBatch, rng: RowRandom) -> Views:
        config, count = self.config, len(self.starts)
        time_jitter = config.time_jitter if config.cells == "space-time" else 0
        moved = torch.cat(
            [
                rng.integers(count, 1, high=2 * time_jitter + 1),
                rng.integers(count, 2, high=2 * config.jitter + 1),
            ],
            -1,
        )
        clips = batch.clips[self.clip_spec][:, 0]
        cells = _cut_cells(clips, self.starts + moved, config.num_frames, config.crop_size)
        if config.colour == "drop":
            channel = rng.integers(count, 1, high=3).expand(-1, -1, config.num_frames)
            cells = split_channels(cells, channel.flatten(0, 1))
        elif config.colour == "project":
            cells = without_green_magenta(cells)
        return Views({"cells": cells}, {"edges": self._by_edges(cells)})

    def forward(self, features: dict[str, FeatureMaps], targets: dict[str, Tensor]) -> TaskResult:
        logits = self._logits(features)  # (B, neighbours, answers)
        labels = self._labels(logits)
        right = (logits.argmax(-1) == labels).float()
        return TaskResult(
            F.cross_entropy(logits.flatten(0, 1), labels.flatten()),
            {
                "accuracy": metric_sum(right),
                "chance": metric_sum(torch.full_like(right, 1 / len(self.directions))),
                "shortcut_baseline": metric_sum((targets["edges"] == labels).float()),
            },
        )

    @torch.no_grad()
    def predictions(
        self, features: dict[str, FeatureMaps], targets: dict[str, Tensor]
    ) -> Predictions:
        """Each neighbour of each centre. `edges` answers with the place whose facing edges are most alike."""
        logits = self._logits(features)
        videos = torch.arange(len(logits), device=logits.device)
        return Predictions(
            logits.flatten(0, 1),
            self._labels(logits).flatten(),
            videos.repeat_interleave(logits.shape[1]),
            baselines={"edges": targets["edges"].flatten()},
        )

    def shortcut_inputs(self, views: Views) -> ShortcutInputs:
        """The frames of the centre, then those of a neighbour."""
        cells = rearrange(views.inputs["cells"], "(b p) c t h w -> b p t c h w", p=len(self.starts))
        count = len(self.directions)
        centre = cells[:, self.centre, None].expand(-1, count, -1, -1, -1, -1)
        shown = torch.cat([centre, cells[:, self.around]], 2).flatten(0, 1)
        videos = torch.arange(len(cells), device=shown.device)
        labels = torch.arange(count, device=shown.device).repeat(len(cells))
        return ShortcutInputs(shown, labels, videos.repeat_interleave(count), count)

    def _logits(self, features: dict[str, FeatureMaps]) -> Tensor:
        pooled = pool_grid(features["cells"].data, groups=1, cells=self.config.grid)
        patches = pooled.unflatten(0, (-1, len(self.starts)))  # (B, P, C)
        neighbour = patches[:, self.around]
        centre = patches[:, self.centre, None].expand_as(neighbour)
        pairs = torch.cat([centre, neighbour, (centre - neighbour).abs()], -1)
        logits: Tensor = self.head(pairs.flatten(0, 1))
        return logits.unflatten(0, pairs.shape[:2]).float()

    def _labels(self, logits: Tensor) -> Tensor:
        return torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)

    def _by_edges(self, cells: Tensor) -> Tensor:
        """(B, neighbours) the direction in which a neighbour's facing edge is most like the centre's."""
        small = F.adaptive_avg_pool3d(cells, (min(2, cells.shape[2]), EDGE_SIDE, EDGE_SIDE))
        small = small.unflatten(0, (-1, len(self.starts)))  # (B, P, 3, time, row, column)
        centre, neighbour = small[:, self.centre, None], small[:, self.around]
        differences = []
        for direction in self.directions:
            near = tuple(_face(step) for step in direction)
            far = tuple(_face(-step) for step in direction)
            difference = centre[..., *near] - neighbour[..., *far]
            differences.append(difference.abs().mean((2, 3, 4, 5)))
        return torch.stack(differences, -1).argmin(-1)

    @torch.no_grad()
    def draw(self, views: Views, features: dict[str, FeatureMaps]) -> dict[str, Tensor]:
        """The patches at their places, earlier and later ones beside each other, and how many of them the head places."""
        logits = self._logits(features)
        right = (logits.argmax(-1) == self._labels(logits)).float().mean(1)
        middle = views.inputs["cells"][:, :, self.config.num_frames // 2]
        framed = F.pad(picture(middle), (2, 2, 2, 2), value=255)
        layout = "(b t y x) c h w -> b t c (y h) (x w)"
        maps = rearrange(framed, layout, b=len(right), y=3, x=3)
        strips = []
        for places, share in zip(maps[:NUM_DRAWN], right, strict=False):
            title = f"placed {float(share):.2f} of its {len(self.directions)} neighbours"
            strips.append(Strip(title, [as_array(places_then) for places_then in places]))
        return {"places": from_array(contact_sheet(strips, height=160))}


def _face(step: int) -> slice:
    """What of an axis faces a neighbour that lies a step of -1, 0 or 1 along it: the first, all, the last."""
    return (slice(None), slice(-1, None), slice(0, 1))[step]


def _cut_cells(clips: Tensor, starts: Tensor, frames: int, size: int) -> Tensor:
    """(B P, 3, frames, size, size): of each clip the cells that begin at `starts` (B, P, 3), frame, row and column."""
    spans = [torch.arange(length, device=clips.device) for length in (frames, size, size)]
    time, row, column = (starts[..., axis, None] + span for axis, span in enumerate(spans))
    clip = torch.arange(len(clips), device=clips.device)[:, None, None, None, None]
    cut = clips.movedim(1, -1)[
        clip, time[..., None, None], row[:, :, None, :, None], column[:, :, None, None]
    ]
    return rearrange(cut, "b p t h w c -> (b p) c t h w").contiguous()
