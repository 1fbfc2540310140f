"""Baselines of tasks that copy colours and of those that look for the other clip of a video."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from videossl.audit.battery import NoBaselines, baselines_for
from videossl.audit.findings import TaskAudit
from videossl.audit.match_baselines import (
    RADIUS,
    ColorBaselines,
    PairBaselines,
    color_histogram,
    nearest_class,
    noise_residual,
    pairs_clips,
)
from videossl.audit.subject import Seen
from videossl.pretext._views import mean_pictures
from videossl.stats import Interval
from videossl.types import Views


def test_the_nearest_cell_is_that_of_a_loop():
    generator = torch.Generator().manual_seed(0)
    visible = torch.randn(2, 3, 3, 6, 7, generator=generator)
    classes = torch.randint(0, 5, (2, 3, 6, 7), generator=generator)
    found = nearest_class(visible, classes)
    for video, y, x in np.ndindex(2, 6, 7):
        best, answer = np.inf, -1
        for t in range(2):
            for row in range(max(0, y - RADIUS), min(6, y + RADIUS + 1)):
                for column in range(max(0, x - RADIUS), min(7, x + RADIUS + 1)):
                    apart = visible[video, :, t, row, column] - visible[video, :, 2, y, x]
                    if float(apart.square().sum()) < best:
                        best = float(apart.square().sum())
                        answer = int(classes[video, t, row, column])
        assert int(found[video, y, x]) == answer


def seen(views: Views, side: str = "heldout", num_videos: int = 12) -> Seen:
    rows = np.arange(num_videos)
    return Seen(side, "evaluation", views, rows, rows)


def colour_views(same_cell_share: float, seed: int) -> Views:
    """The target's classes are those of the same cell, but for a share; its own visible channels tell nothing."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, 4, (12, 2, 8, 8), generator=generator)
    changed = torch.rand(12, 8, 8, generator=generator) > same_cell_share
    classes[:, 1] = torch.where(changed, (classes[:, 0] + 1) % 4, classes[:, 0])
    frames = torch.randn(12, 3, 2, 32, 32, generator=generator)
    return Views({"frames": frames}, {"classes": classes, "moved": changed})


def test_copies_of_colour_score_what_they_must():
    colors = ColorBaselines(seed=0)
    colors.look(seen(colour_views(0.8, 1), "train"))
    colors.look(seen(colour_views(0.8, 2)))
    found = {baseline.name: baseline for baseline in colors.baselines()}
    same = found["same cell of the last reference"]
    assert same.accuracy.estimate == pytest.approx(0.8, abs=0.05)
    assert same.verdict == "baseline to beat"
    assert found["same cell of the last reference, moving cells"].accuracy.estimate == 0
    assert found["visible channels of the same cell"].accuracy.estimate < 0.4
    others = [replace(same, accuracy=Interval(1.0, 1.0, 1.0), form="training")]
    others += [baseline for baseline in found.values() if "moving cells" in baseline.name]
    others = [replace(baseline, accuracy=Interval(1.0, 1.0, 1.0)) for baseline in others]
    best = TaskAudit("colorization", 0.25, [*others, *found.values()], []).best_baseline
    assert best is same
    assert colors.chance() == pytest.approx(0.25, abs=0.05)


def test_a_visible_channel_that_tells_the_class_is_found():
    colors = ColorBaselines(seed=0)
    for side, seed in (("train", 1), ("heldout", 2)):
        views = colour_views(0.5, seed)
        of_cell = views.targets["classes"][:, 1].float()
        views.inputs["frames"][:, 1, 1] = of_cell.repeat_interleave(4, 1).repeat_interleave(4, 2)
        colors.look(seen(views, side))
    found = {baseline.name: baseline for baseline in colors.baselines()}
    assert found["visible channels of the same cell"].accuracy.estimate > 0.9


def pair_views(clips: torch.Tensor) -> Views:
    return Views({"clips": clips}, {"videos": torch.arange(len(clips) // 2)})


def test_a_fingerprint_is_found_by_the_probe_that_looks_at_it():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(24, 3, 2, 32, 32, generator=generator)
    strength = torch.logspace(-1.5, 0.5, 12).repeat_interleave(2)[:, None, None, None, None]
    pairs = PairBaselines(seed=0)
    pairs.look(seen(pair_views(noise * strength)))
    found = {baseline.name: baseline.accuracy.estimate for baseline in pairs.baselines()}
    assert found["noise residual"] > 0.9
    assert found["thumbnails, 8 x 8"] < 0.5
    assert pairs.chance() == pytest.approx(1 / (1 + 2 * 11))


def test_the_nearest_in_the_batch_is_no_baseline_of_a_model_that_looks_through_a_queue():
    clips = torch.randn(24, 3, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    views = Views(
        {"clips": clips[::2]}, {"videos": torch.arange(12)}, slow_inputs={"keys": clips[1::2]}
    )
    pairs = PairBaselines(seed=0)
    pairs.look(seen(views))
    found = pairs.baselines()
    assert [baseline.asks_the_same for baseline in found] == [False] * 3
    assert found[0].chance == pytest.approx(1 / 23)
    assert math.isnan(pairs.chance())
    assert TaskAudit("contrastive", 0.01, found, []).best_baseline is None


@pytest.mark.parametrize("is_supervised", [True, False])
def test_anchors_and_patches_are_pairs_too(is_supervised):
    clips = torch.randn(24, 3, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    inputs = {"anchor": clips[::2]} | ({"positive": clips[1::2]} if is_supervised else {})
    videos = {"videos": torch.arange(12)}
    found = {}
    for name, views in (
        ("anchor", Views(inputs, videos)),
        ("patches", Views({"patches": clips}, videos)),
    ):
        pairs = PairBaselines(seed=0)
        assert pairs_clips(views)
        pairs.look(seen(views))
        found[name] = [baseline.accuracy.estimate for baseline in pairs.baselines()]
        assert not any(baseline.asks_the_same for baseline in pairs.baselines())
    if is_supervised:
        assert found["anchor"] == found["patches"]
    else:
        assert found["anchor"] == [1.0] * 3


def test_clips_of_one_video_are_no_negatives():
    clips = torch.randn(8, 3, 2, 32, 32)
    clips[4:] = clips[:4]
    views = Views({"clips": clips}, {"videos": torch.tensor([0, 1, 0, 1])})
    pairs = PairBaselines(seed=0)
    rows = np.array([0, 1, 0, 1])
    pairs.look(Seen("heldout", "evaluation", views, rows, rows))
    assert pairs.chance() == pytest.approx(1 / 5)  # the other clip, and four of the other video
    assert "4 videos stand in a batch more than once" in pairs.checks()[0].says


def test_fingerprints_have_the_sizes_they_say():
    clips = torch.randn(3, 3, 4, 16, 16)
    assert mean_pictures(clips).shape == (3, 192)
    assert noise_residual(clips).shape == (3, 66)
    histogram = color_histogram(clips)
    assert histogram.shape == (3, 48)
    assert histogram.sum(1).tolist() == pytest.approx([3.0] * 3)


def test_tasks_are_told_by_what_their_views_hold():
    task = SimpleNamespace(shortcut_inputs=lambda views: None)
    subject = SimpleNamespace(config=SimpleNamespace(seed=0))
    for views, expected in (
        (colour_views(0.5, 0), ColorBaselines),
        (pair_views(torch.zeros(4, 3, 2, 8, 8)), PairBaselines),
        (Views({"shown": torch.zeros(4, 3, 2, 8, 8)}), NoBaselines),
    ):
        assert isinstance(baselines_for(task, seen(views), subject), expected)
