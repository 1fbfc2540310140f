"""Contrastive random walk: does a walk to similar patches of later frames and back end where it began? Jabri et al., 2020.

Jabri, Owens, Efros, "Space-Time Correspondence as a Contrastive Random Walk" (CRW), arXiv:2006.14613, code ajabri/videowalk.
Nodes are overlapping patches of each frame, each encoded by itself, so that no padding tells where it lies. Cosines of nodes
in neighbouring frames over a temperature, some edges dropped, give by a softmax the probability of each step; the product
of the steps to a later frame and back gives that of coming home to each node. The loss is the cross-entropy of the node
where a walk began, the mean over the walks to all later frames (the code leaves out the shortest). As in the code each frame
is cut at an offset of its own, each patch shows a random square of itself enlarged, and colours are left as they are.

Departures: Lab patches through a stage of the shared encoder, zero padding instead of reflection, frames moved by whole
pixels instead of resized, squares instead of rectangles, dropout that leaves each row its luckiest edge.
Against shortcuts: who steps to the same cell each time always comes home, so an encoder that told cells would answer
everything and correspond to nothing. Accuracy alone proves no tracking. Beside it stands what stepping to the nearest
colours scores (`shortcut_baseline`), and evaluation says how many pixels of the frame the walk has gone (`distance`) and
how many the same cell goes, by the offsets alone. Offsets and squares are drawn in evaluation too: a still video would
else ask nothing.
"""

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from videossl.color import picture
from videossl.io.drawing import (
    NUM_DRAWN,
    Strip,
    as_array,
    brighten,
    contact_sheet,
    from_array,
    mark_cell,
)
from videossl.models.encoder import StageInfo, pooled
from videossl.pretext._views import mean_pictures
from videossl.pretext.settings import RandomWalkConfig
from videossl.pretext.task import PretextTask, check_whole_cells, stage_keeping_time
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

EPSILON = 1e-20  # added to probabilities before the logarithm, as in the code
# Mean colours a side of a patch that the rule without a network compares. Of 1, 2, 4 and 8 it does best with 2, on rendered
# clips and on real ones (32 of mixed content, as configs/random_walk.yaml cuts them: .29, .30, .25, .22 return).
COLOUR_SIDE = 2


class Walks(NamedTuple):
    """Where walks from the N nodes of the first frame are likely to be, (B, T - 1, N, N) each, rows being their beginnings.

    `away[:, t]` in frame t + 1, `home[:, t]` in the first frame again, having turned in frame t + 1.
    """

    away: Tensor
    home: Tensor


def walk(nodes: Tensor, kept: Tensor, *, temperature: float) -> Walks:
    """The walks along nodes (B, T, N, D) of length 1, on the edges `kept` (B, 2, T - 1, N, N): those there, those back.

    An edge's row is the node that it leaves; each row must keep one.
    """
    # In bfloat16, as autocast would have it, cosines divided by a temperature of 0.05 are wrong by tenths.
    with torch.autocast(nodes.device.type, enabled=False):
        affinity = nodes[:, :-1] @ nodes[:, 1:].mT / temperature  # (B, T - 1, N, N)
        energies = torch.stack([affinity, affinity.mT], 1).masked_fill(~kept, -torch.inf)
        there, back = energies.softmax(-1).unbind(1)
        away, home = [there[:, 0]], [back[:, 0]]
        for step in range(1, there.shape[1]):
            away.append(away[-1] @ there[:, step])
            home.append(back[:, step] @ home[-1])
        reached = torch.stack(away, 1)
        return Walks(reached, reached @ torch.stack(home, 1))


def keep_edges(draws: Tensor, rate: float) -> Tensor:
    """Which edges stay, bool of the shape of `draws` in [0, 1): each is dropped at this rate, but no row loses all."""
    return (draws >= rate) | (draws == draws.amax(-1, keepdim=True))


def return_by_nearest(described: Tensor) -> Tensor:
    """(B, N): where who always steps to the most alike node, there and back, comes home to; nodes (B, T, N, V)."""
    distance = torch.cdist(
        described[:, :-1], described[:, 1:], compute_mode="donot_use_mm_for_euclid_dist"
    )
    steps = [*distance.argmin(3).unbind(1), *distance.argmin(2).flip(1).unbind(1)]
    place = steps[0]
    for step in steps[1:]:
        place = step.gather(1, place)
    return place


class Task(PretextTask):
    """Walks over patches from the first frame of a clip to the last and back to where it began."""

    Config = RandomWalkConfig
    wants_tracking: ClassVar[bool] = True

    def __init__(self, config: RandomWalkConfig, stages: Mapping[str, StageInfo]) -> None:
        super().__init__(config, stages)
        self.config = config
        info = stage_keeping_time(stages, config.stage, task="random_walk")
        check_whole_cells(stages, config.stage, patch_size=config.patch_size)
        self.clip_spec = ClipSpec(
            num_clips=1,
            num_frames=config.num_frames,
            seconds_between_frames=config.seconds_between_frames,
            crop_size=config.crop_size + 2 * config.frame_jitter,
        )
        self.head = nn.Linear(info.channels, config.embed_dim)
        # Whole pixels: else how sharp a patch is would tell its cell.
        starts = torch.linspace(0, config.crop_size - config.patch_size, config.grid).round()
        self.register_buffer("corners", torch.cartesian_prod(starts, starts), persistent=False)
        self.corners: Tensor  # (N, 2), row and column of each node's top left corner

    def make_views(self, batch: ClipBatch, rng: RowRandom) -> Views:
        config, num_nodes = self.config, len(self.corners)
        clips = batch.clips[self.clip_spec][:, 0]
        num_frames = config.num_frames
        offsets = rng.integers(num_frames, 1, 2, high=2 * config.frame_jitter + 1)
        places = offsets + self.corners  # (B, T, N, 2)
        least, most = config.patch_area
        side = (
            config.patch_size * rng.uniform(num_frames, num_nodes, 1, low=least, high=most).sqrt()
        )
        inside = places + (config.patch_size - side) * rng.uniform(num_frames, num_nodes, 2)
        patches = _cut_patches(clips, inside, side, config.patch_size)
        edges = rng.uniform(2, num_frames - 1, num_nodes, num_nodes)
        colours = mean_pictures(patches, side=COLOUR_SIDE).unflatten(0, places.shape[:3])
        targets = {
            "kept": keep_edges(edges, config.edge_dropout if self.training else 0.0),
            "places": places,
            "by_colour": return_by_nearest(colours),
        }
        return Views({"patches": patches}, targets)

    def forward(self, features: dict[str, FeatureMaps], targets: dict[str, Tensor]) -> TaskResult:
        home = self._walk(features, targets).home
        own = home.diagonal(dim1=2, dim2=3)  # (B, T - 1, N)
        label = self._labels(home)
        right = (home[:, -1].argmax(-1) == label).float()
        return TaskResult(
            -(own + EPSILON).log().mean(),
            {
                "accuracy": metric_sum(right),
                "chance": metric_sum(torch.full_like(right, 1 / len(self.corners))),
                "shortcut_baseline": metric_sum((targets["by_colour"] == label).float()),
            },
        )

    @torch.no_grad()
    def predictions(
        self, features: dict[str, FeatureMaps], targets: dict[str, Tensor]
    ) -> Predictions:
        """Where each node's walk to the last frame and back comes home to. `colours` steps to the patch of nearest colours.

        `entropy` (nats) says how spread out the walk is in the last frame, `distance` (pixels of the video's frame) how far
        it has gone by then, and `same cell distance` how far the same cell: in a still video nothing should move.
        """
        walks = self._walk(features, targets)
        home, away = walks.home[:, -1], walks.away[:, -1]
        places = targets["places"]
        distance = torch.cdist(places[:, 0], places[:, -1])  # (B, N, N)
        label = self._labels(home)
        videos = torch.arange(len(home), device=home.device)
        return Predictions(
            home.flatten(0, 1),
            label.flatten(),
            videos.repeat_interleave(len(self.corners)),
            baselines={"colours": targets["by_colour"].flatten()},
            numbers={
                "entropy": torch.special.entr(away).sum(-1).flatten(),
                "distance": (away * distance).sum(-1).flatten(),
                "same cell distance": distance.diagonal(dim1=1, dim2=2).flatten(),
            },
            chance=torch.full_like(label, 1 / len(self.corners), dtype=torch.float32).flatten(),
        )

    def _walk(self, features: dict[str, FeatureMaps], targets: dict[str, Tensor]) -> Walks:
        nodes = F.normalize(self.head(pooled(features["patches"])).float(), dim=1)
        nodes = nodes.unflatten(0, (-1, self.config.num_frames, len(self.corners)))
        return walk(nodes, targets["kept"], temperature=self.config.temperature)

    def _labels(self, home: Tensor) -> Tensor:
        """(B, N): each walk should end where it began."""
        return torch.arange(len(self.corners), device=home.device).expand(len(home), -1)

    @torch.no_grad()
    def draw(self, views: Views, features: dict[str, FeatureMaps]) -> dict[str, Tensor]:
        """The first frame's patches with the middle one marked, where its walk is in each later frame, and back home."""
        walks = self._walk(features, views.targets)
        grid, size = self.config.grid, self.config.patch_size
        start = len(self.corners) // 2
        layout = "(b t y x) c 1 h w -> b t c (y h) (x w)"
        shape = {"t": self.config.num_frames, "y": grid, "x": grid}
        frames = picture(rearrange(views.inputs["patches"], layout, **shape))
        strips = []
        for row in range(min(NUM_DRAWN, len(frames))):
            shown = [mark_cell(frames[row, 0], divmod(start, grid), size)]
            stops = zip(frames[row, 1:], walks.away[row, :, start], strict=True)
            shown += [brighten(frame, at.unflatten(0, (grid, grid))) for frame, at in stops]
            home = walks.home[row, -1, start]
            shown.append(brighten(frames[row, 0], home.unflatten(0, (grid, grid))))
            title = f"a patch | where its walk leads | and back: home with {float(home[start]):.2f}"
            strips.append(Strip(title, [as_array(one) for one in shown]))
        return {"walks": from_array(contact_sheet(strips, height=160))}


def _cut_patches(clips: Tensor, corners: Tensor, side: Tensor, size: int) -> Tensor:
    """(B T N, 3, 1, size, size): of each frame the squares of `side` (B, T, N, 1) from `corners` (B, T, N, 2), enlarged.

    Bilinear, one sample a pixel: pixels themselves for a whole corner and a side of `size`.
    """
    frames = rearrange(clips, "b c t h w -> (b t) c h w")
    first = corners.flip(-1)  # x before y
    box = torch.cat([first, first + side], -1)
    frame = torch.arange(len(frames), device=clips.device, dtype=box.dtype)
    index = frame.view(*box.shape[:2], 1, 1).expand(*box.shape[:3], 1)
    boxes = torch.cat([index, box], -1).flatten(0, 2)
    from torchvision.ops import roi_align  # torchvision takes a second to load

    return roi_align(frames, boxes, size, sampling_ratio=1, aligned=True).unsqueeze(2)
