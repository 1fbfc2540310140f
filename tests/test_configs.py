"""Every file of configs/ trains, as it is but for its size: 50 steps on ten small videos."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from videossl.__main__ import main
from videossl.config import load_config

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
SHORT = [
    "data.short_side=48",
    "data.videos_per_step=4",
    "data.num_workers=0",
    "data.val_fraction=0.2",
    "train.steps=50",
    "train.log_every=25",
    "train.save_every=50",
    "train.eval_every=50",
    "train.eval_batches=1",
    "train.threads_per_process=1",
    "monitor.gradients_every=50",
    "monitor.pictures=false",
    "optim.warmup_steps=5",
]
# The videos last 2.5 s: what cannot fit is made as short as it must be, and crops as small as the question allows.
SMALLER = {
    "crop_size": 32,
    "frame_jitter": 4,
    "clip_jitter": 2,
    "patch_size": 16,
    "window_seconds": 1.6,
    "min_gap_seconds": 0.2,
    "tau_max_seconds": 0.8,
    "tau_min_seconds": 0.2,
    "queue_size": 64,
    "frame_gaps": [1, 2],
    "stabilize_margin": 4,
}


def shortened(config: Path) -> list[str]:
    """Overrides that fit a config's own settings to the videos; settings it does not make stay as they are."""
    tasks = yaml.safe_load(config.read_text())["tasks"]
    return [
        f"tasks.{name}.{key}={json.dumps(SMALLER[key])}"
        for name, settings in tasks.items()
        for key in settings
        if key in SMALLER
    ]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_trains_fifty_steps(config, video_folder, tmp_path):
    out = tmp_path / "run"
    overrides = [*SHORT, *shortened(config), f"data.manifest={video_folder}", f"out={out}"]
    threads = torch.get_num_threads()
    try:
        assert main(["train", "--config", str(config), *overrides]) == 0
    finally:
        torch.set_num_threads(threads)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "tasks" in line]
    assert trained[-1]["step"] == 50
    for name, task in trained[-1]["tasks"].items():
        assert 0 <= task["accuracy"] <= 1, name
        assert 0 < task["chance"] < 1, name
        assert task["loss"] == task["loss"], f"the loss of {name} is not a number"
    assert trained[-1]["skipped_steps"] == 0
    assert (out / "checkpoints" / "step_00000050.pt").exists()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_says_what_it_is(config):
    """Its head names a paper and the command; it sets no manifest, which is the user's."""
    head = "".join(line for line in config.read_text().splitlines(True) if line.startswith("#"))
    assert "Command: " in head
    assert f"--config {config.stem}" in head or config.stem == "demo"
    assert "Paper" in head
    assert load_config(config).data.manifest is None
