"""Colours of grey pictures: bins against sRGB's own formula, targets, weights and losses against slow loops."""

import itertools
import math

import numpy as np
import pytest
import torch

from videossl.color import chroma_bins
from videossl.models.encoder import Encoder, EncoderSpec
from videossl.pretext.image_colorization import ImageColorizationConfig, Task, rebalancing
from videossl.rng import row_random
from videossl.types import ClipBatch, FeatureMaps, metric_mean

CPU = torch.device("cpu")
# IEC 61966-2-1, D65, written once more: the reference that knows nothing of videossl/color.py.
XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.072175],
        [0.0193339, 0.119192, 0.9503041],
    ]
)
WHITE = np.array([0.95047, 1.0, 1.08883])


def chroma_of(rgb: np.ndarray) -> np.ndarray:
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ XYZ.T / WHITE
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def linear_rgb_of(lab: np.ndarray) -> np.ndarray:
    fy = (lab[..., 0] + 16) / 116
    f = np.stack([fy + lab[..., 1] / 500, fy, fy - lab[..., 2] / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * WHITE
    return xyz @ np.linalg.inv(XYZ).T


def build(**settings) -> Task:
    torch.manual_seed(0)
    config = ImageColorizationConfig(**{"crop_size": 32, "hidden_dim": 16, **settings})
    return Task(config, Encoder(EncoderSpec("tiny", deepest_stage="res4")).stages)


def batch_of(task: Task, frames: torch.Tensor) -> ClipBatch:
    """Frames (B, 3, H, W), normalised Lab."""
    spec = task.clip_spec
    times = torch.zeros(len(frames), 1, 1).double()
    return ClipBatch({spec: frames[:, None, :, None]}, {spec: times}, torch.arange(len(frames)))


def views_of(task: Task, frames: torch.Tensor):
    rng = row_random(0, "v", rank=0, world_size=1, num_rows=len(frames), device=CPU)
    return task.make_views(batch_of(task, frames), rng)


def cells_of(task: Task, chroma: torch.Tensor, lightness: torch.Tensor) -> torch.Tensor:
    """Frames whose cells (B, h, w) have this chroma (B, 2, h, w) and lightness, in Lab units."""
    cells = torch.cat([(lightness[:, None] - 45) / 24, chroma / 20], 1)
    return cells.repeat_interleave(task.spatial_stride, 2).repeat_interleave(task.spatial_stride, 3)


def test_bins_are_those_that_srgb_reaches():
    bins = {tuple(b) for b in chroma_bins().int().tolist()}
    assert len(bins) == 261
    assert (-90, 50) not in bins  # the first of the 313 published
    levels = np.append(np.arange(0, 256, 6), 255) / 255
    colours = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    reached = np.unique(np.round(chroma_of(colours) / 10).astype(int) * 10, axis=0)
    assert {tuple(b) for b in reached.tolist()} <= bins
    assert len(reached) > 240, "a coarse look must find nearly all"
    # And back: somewhere in each bin lies a colour that is one (to half a level of 255).
    inside = np.linspace(-5, 5, 21)
    places = np.stack(np.meshgrid(np.arange(1.0, 100.0), inside, inside, indexing="ij"), -1)
    for a, b in bins:
        linear = linear_rgb_of(places + np.array([0, a, b]))
        assert ((linear > -0.002) & (linear < 1.002)).all(-1).any(), (a, b)


@pytest.mark.parametrize(("size", "smaller"), [(20.0, True), (5.0, False)])
def test_the_size_of_bins_is_a_setting(size, smaller):
    bins = chroma_bins(size)
    assert (bins % size == 0).all()
    assert (len(bins) < 261) == smaller


def test_targets_are_the_nearest_bins_weighed_by_a_gaussian():
    task = build(num_neighbours=5)
    random = torch.Generator().manual_seed(0)
    chroma = torch.randn(2, 2, 4, 4, generator=random) * 30
    lightness = torch.rand(2, 4, 4, generator=random) * 100
    views = views_of(task, cells_of(task, chroma, lightness))
    assert (views.inputs["grey"][:, 1:] == 0).all(), "a view carries no chroma"
    assert views.inputs["grey"].shape == (2, 3, 1, 32, 32)
    bins = task.bins.double().tolist()
    for video, y, x in itertools.product(range(2), range(4), range(4)):
        a, b = chroma[video, :, y, x].double().tolist()
        squared = [(a - p) ** 2 + (b - q) ** 2 for p, q in bins]
        nearest = sorted(range(len(bins)), key=squared.__getitem__)[:5]
        weights = [math.exp(-squared[i] / (2 * 5**2)) for i in nearest]
        assert views.targets["near"][video, :, y, x].tolist() == nearest
        expected = [w / sum(weights) for w in weights]
        assert views.targets["shares"][video, :, y, x].tolist() == pytest.approx(expected, abs=1e-4)
        assert int(views.targets["lightness"][video, y, x]) == int(lightness[video, y, x] // 10)


def test_rare_colours_weigh_more_and_all_of_them_one_in_the_mean():
    bins = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 20.0]])
    counts = torch.tensor([90.0, 10.0, 0.0])
    found = rebalancing(counts, bins, sigma=5.0, uniform_share=0.5)
    smooth = [0.0, 0.0, 0.0]
    for j, count in enumerate(counts.tolist()):
        kernel = [math.exp(-(math.dist(p, bins[j].tolist()) ** 2) / 50) for p in bins.tolist()]
        for i in range(3):
            smooth[i] += kernel[i] / sum(kernel) * count / 100
    raw = [1 / (0.5 * p + 0.5 / 3) for p in smooth]
    mean = sum(p * w for p, w in zip(smooth, raw, strict=True))
    assert sum(smooth) == pytest.approx(1)
    assert found.tolist() == pytest.approx([w / mean for w in raw], rel=1e-5)
    assert found[0] < found[1] < found[2]
    alike = rebalancing(counts, bins, sigma=5.0, uniform_share=1.0)
    torch.testing.assert_close(alike, torch.ones(3))


def test_preparing_counts_the_colours_of_cells():
    """Dark cells are red, bright ones blue: the rule of lightness says so, and half of all colours is each."""
    task = build()
    lightness = torch.tensor([25.0, 75.0]).repeat(8).view(1, 4, 4).expand(3, -1, -1)
    red, blue = torch.tensor([60.0, 40.0]), torch.tensor([20.0, -60.0])
    is_dark = (lightness < 50)[:, None]
    chroma = torch.where(is_dark, red[:, None, None], blue[:, None, None])
    frames = cells_of(task, chroma, lightness)
    task.prepare(batch_of(task, frames), 0)
    of = {tuple(b): i for i, b in enumerate(task.bins.int().tolist())}
    assert int(task.by_lightness[2]) == of[60, 40]
    assert int(task.by_lightness[7]) == of[20, -60]
    assert task.weights[of[60, 40]] < task.weights[of[0, 0]]
    views = views_of(task, frames)
    features = {"grey": FeatureMaps(torch.randn(3, 96, 1, 4, 4), 1, 8)}
    metric_sums = task(features, views.targets).metric_sums
    assert metric_mean(metric_sums["shortcut_baseline"]) == 1.0
    assert metric_mean(metric_sums["chance"]) == 0.5
    answers = task.predictions(features, views.targets)
    assert torch.equal(answers.baselines["lightness"], answers.labels)


def test_loss_and_metrics_equal_a_slow_loop():
    task = build().eval()
    random = torch.Generator().manual_seed(0)
    chroma = torch.randn(2, 2, 4, 4, generator=random) * 15
    views = views_of(task, cells_of(task, chroma, torch.full((2, 4, 4), 50.0)))
    task.weights.copy_(torch.rand(261, generator=random) + 0.5)
    features = {"grey": FeatureMaps(torch.randn(2, 96, 1, 4, 4, generator=random), 1, 8)}
    result = task(features, views.targets)
    with torch.no_grad():
        logits = task.head(features["grey"].data)[:, :, 0].double()
    losses, right, errors, grey_errors = [], [], [], []
    by_bin: dict[int, list[bool]] = {}
    for video, y, x in itertools.product(range(2), range(4), range(4)):
        row = logits[video, :, y, x]
        near = views.targets["near"][video, :, y, x].tolist()
        shares = views.targets["shares"][video, :, y, x].tolist()
        soft = dict(zip(near, shares, strict=True))
        log_z = row - row.logsumexp(0)
        losses.append(
            -float(task.weights[near[0]]) * sum(s * float(log_z[q]) for q, s in soft.items())
        )
        right.append(int(row.argmax()) == near[0])
        by_bin.setdefault(near[0], []).append(right[-1])
        # f_T of the paper: z^(1 / T), normalised, then the mean.
        sharpened = torch.exp(log_z / 0.38)
        mean = (sharpened / sharpened.sum()) @ task.bins.double()
        true = chroma[video, :, y, x].double()
        errors.append(float((mean - true).norm()))
        grey_errors.append(float(true.norm()))
    assert float(result.loss.detach()) == pytest.approx(sum(losses) / 32, rel=1e-4)
    metric_sums = {name: metric_mean(value) for name, value in result.metric_sums.items()}
    assert metric_sums["accuracy"] == pytest.approx(sum(right) / 32)
    means = [sum(r) / len(r) for r in by_bin.values()]
    assert metric_sums["balanced_accuracy"] == pytest.approx(sum(means) / len(means))
    assert metric_sums["chroma_error"] == pytest.approx(sum(errors) / 32, rel=1e-3)
    assert metric_sums["grey_chroma_error"] == pytest.approx(sum(grey_errors) / 32, rel=1e-3)
    answers = task.predictions(features, views.targets)
    assert float((answers.scores.argmax(1) == answers.labels).float().mean()) == pytest.approx(
        sum(right) / 32
    )
    assert answers.videos.tolist() == [0] * 16 + [1] * 16


def test_a_crop_that_cells_do_not_fill_fails():
    with pytest.raises(ValueError, match="crop_size 36 must be a multiple of res4's stride 8"):
        build(crop_size=36)
