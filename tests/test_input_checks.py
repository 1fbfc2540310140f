"""Checks of labels, split and hidden colours; those of where clips lie and what they hold are in test_audit_planted.py."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from videossl.audit.input_checks import (
    dependence,
    hidden_color_check,
    hides_colors,
    label_checks,
    mutual_information,
    split_checks,
)
from videossl.audit.subject import Subject
from videossl.config import Config, validate
from videossl.data.entry import VideoEntry
from videossl.data.manifest import Manifest
from videossl.distributed import World
from videossl.pretext import colorization, image_colorization
from videossl.types import ClipBatch, Views

CPU = torch.device("cpu")
COLOURS = {"stage": "res3", "num_references": 2, "seconds_between_frames": 0.1}
COLOURS |= {"crop_size": 32, "frame_jitter": 0, "num_classes": 4}


@pytest.fixture(scope="module")
def subject(video_folder, tmp_path_factory) -> Subject:
    """An encoder whose kernels reach over time from its first layer on."""
    values = {
        "out": str(tmp_path_factory.mktemp("audit")),
        "encoder": {"name": "r3d_18"},
        "data": {"manifest": str(video_folder), "short_side": 48, "num_workers": 0}
        | {"videos_per_step": 4, "val_fraction": 0.3},
        "tasks": {"colorization": COLOURS},
    }
    return Subject(validate(Config, values), World(0, 1, 0, CPU))


def first_batch(subject: Subject) -> ClipBatch:
    (raw,) = subject.batches(subject.heldout, 1, why="test")
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
    check = hidden_color_check(subject, planted.eval(), first_batch(subject))
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
    check = hidden_color_check(subject, task, batch)
    assert hides_colors(task.make_views(batch, subject.feed.rows("test", 0, len(batch))))
    assert check.is_clean == (kind is image_colorization.Task), check.says


@pytest.mark.parametrize("hide", ["both", "one"])
def test_hidden_colours_are_found_hidden(subject, hide):
    (_, own), *_ = subject.model.named_tasks()
    config = own.config.model_copy(update={"hide": hide})
    check = hidden_color_check(
        subject,
        colorization.Task(config, subject.model.encoder.stages).eval(),
        first_batch(subject),
    )
    assert check.is_clean, check.says


def test_mutual_information_is_the_closed_form():
    assert mutual_information(np.array([[5.0, 0.0], [0.0, 5.0]])) == pytest.approx(1.0)
    assert mutual_information(np.array([[2.0, 4.0], [3.0, 6.0]])) == pytest.approx(0.0)


def test_a_label_tied_to_the_index_is_named_and_a_drawn_one_is_not():
    positions = np.arange(160)
    tied = label_checks(positions % 2, positions, batch_size=8)
    said = [check.says for check in tied if not check.is_clean]
    assert any("the label is tied to the parity of the video's index: 0.9" in says for says in said)
    drawn = np.random.default_rng(0).integers(0, 2, 160)
    assert all(check.is_clean for check in label_checks(drawn, positions, batch_size=8))


def test_shuffled_videos_are_rarely_called_dependent():
    """The p values of 40 draws in which nothing depends are about uniform, though each video has five equal labels."""
    values = []
    for seed in range(40):
        random = np.random.default_rng(seed)
        labels = np.repeat(random.integers(0, 2, 24), 5)
        videos = np.repeat(np.arange(24), 5)
        values.append(dependence(labels, videos % 2, videos, random)[1])
    assert min(values) > 1e-3
    assert 0.25 < np.mean(values) < 0.8


def test_sources_and_copies_on_both_sides_are_named():
    def entry(name: str, group: str, phash: int) -> VideoEntry:
        return VideoEntry(path=name, group=group, status="ok", reason="", bytes=1, phash=phash)

    rows = [entry("a", "one", 0), entry("b", "two", 2**40 - 1), entry("c", "one", 2**63 - 7)]
    manifest = Manifest.from_entries([*rows, entry("d", "three", 0b11)])
    disjoint, copies = split_checks(manifest, np.array([0, 1]), np.array([2]))
    assert not disjoint.is_clean
    assert copies.is_clean
    disjoint, copies = split_checks(manifest, np.array([0, 1]), np.array([3]))
    assert disjoint.is_clean
    assert not copies.is_clean
    assert "1 pairs of near-duplicates stand on both sides" in copies.says
