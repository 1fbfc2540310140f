"""Leaks are planted in videos without an arrow of time: the audit names each, and nothing in their clean twin."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from videossl.__main__ import main
from videossl.audit import battery, input_checks
from videossl.audit.battery import Options, run_battery
from videossl.audit.findings import Audit, TaskAudit, audit_text
from videossl.audit.subject import Subject
from videossl.config import Config, validate
from videossl.data import dataset
from videossl.data.synthetic import FRAMES_PER_SECOND, reversible_frames
from videossl.distributed import World
from videossl.io.pictures import write_video
from videossl.pretext import arrow_of_time
from videossl.types import ShortcutInputs, Views

NUM_VIDEOS, SIZE = 40, 64
FRAME = 1 / FRAMES_PER_SECOND
# Else x264 gives one of several files, by chance and by the machine's cores, and what is found in them differs.
SAME_BYTES = {"threads": "1", "mbtree": "0", "bf": "0"}


def render(
    folder: Path, count: int, *, bars: int = 0, options: dict[str, str] | None = None
) -> Path:
    """The manifest, by a deep scan, of reversible videos with black rows above and below."""
    for seed in range(count):
        frames = reversible_frames(seed, size=SIZE)
        frames = np.pad(frames, ((0, 0), (bars, bars), (0, 0), (0, 0)))
        path = folder / f"{seed}.mp4"
        write_video(
            path, frames, frames_per_second=FRAMES_PER_SECOND, options=SAME_BYTES | (options or {})
        )
    manifest = folder / "manifest.parquet"
    # Groups are drawn for the split by their names, which are not to hold the folder's.
    groups = ["--group-regex", r"^(\d+)"]
    scan = ["scan", str(folder), "-o", str(manifest), "--deep", "--workers", "1", *groups]
    assert main(scan) == 0
    return manifest


@pytest.fixture(autouse=True)
def _few_plans(monkeypatch):
    monkeypatch.setattr(battery, "PLANNED_CLIPS", 200)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    return render(tmp_path_factory.mktemp("reversible"), NUM_VIDEOS, options={"crf": "28"})


@pytest.fixture(scope="module")
def coarse_videos(tmp_path_factory) -> Path:
    """Coded so that the first frame is far better than the others."""
    folder = tmp_path_factory.mktemp("coarse")
    return render(folder, NUM_VIDEOS, options={"crf": "35", "g": "1"})


def audited(
    manifest: Path,
    out: Path,
    *,
    plant: Callable[[Subject], None] = lambda subject: None,
    clips: int = 3,
    arrow: dict[str, object] | None = None,
    **data: object,
) -> tuple[Audit, TaskAudit]:
    """The audit of the arrow of time on these videos, with another task or dataset put into the subject by `plant`."""
    task = {"crop_size": 48, "num_frames": 8, "seconds_between_frames": FRAME, **(arrow or {})}
    values = {
        "out": str(out),
        "data": {"manifest": str(manifest), "short_side": SIZE, "num_workers": 0}
        | {"videos_per_step": 8, "val_fraction": 0.5}
        | data,
        "tasks": {"arrow_of_time": task},
    }
    subject = Subject(validate(Config, values), World(0, 1, 0, torch.device("cpu")))
    plant(subject)
    options = Options(out, clips, clips, control_videos=0, head_steps=0, swap_files=False)
    audit = run_battery(subject, options)
    return audit, audit.tasks[0]


def verdicts(task: TaskAudit, probe: str, form: str = "evaluation") -> dict[str, str]:
    return {c.name: c.verdict for c in task.baselines if (c.probe, c.form) == (probe, form)}


def said(task: TaskAudit) -> str:
    return "; ".join(check.says for check in task.checks if not check.is_clean)


def test_nothing_is_found_where_nothing_is(videos, tmp_path):
    audit, task = audited(videos, tmp_path, clips=6)
    assert audit.leaks == []
    assert {c.verdict for c in task.baselines} <= {"at chance", "unclear"}
    assert sum(c.verdict == "unclear" for c in task.baselines) <= 2  # of 10, each in one of 40
    assert {c.form for c in task.baselines} == {"evaluation", "training", "flicker"}


def plant_starts(monkeypatch, start: Callable[[float, float], float]) -> None:
    """Every clip starts at a function of its file's begin and end, and stands still on the last frame if it runs out."""

    def plan(video, specs, rules, generator):
        times = {}
        for spec in specs:
            frames = (
                torch.arange(spec.num_frames, dtype=torch.float64) * spec.seconds_between_frames
            )
            begin = start(video.begin, video.end) + 0.1 * FRAME
            times[spec] = (begin + frames).clamp(max=video.end - 0.5 * FRAME)[None]
        return times

    for module in (dataset, input_checks):
        monkeypatch.setattr(module, "plan_clip_times", plan)


def test_clips_that_start_at_frame_0_are_named_and_tell_the_direction(
    coarse_videos, tmp_path, monkeypatch
):
    arrow = {"num_frames": 16}
    _, task = audited(coarse_videos, tmp_path / "by the rules", arrow=arrow)
    assert task.leaks == []
    plant_starts(monkeypatch, lambda begin, end: begin)
    _, task = audited(coarse_videos, tmp_path / "at the head", arrow=arrow, clips=1)
    assert "clips start at the first frame of the file (100% of 200)" in said(task)
    found = verdicts(task, "P2")
    assert found["mean, spread, sharpness of each frame"] == "leaks"
    assert found["quality at one end against the other"] == "leaks"


def test_clips_that_start_on_key_frames_are_named(videos, tmp_path, monkeypatch):
    plant_starts(monkeypatch, lambda begin, end: begin)
    _, task = audited(videos, tmp_path, clips=1)
    assert "clips start on a key frame (100% of 200)" in said(task)


def test_rules_switched_off_are_named(videos, tmp_path):
    off = {"skip_ends": False, "avoid_key_frames": False}
    _, task = audited(videos, tmp_path, sampling=off, clips=1)
    assert "clips reach into the last second of the file" in said(task)
    assert "clips hold the first frame of the file" in said(task)


def test_padded_ends_are_named(videos, tmp_path, monkeypatch):
    plant_starts(monkeypatch, lambda begin, end: end - 6 * FRAME)
    _, task = audited(videos, tmp_path)
    assert "clips are padded at the end: the frame there is repeated in 100% of clips" in said(task)
    assert verdicts(task, "P2")["quality and change at one end"] == "leaks"


def test_black_bars_are_named_unless_they_are_cut(tmp_path):
    manifest = render(tmp_path, 12, bars=12)
    _, task = audited(manifest, tmp_path / "with", crop_letterbox=False, clips=1)
    (share,) = [c.numbers["share"] for c in task.checks if c.name == "black bars"]
    assert share > 0.5
    assert f"black bars are inside the crop ({share:.0%} of" in said(task)
    _, task = audited(manifest, tmp_path / "cut", crop_letterbox=True, clips=1)
    assert "black bars" not in said(task)


class CropsFramesApart(arrow_of_time.Task):
    """The backward clip is made by another way, in which every frame gets a crop of its own."""

    def make_views(self, batch, rng):
        views = super().make_views(batch, rng)
        forward = views.inputs["forward"]
        shifts = rng.integers(forward.shape[2], high=7).tolist()
        backward = torch.stack(
            [
                torch.stack(
                    [frame.roll(s, -1) for frame, s in zip(clip.unbind(1), row, strict=True)], 1
                )
                for clip, row in zip(forward.flip(2), shifts, strict=True)
            ]
        )
        return Views({"forward": forward, "backward": backward}, views.targets)


def put(kind: type[arrow_of_time.Task]) -> Callable[[Subject], None]:
    def plant(subject: Subject) -> None:
        own = subject.model.tasks["arrow_of_time"]
        subject.model.tasks["arrow_of_time"] = kind(own.config, subject.model.encoder.stages)

    return plant


def test_a_class_with_crops_of_each_frame_is_named(videos, tmp_path):
    _, task = audited(videos, tmp_path, plant=put(CropsFramesApart), arrow={"min_motion": 0.0})
    assert "static clips are changed by label (label 0: 100%, label 1: 0% of them differ" in said(
        task
    )
    assert verdicts(task, "P5", "flicker")["one frame, flickering"] == "leaks"


class BrightensOneDirectionInTraining(arrow_of_time.Task):
    """Jitter is drawn for backward clips alone, which evaluation does not show."""

    def make_views(self, batch, rng):
        views = super().make_views(batch, rng)
        forward = views.inputs["forward"]
        backward = forward.flip(2) + (0.3 if self.training else 0.0)
        return Views({"forward": forward, "backward": backward}, views.targets)


def test_a_label_given_away_by_augmentation_alone_is_named(videos, tmp_path):
    _, task = audited(videos, tmp_path, plant=put(BrightensOneDirectionInTraining))
    (name,) = verdicts(task, "P2", "training")
    assert task.leaks == [f"P2 {name} (training)"]


class AsksOneDirection(arrow_of_time.Task):
    """Shows each clip forward or backward, as a draw of its own says."""

    def _labels(self, batch, rng):
        return rng.integers(high=2)

    def make_views(self, batch, rng):
        views = super().make_views(batch, rng)
        labels = self._labels(batch, rng)
        clip = views.inputs["forward"]
        shown = torch.where(labels[:, None, None, None, None] == 1, clip, clip.flip(2))
        return Views({"shown": shown}, {**views.targets, "labels": labels})

    def shortcut_inputs(self, views):
        shown = views.inputs["shown"].movedim(1, 2)
        return ShortcutInputs(shown, views.targets["labels"], torch.arange(len(shown)), 2)


class AsksByIndex(AsksOneDirection):
    def _labels(self, batch, rng):
        return torch.arange(len(batch)) % 2


def test_a_label_tied_to_the_index_is_named(videos, tmp_path):
    _, task = audited(videos, tmp_path / "tied", plant=put(AsksByIndex))
    assert "the label is tied to the parity of the video's index" in said(task)
    assert "the label is tied to the row in the batch" in said(task)
    _, task = audited(videos, tmp_path / "drawn", plant=put(AsksOneDirection))
    assert said(task) == ""


def test_brightness_that_rises_in_every_video_is_named_though_nine_are_held_out(tmp_path):
    for seed in range(30):
        frames = reversible_frames(seed, size=SIZE).astype(float)
        rising = frames * 0.7 + np.linspace(0, 70, len(frames))[:, None, None, None]
        path = tmp_path / "v" / f"{seed}.mp4"
        write_video(path, rising.astype(np.uint8), frames_per_second=FRAMES_PER_SECOND)
    manifest = tmp_path / "m.parquet"
    groups = ["--group-regex", r"^(\d+)"]
    assert main(["scan", str(tmp_path / "v"), "-o", str(manifest), "--workers", "1", *groups]) == 0
    audit, task = audited(manifest, tmp_path / "out", val_fraction=0.3)
    assert task.num_videos == 9
    assert task.least_found is None
    assert verdicts(task, "P2")["mean, spread, sharpness of each frame"] == "leaks"
    assert audit_text(audit).startswith("Leaks:\n\n- arrow_of_time: P")
