"""The audit of tasks that copy colours and of those that look for the other clip of a video."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from videossl.audit.battery import examiner
from videossl.audit.colours import RADIUS, Colours, nearest_class
from videossl.audit.findings import TaskAudit
from videossl.audit.hidden import hidden_colour_check, hides_colours
from videossl.audit.instances import (
    Instances,
    colour_histogram,
    noise_residual,
    pairs_clips,
)
from videossl.audit.subject import Seen, Subject
from videossl.config import Config, validate
from videossl.distributed import World
from videossl.pretext import colorization, image_colorization
from videossl.pretext._views import mean_pictures
from videossl.stats import Interval
from videossl.types import ClipBatch, Views

CPU = torch.device("cpu")
COLOURS = {"stage": "res3", "num_references": 2, "seconds_between_frames": 0.1}
COLOURS |= {"crop_size": 32, "frame_shift": 0, "num_classes": 4}


@pytest.fixture(scope="module")
def subject(video_folder, tmp_path_factory) -> Subject:
    """An encoder whose kernels reach over time from its first layer on."""
    values = {
        "out": str(tmp_path_factory.mktemp("audit")),
        "encoder": {"name": "r3d_18"},
        "data": {"manifest": str(video_folder), "short_side": 48, "num_workers": 0}
        | {"videos_per_step": 4, "holdout_fraction": 0.3},
        "tasks": {"colorization": COLOURS},
    }
    return Subject(validate(Config, values), World(0, 1, 0, CPU))


def first_batch(subject: Subject) -> ClipBatch:
    (raw,) = subject.batches("heldout", 1, why="test")
    return subject.feed.clips(raw, None)


class LeavesReferencesColoured(colorization.Task):
    """As if only the target had to be grey."""

    def make_views(self, batch, rng):
        views = super().make_views(batch, rng)
        clip = batch.clips[self.clip_spec][:, 0]
        frames = torch.cat([clip[:, :, :-1], views.inputs["frames"][:, :, -1:]], 2)
        return Views({"frames": frames}, views.targets)


class ForgetsToHide(colorization.Task):
    def make_views(self, batch, rng):
        views = super().make_views(batch, rng)
        return Views({"frames": batch.clips[self.clip_spec][:, 0]}, views.targets)


class MixesColourIn(colorization.Task):
    """Hides a and b, but lightness was made of all three before."""

    def make_views(self, batch, rng):
        views = super().make_views(batch, rng)
        frames = views.inputs["frames"].clone()
        frames[:, 0] += 0.1 * batch.clips[self.clip_spec][:, 0, 1]
        return Views({"frames": frames}, views.targets)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (
            LeavesReferencesColoured,
            "colour leaks through the encoder's input frames 0, 1 and the encoder's kernels in time, into the features",
        ),
        (ForgetsToHide, "colour leaks: the target shows all its channels in 100% of the videos"),
        (MixesColourIn, "colour leaks through the encoder's input frames 0, 1, 2"),
    ],
)
def test_a_colour_leak_is_named(subject, kind, expected):
    (_, own), *_ = subject.model.named_tasks()
    planted = kind(own.config, subject.model.encoder.stages)
    planted.load_state_dict(own.state_dict())
    check = hidden_colour_check(subject, planted.eval(), first_batch(subject))
    assert not check.is_clean
    assert expected in check.says


class ForgetsToGrey(image_colorization.Task):
    def make_views(self, batch, rng):
        views = super().make_views(batch, rng)
        return Views({"grey": batch.clips[self.clip_spec][:, 0]}, views.targets)


@pytest.mark.parametrize("kind", [image_colorization.Task, ForgetsToGrey])
def test_colours_of_one_grey_frame_are_looked_for(subject, kind):
    config = image_colorization.ImageColorizationConfig(crop_size=32, stage="res3")
    task = kind(config, subject.model.encoder.stages).eval()
    batch = first_batch(subject)
    (spec,) = batch.clips
    times = {task.clip_spec: batch.pts_seconds[spec][..., :1]}
    batch = replace(
        batch, clips={task.clip_spec: batch.clips[spec][:, :, :, :1]}, pts_seconds=times
    )
    task.prepare(batch, 0)
    check = hidden_colour_check(subject, task, batch)
    assert hides_colours(task.make_views(batch, subject.feed.rows("test", 0, len(batch))))
    assert check.is_clean == (kind is image_colorization.Task), check.says


@pytest.mark.parametrize("hide", ["both", "one"])
def test_hidden_colours_are_found_hidden(subject, hide):
    (_, own), *_ = subject.model.named_tasks()
    config = own.config.model_copy(update={"hide": hide})
    check = hidden_colour_check(
        subject,
        colorization.Task(config, subject.model.encoder.stages).eval(),
        first_batch(subject),
    )
    assert check.is_clean, check.says
    assert check.numbers["gradient"] == 0


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
    colours = Colours(seed=0)
    colours.look(seen(colour_views(0.8, 1), "train"))
    colours.look(seen(colour_views(0.8, 2)))
    found = {cheat.name: cheat for cheat in colours.cheats()}
    same = found["same cell of the last reference"]
    assert same.accuracy.estimate == pytest.approx(0.8, abs=0.05)
    assert same.verdict == "baseline to beat"
    assert found["same cell of the last reference, moving cells"].accuracy.estimate == 0
    assert found["visible channels of the same cell"].accuracy.estimate < 0.4
    others = [replace(same, accuracy=Interval(1.0, 1.0, 1.0), form="training")]
    others += [cheat for cheat in found.values() if "moving cells" in cheat.name]
    others = [replace(cheat, accuracy=Interval(1.0, 1.0, 1.0)) for cheat in others]
    best = TaskAudit("colorization", 0.25, [*others, *found.values()], []).best_cheat
    assert best is same
    assert colours.chance() == pytest.approx(0.25, abs=0.05)


def test_a_visible_channel_that_tells_the_class_is_found():
    colours = Colours(seed=0)
    for side, seed in (("train", 1), ("heldout", 2)):
        views = colour_views(0.5, seed)
        of_cell = views.targets["classes"][:, 1].float()
        views.inputs["frames"][:, 1, 1] = of_cell.repeat_interleave(4, 1).repeat_interleave(4, 2)
        colours.look(seen(views, side))
    found = {cheat.name: cheat for cheat in colours.cheats()}
    assert found["visible channels of the same cell"].accuracy.estimate > 0.9


def pair_views(clips: torch.Tensor) -> Views:
    return Views({"clips": clips}, {"videos": torch.arange(len(clips) // 2)})


def test_a_fingerprint_is_found_by_the_probe_that_looks_at_it():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(24, 3, 2, 32, 32, generator=generator)
    strength = torch.logspace(-1.5, 0.5, 12).repeat_interleave(2)[:, None, None, None, None]
    instances = Instances(seed=0)
    instances.look(seen(pair_views(noise * strength)))
    found = {cheat.name: cheat.accuracy.estimate for cheat in instances.cheats()}
    assert found["noise residual"] > 0.9
    assert found["thumbnails, 8 x 8"] < 0.5
    assert instances.chance() == pytest.approx(1 / (1 + 2 * 11))


def test_the_nearest_in_the_batch_is_no_rival_of_a_model_that_looks_through_a_queue():
    clips = torch.randn(24, 3, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    views = Views(
        {"clips": clips[::2]}, {"videos": torch.arange(12)}, slow_inputs={"keys": clips[1::2]}
    )
    instances = Instances(seed=0)
    instances.look(seen(views))
    cheats = instances.cheats()
    assert [cheat.asks_the_same for cheat in cheats] == [False] * 3
    assert cheats[0].chance == pytest.approx(1 / 23)
    assert math.isnan(instances.chance())
    assert TaskAudit("contrastive", 0.01, cheats, []).best_cheat is None


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
        instances = Instances(seed=0)
        assert pairs_clips(views)
        instances.look(seen(views))
        found[name] = [cheat.accuracy.estimate for cheat in instances.cheats()]
        assert not any(cheat.asks_the_same for cheat in instances.cheats())
    if is_supervised:
        assert found["anchor"] == found["patches"]
    else:
        assert found["anchor"] == [1.0] * 3


def test_clips_of_one_video_are_no_negatives():
    clips = torch.randn(8, 3, 2, 32, 32)
    clips[4:] = clips[:4]
    views = Views({"clips": clips}, {"videos": torch.tensor([0, 1, 0, 1])})
    instances = Instances(seed=0)
    rows = np.array([0, 1, 0, 1])
    instances.look(Seen("heldout", "evaluation", views, rows, rows))
    assert instances.chance() == pytest.approx(1 / 5)  # the other clip, and four of the other video
    assert "4 videos stand in a batch more than once" in instances.checks()[0].says


def test_fingerprints_have_the_sizes_they_say():
    clips = torch.randn(3, 3, 4, 16, 16)
    assert mean_pictures(clips).shape == (3, 192)
    assert noise_residual(clips).shape == (3, 66)
    histogram = colour_histogram(clips)
    assert histogram.shape == (3, 48)
    assert histogram.sum(1).tolist() == pytest.approx([3.0] * 3)


def test_tasks_are_told_by_what_their_views_hold(subject):
    batch = first_batch(subject)
    views = subject.seen("heldout", batch, "evaluation", 0)["colorization"]
    (_, task), *_ = subject.model.named_tasks()
    assert isinstance(examiner(task, views, subject), Colours)
