"""What cheap classifiers see of a question: a few numbers per frame, a rim or a middle, distances between frames.

Each probe takes `Questions` and gives (Q, D) float numbers. They know nothing of motion, objects or learning: an answer that
can be read off them needs no understanding of the video.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from videossl.types import Questions

EPSILON = 1e-4  # added to energies of normalised L before the logarithm: far below what 8-bit rounding leaves
GRID = 8  # pixels of the blocks that codecs transform
OUTLINE_DIRECTIONS, OUTLINE_CELLS = 8, 4  # of a half turn, and cells a side; chosen
RIM_SHARE = 8 / 112  # of the side
MAX_REGION_FRAMES, MAX_COMPARED_FRAMES = (
    12,
    6,
)  # evenly chosen of longer questions, to keep the numbers few


@dataclass(frozen=True)
class Probe:
    """One cheat. A baseline uses what a task asks about, in the cheapest way: it must be beaten, and is no leak."""

    number: str
    name: str
    features: Callable[[Questions], Tensor]
    is_baseline: bool = False
    needs_direction: bool = (
        False  # a leak only where clips are told from their reversals, else a baseline
    )


def mean_luma(questions: Questions) -> Tensor:
    """(Q, F): one number per frame."""
    return _lightness(questions).mean((2, 3))


def scalars(questions: Questions) -> Tensor:
    """(Q, 3 F): mean, spread and Laplacian energy of each frame."""
    lightness = _lightness(questions)
    parts = [lightness.mean((2, 3)), lightness.std((2, 3)), _sharpness(lightness)]
    return torch.cat(parts, 1)


def quality_ramp(questions: Questions) -> Tensor:
    """(Q, about 2 F): sharpness and blockiness, antisymmetric in time: codecs mark the ends of files, and key frames."""
    lightness = _lightness(questions)
    return torch.cat(
        [_antisymmetric(_sharpness(lightness)), _antisymmetric(_blockiness(lightness))], 1
    )


def quality_and_change_ramp(questions: Questions) -> Tensor:
    """(Q, about 3 F): the same with the energy of change between neighbouring frames."""
    change = _lightness(questions).diff(dim=1).square().mean((2, 3))
    return torch.cat([quality_ramp(questions), _antisymmetric(_log(change))], 1)


def rim(questions: Questions) -> Tensor:
    """(Q, 12 F): mean, spread and sharpness of four strips at the border of each frame: bars, overlays, padding."""
    lightness = _some(_lightness(questions), MAX_REGION_FRAMES)
    width = max(3, round(RIM_SHARE * lightness.shape[-1]))
    strips = [
        lightness[..., :width, :],
        lightness[..., -width:, :],
        lightness[..., :width],
        lightness[..., -width:],
    ]
    return _regions(strips)


def middle(questions: Questions) -> Tensor:
    """(Q, 12 F): the same of the four quarters inside the rim."""
    lightness = _some(_lightness(questions), MAX_REGION_FRAMES)
    width = max(3, round(RIM_SHARE * lightness.shape[-1]))
    inside = lightness[..., width:-width, width:-width]
    halves = [part for row in inside.tensor_split(2, -2) for part in row.tensor_split(2, -1)]
    return _regions(halves)


def distances(questions: Questions) -> Tensor:
    """(Q, pairs + F - 1): how unlike the thumbnails of up to six frames are, and of all neighbouring frames."""
    small = _thumbnails(questions)
    few = _some(small, MAX_COMPARED_FRAMES)
    pairs = [
        (few[:, i] - few[:, j]).abs().mean((1, 2, 3))
        for i, j in itertools.combinations(range(few.shape[1]), 2)
    ]
    logs = _log(torch.stack(pairs, 1)) if pairs else small.new_zeros(len(small), 0)
    # Less their mean: a video in which much moves is not to look different from one in which little does.
    return torch.cat([logs - logs.mean(1, keepdim=True), _jumps(small)], 1)


def outline_distances(questions: Questions) -> Tensor:
    """(Q, pairs): how unlike the outlines of up to six frames are: histograms of gradients by direction, the idea of HOG
    (Dalal and Triggs, CVPR 2005), which see no brightness and little of a shift."""
    outlines = _outlines(_some(_lightness(questions), MAX_COMPARED_FRAMES))
    pairs = [
        (outlines[:, i] - outlines[:, j]).abs().mean(1)
        for i, j in itertools.combinations(range(outlines.shape[1]), 2)
    ]
    if not pairs:
        return outlines.new_zeros(len(outlines), 0)
    logs = _log(torch.stack(pairs, 1))
    return logs - logs.mean(1, keepdim=True)


def sizes_of_change(questions: Questions) -> Tensor:
    """(Q, 3): how much neighbouring frames differ on the whole, and the largest difference and the spread beside that."""
    small = _thumbnails(questions)
    if small.shape[1] < 2:
        return small.new_zeros(len(small), 3)
    jumps = _jumps(small)
    amount = _log(small.diff(dim=1).abs().mean((2, 3, 4))).mean(1)
    return torch.stack([amount, jumps.amax(1), jumps.square().mean(1).sqrt()], 1)


PROBES = (
    Probe("P2", "mean luma of each frame", mean_luma),
    Probe("P2", "mean, spread, sharpness of each frame", scalars),
    Probe("P2", "quality at one end against the other", quality_ramp),
    Probe("P2", "quality and change at one end", quality_and_change_ramp, needs_direction=True),
    Probe("P3", "border alone", rim),
    Probe("P3", "centre alone", middle),
    Probe("P4", "distances between frames", distances, is_baseline=True),
    Probe("P4", "distances between outlines", outline_distances, is_baseline=True),
    Probe("P4", "sizes of changes alone", sizes_of_change, is_baseline=True),
)


def everything(questions: Questions) -> Tensor:
    """(Q, D): all of them beside each other, where nothing at all may tell the answers apart."""
    return torch.cat([probe.features(questions) for probe in PROBES], 1)


def asks_direction(questions: Questions) -> bool:
    """Whether each question is asked of the reversed frames too, with the other of two answers."""
    if questions.num_answers != 2 or not len(questions.frames):
        return False
    trace = scalars(questions).unflatten(1, (3, -1))
    for video in questions.videos.unique():
        rows = questions.videos == video
        own, labels = trace[rows], questions.labels[rows]
        apart = (own[:, None] - own.flip(2)[None]).abs().amax((2, 3))
        is_reversed = (apart < 1e-4) & (labels[:, None] != labels[None])
        if not bool(is_reversed.any(1).all()):
            return False
    return True


def _lightness(questions: Questions) -> Tensor:
    return questions.frames[:, :, 0].float()


def _thumbnails(questions: Questions) -> Tensor:
    """(Q, F, 3, 8, 8)."""
    frames = questions.frames.float()
    return F.adaptive_avg_pool2d(frames.flatten(0, 1), 8).unflatten(0, frames.shape[:2])


def _outlines(lightness: Tensor) -> Tensor:
    """(Q, F, H, W) to (Q, F, D): in a grid of cells the share of gradients of each direction, without sign."""
    down = lightness.diff(dim=2)[..., :-1]
    across = lightness.diff(dim=3)[..., :-1, :]
    strength = torch.hypot(down, across)
    direction = (torch.atan2(down, across) / torch.pi * OUTLINE_DIRECTIONS).floor()
    direction = direction.long() % OUTLINE_DIRECTIONS
    of_direction = torch.zeros(*strength.shape[:2], OUTLINE_DIRECTIONS, *strength.shape[2:])
    of_direction = of_direction.to(strength.device).scatter_(
        2, direction.unsqueeze(2), strength.unsqueeze(2)
    )
    cells = F.adaptive_avg_pool2d(of_direction.flatten(0, 1), OUTLINE_CELLS).flatten(1)
    cells = cells / cells.sum(1, keepdim=True).clamp_min(EPSILON)
    return cells.view(*strength.shape[:2], -1)


def _some(frames: Tensor, count: int) -> Tensor:
    """At most `count` of (Q, F, ...) frames, evenly over them, the first and the last among them."""
    number = frames.shape[1]
    if number <= count:
        return frames
    return frames[:, torch.linspace(0, number - 1, count).round().long().to(frames.device)]


def _sharpness(lightness: Tensor) -> Tensor:
    """(Q, F) log energy of the Laplacian."""
    inner = lightness[..., 1:-1, 1:-1]
    around = (
        lightness[..., 2:, 1:-1]
        + lightness[..., :-2, 1:-1]
        + lightness[..., 1:-1, 2:]
        + lightness[..., 1:-1, :-2]
    )
    return _log((4 * inner - around).square().mean((2, 3)))


def _blockiness(lightness: Tensor) -> Tensor:
    """(Q, F) log of how much larger steps are across the lines of an 8-pixel grid than elsewhere."""
    steps = lightness.diff(dim=-1).abs()
    across = steps[..., GRID - 1 :: GRID].mean((2, 3))
    return _log(across) - _log(steps.mean((2, 3)))


def _regions(regions: list[Tensor]) -> Tensor:
    parts = [[r.mean((2, 3)), r.std((2, 3)), _sharpness(r)] for r in regions]
    return torch.cat([number for numbers in parts for number in numbers], 1)


def _jumps(thumbnails: Tensor) -> Tensor:
    """(Q, F - 1) log differences of neighbouring frames, less their mean."""
    jumps = _log(thumbnails.diff(dim=1).abs().mean((2, 3, 4)))
    return jumps - jumps.mean(1, keepdim=True) if jumps.shape[1] else jumps


def _antisymmetric(values: Tensor) -> Tensor:
    """(Q, 2 (F // 2) - 1): what changes its sign when time runs backward: each value less its mirror image's, and the steps.

    The steps say nothing new, but what the content does differs little between neighbours: a linear rule finds a mark on
    single frames there, with few examples.
    """
    levels = (values - values.flip(1))[:, : values.shape[1] // 2]
    return torch.cat([levels, levels.diff(dim=1)], 1)


def _log(values: Tensor) -> Tensor:
    return (values + EPSILON).log()
