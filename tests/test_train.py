"""Whole runs through the command line: exact resume, folders, and what a user can get wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from videossl.__main__ import main
from videossl.engine.build import build_optimizer, lr_at
from videossl.engine.checkpoint import (
    checkpoints,
    find_checkpoint,
    load_checkpoint,
    restore_encoder,
)
from videossl.errors import UserError

CONFIG = """
encoder: {name: tiny}
data: {short_side: 48, videos_per_step: 4, num_workers: 1, val_fraction: 0.3}
tasks:
  order_verification: {crop_size: 32, num_frames: 2, window_seconds: 1.0, min_gap_seconds: 0.1}
  arrow_of_time: {crop_size: 32, num_frames: 4}
  colorization: {crop_size: 32, frame_jitter: 4, hide: one, predict: values, num_references: 1, radius: 3}
train: {steps: 8, log_every: 1, save_every: 2, eval_every: 4, eval_batches: 2, keep_checkpoints: 9}
"""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "c.yaml"
    path.write_text(CONFIG)
    return path


def arguments(config_file: Path, manifest: Path, out: Path, *overrides: str) -> list[str]:
    return [
        "train",
        "--config",
        str(config_file),
        f"data.manifest={manifest}",
        f"out={out}",
        *overrides,
    ]


def losses(out: Path) -> list[tuple[int, dict]]:
    """Step and losses of every record, each step once."""
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [
        (r["step"], {n: t["loss"] for n, t in r["tasks"].items()}) for r in records if "tasks" in r
    ]


def assert_same_state(first: Path, second: Path) -> None:
    for key in ("model", "optimizer"):
        flat = [
            torch.utils._pytree.tree_flatten(load_checkpoint(p)[key])[0] for p in (first, second)
        ]
        assert len(flat[0]) == len(flat[1])
        for a, b in zip(*flat, strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.fixture(scope="module")
def whole_run(config_file, video_folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert main(arguments(config_file, video_folder, out)) == 0
    return out


def test_a_killed_run_resumes_bit_for_bit(config_file, video_folder, whole_run, tmp_path):
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "videossl", *arguments(config_file, video_folder, out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    while not (out / "checkpoints/step_00000004.pt").exists():
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "checkpoints/step_00000008.pt").exists()
    assert main(arguments(config_file, video_folder, out)) == 0
    assert_same_state(
        out / "checkpoints/step_00000008.pt", whole_run / "checkpoints/step_00000008.pt"
    )
    assert losses(out) == losses(whole_run)


def test_the_folder_holds_what_a_user_looks_for(whole_run):
    names = {path.name for path in whole_run.iterdir()}
    assert {"config.yaml", "env.json", "train.log", "metrics.jsonl", "tb", "checkpoints"} <= names
    records = [json.loads(line) for line in (whole_run / "metrics.jsonl").read_text().splitlines()]
    step = next(r for r in records if "tasks" in r)
    assert {"lr", "clips_per_second", "data_time_fraction"} <= step.keys()
    for metrics in step["tasks"].values():
        assert {"loss", "accuracy", "chance"} <= metrics.keys()
    heldout = [r for r in records if "val" in r]
    assert [r["step"] for r in heldout] == [4, 8]
    line = (whole_run / "train.log").read_text()
    assert "arrow_of_time loss" in line
    assert "(chance 0.50)" in line
    assert "chance: colorization: the share of the commonest colour" in line
    assert "held-out videos: too few to tell: arrow_of_time loss" in line


def test_a_finished_run_is_left_as_it_is(config_file, video_folder, whole_run, caplog):
    before = (whole_run / "metrics.jsonl").read_text()
    with caplog.at_level("INFO", "videossl"):
        assert main(arguments(config_file, video_folder, whole_run)) == 0
    assert "already trained to step 8" in caplog.text
    assert (whole_run / "metrics.jsonl").read_text() == before


def test_a_finished_run_goes_on_to_more_steps_and_samples_as_a_longer_one(
    config_file, video_folder, tmp_path, caplog
):
    """At a rate that does not fall, it is bit for bit the run that was longer from the start."""
    constant = ("optim.final_lr_share=1", "optim.warmup_steps=0", "train.save_every=2")
    longer, out = tmp_path / "longer", tmp_path / "extended"
    assert main(arguments(config_file, video_folder, longer, *constant, "train.steps=6")) == 0
    assert main(arguments(config_file, video_folder, out, *constant, "train.steps=4")) == 0
    with caplog.at_level("INFO", "videossl"):
        assert main(arguments(config_file, video_folder, out, *constant, "train.steps=6")) == 0
    assert "extending a finished run from 4 to 6 steps" in caplog.text
    name = "checkpoints/step_00000006.pt"
    assert_same_state(out / name, longer / name)
    assert yaml.safe_load((out / "config.yaml").read_text())["train"]["steps"] == 6
    # It is a run of 6 steps now.
    assert main(arguments(config_file, video_folder, out, *constant, "train.steps=4")) == 2


def test_what_is_not_finished_or_would_be_sampled_otherwise_is_not_extended(
    config_file, video_folder, whole_run, tmp_path, capsys
):
    out = tmp_path / "cut"
    shutil.copytree(whole_run, out)
    (out / "checkpoints/step_00000008.pt").unlink()
    (out / "checkpoints/best.pt").unlink(missing_ok=True)
    assert main(arguments(config_file, video_folder, out, "train.steps=12")) == 2
    assert "train.steps alone can be raised once the run is finished" in capsys.readouterr().err
    more = ("train.steps=12", "seed=5")
    assert main(arguments(config_file, video_folder, whole_run, *more)) == 2
    assert "seed was" in capsys.readouterr().err


def test_another_config_in_the_same_folder_fails(config_file, video_folder, whole_run, capsys):
    assert main(arguments(config_file, video_folder, whole_run, "optim.lr=0.5")) == 2
    message = capsys.readouterr().err
    assert "holds a run with another config (optim.lr was 0.001, is 0.5)" in message
    assert "name a new folder with out=..., or delete this one" in message


def test_a_run_older_than_a_setting_goes_on_with_its_default(
    config_file, video_folder, whole_run, tmp_path, caplog
):
    old = tmp_path / "old"
    shutil.copytree(whole_run, old)
    config = yaml.safe_load((old / "config.yaml").read_text())
    del config["encoder"]["frame_wise"]
    (old / "config.yaml").write_text(yaml.safe_dump(config))
    with caplog.at_level("INFO", "videossl"):
        assert main(arguments(config_file, video_folder, old)) == 0
    assert "already trained to step 8" in caplog.text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.manifest=nowhere.parquet", "nowhere.parquet"),
        ("data.manifest=null", "data.manifest is not set; run `videossl scan"),
        ("data.val_fraction=0.01", "holds out no whole source group"),
        (
            "tasks.order_verification.window_seconds=0.1",
            r"tasks.order_verification: window_seconds 0.1 cannot hold",
        ),
        ("tasks.order_verification.min_gap_seconds=20", "cannot hold"),
        ("device=cuda", "torch sees no GPU"),
        ("encoder.name=vit", "input should be 'tiny', "),
        ("train.stepz=1", "train.stepz is not a setting; did you mean train.steps?"),
    ],
)
def test_a_wrong_setting_is_one_line_and_exit_code_2(
    override, message, config_file, video_folder, tmp_path, capsys
):
    if override == "device=cuda" and torch.cuda.is_available():
        override, message = "device=tpu", "device: got 'tpu'"
    assert main(arguments(config_file, video_folder, tmp_path / "run", override)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_an_encoder_comes_back_from_its_run_alone(whole_run, config_file, video_folder):
    encoder = restore_encoder(whole_run)
    assert not encoder.training
    assert encoder.track_stage == "res3"
    state = load_checkpoint(find_checkpoint(whole_run))["model"]
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, state[f"encoder.{name}"])
    fresh = [restore_encoder(whole_run, untrained_seed=seed).stem.conv.weight for seed in (0, 0, 1)]
    assert torch.equal(fresh[0], fresh[1])
    assert not torch.equal(fresh[0], fresh[2])
    assert not torch.equal(fresh[0], encoder.stem.conv.weight)


def test_missing_and_damaged_checkpoints_fail(whole_run, tmp_path):
    with pytest.raises(UserError, match="does not exist: give a run folder"):
        restore_encoder(tmp_path / "none.pt")
    with pytest.raises(UserError, match="holds no checkpoint"):
        restore_encoder(tmp_path)
    sound = find_checkpoint(whole_run).read_bytes()
    for name, content in {
        "cut": sound[: len(sound) // 2],
        "empty": b"",
        "text": b"hello",
        "zeros": bytes(1000),
    }.items():
        (tmp_path / f"{name}.pt").write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}\.pt is damaged or not a checkpoint"):
            restore_encoder(tmp_path / f"{name}.pt")
    torch.save({"weights": 1}, tmp_path / "foreign.pt")
    with pytest.raises(UserError, match="was not written by this version"):
        restore_encoder(tmp_path / "foreign.pt")


def test_torchrun_trains_with_two_processes(config_file, video_folder, tmp_path):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "-m",
        "videossl",
    ]
    overrides = ["train.steps=2", "train.eval_every=2"]
    done = subprocess.run(
        command + arguments(config_file, video_folder, tmp_path / "r", *overrides),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "batch: 4 videos over 2 process(es)" in done.stderr
    assert [step for step, _ in losses(tmp_path / "r")] == [1, 2]


def test_accumulated_batches_make_one_step(config_file, video_folder, tmp_path):
    overrides = [
        "train.steps=2",
        "train.accumulate=2",
        "data.videos_per_step=2",
        "train.eval_every=9",
    ]
    assert main(arguments(config_file, video_folder, tmp_path / "r", *overrides)) == 0
    assert [step for step, _ in losses(tmp_path / "r")] == [1, 2]


def test_a_batch_that_does_not_divide_fails(config_file, video_folder, tmp_path):
    from videossl.config import load_config
    from videossl.distributed import World
    from videossl.engine.trainer import Trainer

    config = load_config(config_file, [f"data.manifest={video_folder}", f"out={tmp_path / 'r'}"])
    with pytest.raises(
        UserError, match=r"data\.videos_per_step 4 must be a multiple of the 3 processes"
    ):
        Trainer(config, World(rank=0, size=3, local_rank=0, device=torch.device("cpu")))


def test_old_checkpoints_are_dropped(config_file, video_folder, tmp_path):
    assert (
        main(
            arguments(
                config_file,
                video_folder,
                tmp_path / "r",
                "train.keep_checkpoints=2",
                "train.save_every=3",
            )
        )
        == 0
    )
    assert [p.name for p in checkpoints(tmp_path / "r/checkpoints")] == [
        "step_00000006.pt",
        "step_00000008.pt",
    ]


def test_the_schedule_warms_up_and_ends_at_its_share():
    def lr(step: int) -> float:
        return lr_at(step, peak=1.0, warmup_steps=10, total_steps=110, final_share=0.1)

    assert lr(0) == pytest.approx(0.1)
    assert lr(9) == lr(10) == 1.0
    assert lr(60) == pytest.approx(0.55)
    assert lr(110) == pytest.approx(0.1)


def test_only_matrices_decay():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    groups = build_optimizer(model, lr=0.1, weight_decay=0.5, betas=(0.9, 0.99)).param_groups
    assert [(g["weight_decay"], [p.ndim for p in g["params"]]) for g in groups] == [
        (0.5, [2]),
        (0.0, [1, 1, 1]),
    ]


def test_too_many_broken_videos_stop_the_run(config_file, video_folder, tmp_path, capsys):
    """Files that broke after the scan: each is replaced and counted, and past the limit the run says so."""
    from videossl.data.entry import write_manifest
    from videossl.data.manifest import read_manifest

    entries = read_manifest(video_folder)
    broken = []
    for index, entry in enumerate(entries):
        path = tmp_path / Path(entry.path).name
        data = Path(entry.path).read_bytes()
        path.write_bytes(data if index % 2 else b"no video any more")
        broken.append(type(entry)(**{**entry.__dict__, "path": str(path)}))
    write_manifest(broken, tmp_path / "m.parquet")
    overrides = ["data.max_bad_fraction=0.9", "data.val_fraction=0", "train.steps=3"]
    assert main(arguments(config_file, tmp_path / "m.parquet", tmp_path / "kept", *overrides)) == 0
    assert "bad" in (tmp_path / "kept/train.log").read_text()
    overrides = ["data.max_bad_fraction=0.1", "data.val_fraction=0", "train.steps=100"]
    assert (
        main(arguments(config_file, tmp_path / "m.parquet", tmp_path / "stopped", *overrides)) == 2
    )
    assert "more than data.max_bad_fraction 0.1 allows" in capsys.readouterr().err
