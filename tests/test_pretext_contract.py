"""Every task of videossl/pretext keeps the contract; a new file is covered the moment it is there."""

from pathlib import Path

import pytest
import torch

import videossl.pretext
from videossl.config import validate
from videossl.engine.multitask import MultiTask
from videossl.errors import UserError
from videossl.models.encoder import Encoder, EncoderSpec
from videossl.pretext import available, load
from videossl.rng import row_random
from videossl.types import ClipBatch, metric_mean

SMALL = {"crop_size": 32}
VARIANTS = {
    "order_verification": [
        {"num_frames": 2},
        {"num_frames": 1, "tau_max_seconds": 2.0, "clip_jitter": 4, "split_channels": True},
        {"positive_share": 0.25},
    ],
    "contrastive": [{}, {"mode": "moco", "queue_size": 8}, {"loss": "triplet"}],
    "clip_order": [
        {"num_frames": 2, "clip_jitter": 4},
        {"num_clips": 4, "num_frames": 1, "merge_reversals": True, "split_channels": True},
    ],
    "odd_one_out": [{}, {"num_frames": 3, "clip_jitter": 2}],
    "playback_speed": [
        {"num_frames": 4},
        {"num_frames": 2, "speeds": (1, 2, 4), "frame_gaps": (1, 2)},
    ],
    "relative_position": [
        {"gap": 4, "jitter": 2},
        {"gap": 4, "jitter": 2, "num_frames": 2, "cells": "space-time", "colour": "project"},
    ],
    "exemplar": [{}, {"num_variants": 3, "num_frames": 2, "num_classes": 3}],
    "image_colorization": [{}, {"stage": "res3", "bin_size": 20.0, "uniform_share": 1.0}],
    "cpc": [
        {"num_blocks": 3, "num_predicted": 1, "block_frames": 2},
        {
            "num_blocks": 3,
            "num_predicted": 2,
            "block_frames": 1,
            "negatives": ("hard",),
            "kernel": 3,
        },
    ],
    "random_walk": [
        {"patch_size": 16, "grid": 3, "frame_jitter": 4},
        {
            "patch_size": 16,
            "grid": 2,
            "frame_jitter": 0,
            "num_frames": 2,
            "patch_area": (1, 1),
            "edge_dropout": 0.6,
            "stage": "res5",
        },
    ],
    "simcse": [
        {"num_frames": 2},
        {"num_frames": 3, "mode": "supervised", "hard_negative": "reversed"},
        {"num_frames": 3, "mode": "supervised", "hard_negative": "shuffled"},
        {"num_frames": 1, "mode": "supervised", "hard_negative": "none"},
    ],
    "colorization": [
        {"frame_jitter": 4},
        {
            "frame_jitter": 4,
            "hide": "one",
            "predict": "values",
            "num_references": 1,
            "frame_gaps": (1, 2),
            "radius": 3,
        },
        {"frame_jitter": 4, "hide": "one", "predict": "classes"},
        {"frame_jitter": 0, "predict": "values"},
        {"frame_jitter": 4, "stage": "res4", "similarity": "dot", "temperature": 1.0},  # stride 8
    ],
}
CASES = [(name, variant) for name in available() for variant in VARIANTS.get(name, [{}])]
NUM_VIDEOS = 4
CPU = torch.device("cpu")


def build(name: str, settings: dict) -> MultiTask:
    torch.manual_seed(0)
    config = validate(load(name).Config, {**SMALL, **settings})
    encoder = Encoder(EncoderSpec("tiny", deepest_stage=config.stage))
    return MultiTask(encoder, {name: load(name)(config, encoder.stages)}, {name: config.weight})


def random_batch(model: MultiTask, num_videos: int = NUM_VIDEOS) -> ClipBatch:
    generator = torch.Generator().manual_seed(1)
    spec = next(task.clip_spec for _, task in model.named_tasks())
    shape = (num_videos, spec.num_clips, 3, spec.num_frames, spec.crop_size, spec.crop_size)
    clips = torch.randn(shape, generator=generator)
    times = torch.zeros(num_videos, spec.num_clips, spec.num_frames, dtype=torch.float64)
    return ClipBatch({spec: clips}, {spec: times}, torch.arange(num_videos))


def rows(rank: int = 0, world_size: int = 1, num_rows: int = NUM_VIDEOS):
    return row_random(
        7, "views", 3, rank=rank, world_size=world_size, num_rows=num_rows, device=CPU
    )


def check_contract(name: str, settings: dict) -> None:
    model = build(name, settings)
    batch = random_batch(model)
    task = model.tasks[name]
    task.prepare(batch, 0)
    views = model.make_views(batch, rows())

    for inputs in views[name].inputs.values():
        assert inputs.ndim == 5
        assert inputs.shape[1] == 3
        assert len(inputs) % NUM_VIDEOS == 0
        assert not inputs.requires_grad

    again = model.make_views(batch, rows())
    for view, inputs in views[name].inputs.items():
        assert torch.equal(inputs, again[name].inputs[view]), (
            "views must be a function of the batch and the draws"
        )

    half = ClipBatch(
        {spec: clip[2:] for spec, clip in batch.clips.items()},
        {spec: times[2:] for spec, times in batch.pts_seconds.items()},
        batch.video_ids[2:],
    )
    of_rank_one = model.make_views(half, rows(rank=1, world_size=2, num_rows=2))
    for view, inputs in views[name].inputs.items():
        assert torch.equal(inputs[len(inputs) // 2 :], of_rank_one[name].inputs[view]), (
            "a rank draws its own rows"
        )

    loss, results = model(views)
    assert torch.isfinite(loss)
    accuracy, chance = (
        metric_mean(results[name].metric_sums[key]) for key in ("accuracy", "chance")
    )
    assert 0 <= accuracy <= 1
    assert 0 < chance < 1
    loss.backward()
    without = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == [], "unused parameters break DistributedDataParallel"

    model.eval()
    with torch.no_grad():
        first, second = (model(model.make_views(batch, rows()))[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(("name", "settings"), CASES, ids=str)
def test_task_keeps_the_contract(name, settings):
    check_contract(name, settings)


def documented_task() -> str:
    """The task that the documentation shows whole: what a reader copies is what is tested."""
    page = (Path(__file__).parents[1] / "docs" / "add_a_task.md").read_text()
    return page.split("```python\n")[1].split("```")[0]


def test_a_fourth_task_is_one_file_and_one_config(tmp_path, monkeypatch, video_folder):
    (tmp_path / "brightness.py").write_text(documented_task())
    monkeypatch.setattr(videossl.pretext, "__path__", [*videossl.pretext.__path__, str(tmp_path)])
    assert "brightness" in available()
    check_contract("brightness", {})

    from videossl.__main__ import main

    config = tmp_path / "toy.yaml"
    config.write_text(
        "tasks: {brightness: {weight: 2.0, crop_size: 32}, arrow_of_time: {crop_size: 32, num_frames: 4}}\n"
        "data: {short_side: 48, videos_per_step: 2, num_workers: 0, val_fraction: 0}\n"
        "train: {steps: 2, log_every: 1}\n"
    )
    out = tmp_path / "run"
    assert (
        main(["train", "--config", str(config), f"data.manifest={video_folder}", f"out={out}"]) == 0
    )
    assert '"brightness"' in (out / "metrics.jsonl").read_text()


def test_unknown_task_fails():
    with pytest.raises(UserError, match="task 'jigsaw' is unknown; allowed: arrow_of_time"):
        load("jigsaw")


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_pictures_are_rgb_and_leave_no_trace(name, settings):
    model = build(name, settings).eval()
    batch = random_batch(model)
    for _, task in model.named_tasks():
        task.prepare(batch, 0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    pictures = model.draw(model.make_views(batch, rows()))
    assert pictures
    for title, picture in pictures.items():
        assert title.startswith(f"{name}/")
        assert (picture.dtype, picture.ndim, picture.shape[0]) == (torch.uint8, 3, 3)
        assert picture.float().std() > 1
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
