"""Runs that are killed, asked to stop, or continued elsewhere end like the run that was left alone."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_train import arguments, assert_same_state, losses
from test_workers import is_running

from videossl.__main__ import main
from videossl.config import load_config
from videossl.distributed import World
from videossl.engine.checkpoint import load_checkpoint, restore_encoder
from videossl.engine.evaluation import HeldOut
from videossl.engine.trainer import Trainer
from videossl.errors import Preempted, UserError
from videossl.models.encoder_sources import checkpoints

CONFIG = """
encoder: {name: tiny}
data: {short_side: 48, videos_per_step: 4, num_workers: 1, val_fraction: 0.3}
tasks:
  order_verification:
    {crop_size: 32, num_frames: 2, window_seconds: 1.0, min_gap_seconds: 0.1, dropout: 0.0}
  colorization: {crop_size: 32, frame_jitter: 4, hide: one, predict: values, num_references: 1, radius: 3}
optim: {warmup_steps: 5}
train: {steps: 24, log_every: 5, save_every: 3, eval_every: 8, eval_batches: 2}
"""
LAST = "checkpoints/step_00000024.pt"


@pytest.fixture(scope="module")
def config_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "c.yaml"
    path.write_text(CONFIG)
    return path


def torchrun(*command: str, restarts: int = 0) -> list[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return [*start, f"--max-restarts={restarts}", *command]


@pytest.fixture(scope="module")
def runs(config_file, video_folder, tmp_path_factory) -> dict[int, Path]:
    """Whole runs of one and of two processes."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(arguments(config_file, video_folder, folder / "1")) == 0
    command = torchrun("-m", "videossl", *arguments(config_file, video_folder, folder / "2"))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {1: folder / "1", 2: folder / "2"}


def assert_same_run(out: Path, whole: Path) -> None:
    assert_same_state(out / LAST, whole / LAST)
    assert losses(out) == losses(whole)
    records = [
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (out, whole)
    ]
    heldout = [[r for r in rs if "val" in r] for rs in records]
    assert heldout[0] == heldout[1]


def wait_for_step(process: subprocess.Popen, out: Path, step: int) -> None:
    """Until a checkpoint of that step or a later one is there."""
    while not (found := checkpoints(out / "checkpoints")) or int(found[-1].stem[5:]) < step:
        assert process.poll() is None, "the run ended before it could be stopped"
        time.sleep(0.005)


ALIKE = pytest.param(
    signal.SIGUSR1, marks=pytest.mark.slow
)  # the same way through, and tried with two ranks below


@pytest.mark.parametrize("number", [signal.SIGTERM, ALIKE, signal.SIGINT])
def test_a_signal_ends_the_step_with_a_checkpoint(
    number, config_file, video_folder, runs, tmp_path
):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "videossl", *arguments(config_file, video_folder, out)]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for_step(process, out, 3)
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert process.returncode == (130 if number == signal.SIGINT else 75), said
    assert f"stopped by {number.name} at step" in said.splitlines()[-1]
    assert "Traceback" not in said
    step = int(said.splitlines()[-1].split("at step ")[1].split(",")[0])
    assert checkpoints(out / "checkpoints")[-1].name == f"step_{step:08d}.pt"
    assert main(arguments(config_file, video_folder, out)) == 0
    assert_same_run(out, runs[1])


def test_a_signal_to_one_rank_stops_all_of_them(config_file, video_folder, runs, tmp_path):
    out = tmp_path / "run"
    command = torchrun("-m", "videossl", *arguments(config_file, video_folder, out))
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for_step(process, out, 3)
    ranks = [pid for pid in children(process.pid) if b"train" in command_line(pid)]
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGUSR1)
    _, said = process.communicate(timeout=30)
    assert said.count("stopped by SIGUSR1") == 1  # for both ranks
    assert "exitcode  : 75" in said
    assert main_under_torchrun(config_file, video_folder, out) == 0
    assert_same_run(out, runs[2])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_ranks_save_and_leave_when_torchrun_is_killed_or_interrupted(
    number, config_file, video_folder, runs, tmp_path
):
    """What torchrun itself says of a Ctrl-C goes elsewhere: what the ranks say is in their logs."""
    out, logs = tmp_path / "run", tmp_path / "logs"
    run = arguments(config_file, video_folder, out)
    command = torchrun(f"--log-dir={logs}", "--redirects=3", "-m", "videossl", *run)
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_for_step(process, out, 3)
    ranks = [pid for pid in children(process.pid) if b"train" in command_line(pid)]
    assert len(ranks) == 2
    process.send_signal(number)
    process.wait()
    deadline = time.monotonic() + 30
    while any(map(is_running, ranks)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, ranks))
    said = "".join(path.read_text() for path in logs.rglob("stderr.log"))
    reason = "the end of torchrun" if number == signal.SIGKILL else "SIGINT"
    assert said.count(f"videossl train: stopped by {reason} at step ") == 1
    assert "Traceback" not in said
    assert main_under_torchrun(config_file, video_folder, out) == 0
    assert_same_run(out, runs[2])


def children(pid: int) -> list[int]:
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def main_under_torchrun(config_file: Path, manifest: Path, out: Path) -> int:
    command = torchrun("-m", "videossl", *arguments(config_file, manifest, out))
    return subprocess.run(command, capture_output=True, check=False).returncode


@pytest.mark.parametrize("step", [8, 24])
def test_a_signal_during_the_evaluation_leaves_it_to_the_next_start(
    step, config_file, video_folder, runs, tmp_path, monkeypatch
):
    config = load_config(config_file, [f"data.manifest={video_folder}", f"out={tmp_path / 'run'}"])
    world = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
    trainer = Trainer(config, world)
    evaluate = HeldOut.__call__

    def interrupted(self, model, poll):
        if trainer.step == step:
            trainer.stop.reason = "SIGTERM"
        return evaluate(self, model, poll)

    monkeypatch.setattr(HeldOut, "__call__", interrupted)
    with pytest.raises(Preempted, match=f"stopped by SIGTERM at step {step}"):
        trainer.run()
    monkeypatch.undo()
    Trainer(config, world).run()
    assert_same_run(tmp_path / "run", runs[1])


def killed_run(kills: list[str], config_file: Path, manifest: Path, folder: Path) -> Path:
    (folder / "markers").mkdir()
    script = str(Path(__file__).with_name("killed_run.py"))
    command = torchrun(
        script,
        str(folder / "markers"),
        ",".join(kills),
        *arguments(config_file, manifest, folder / "run"),
        restarts=len(kills),
    )
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list((folder / "markers").iterdir())) == len(kills)
    return folder / "run"


def test_torchrun_brings_a_killed_run_back(config_file, video_folder, runs, tmp_path):
    out = killed_run(["1:4", "0:8:save", "0:20"], config_file, video_folder, tmp_path)
    assert_same_run(out, runs[2])
    assert not list((out / "checkpoints").glob("*.tmp"))


@pytest.mark.slow
def test_twenty_kills_at_random_steps_change_nothing(config_file, video_folder, runs, tmp_path):
    chooser = random.Random(0)
    steps = [chooser.randrange(24) for _ in range(20)]
    kills = [
        f"0:{step}:save" if index % 4 == 3 else f"{chooser.randrange(2)}:{step}"
        for index, step in enumerate(steps)
    ]
    kills = sorted(
        set(kills) - {k for k in kills if k.endswith("save") and int(k.split(":")[1]) > 20}
    )
    assert len(kills) >= 15
    assert_same_run(killed_run(kills, config_file, video_folder, tmp_path), runs[2])


@pytest.mark.slow
def test_thirty_ends_at_any_moment_change_nothing(config_file, video_folder, runs, tmp_path):
    """One process and torchrun with two are ended in start-up, steps, saves and evaluations of a run that goes on."""
    chooser, ends = random.Random(0), []
    for size in (1, 2):
        out = tmp_path / str(size)
        run = ["-m", "videossl", *arguments(config_file, video_folder, out)]
        command = [sys.executable, *run] if size == 1 else torchrun(*run)
        while len(ends) < 15 * size:
            process = subprocess.Popen(
                command,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
            time.sleep(chooser.uniform(0, 14))
            number = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)[len(ends) % 3]
            ranks = [process.pid, *children(process.pid)] if size == 2 else []
            if process.poll() is None:
                process.send_signal(number)
                ends.append((size, number.name, last_step(out)))
            _, said = process.communicate()
            assert size == 2 or "Traceback" not in said, said
            deadline = time.monotonic() + 30
            while any(map(is_running, ranks)) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert not any(map(is_running, ranks))
            if last_step(out) == 24:  # all but an evaluation is done: once more from the start
                assert subprocess.run(command, capture_output=True, check=False).returncode == 0
                assert_same_run(out, runs[size])
                shutil.rmtree(out)
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0
        assert_same_run(out, runs[size])
    print(ends)


def last_step(out: Path) -> int:
    found = checkpoints(out / "checkpoints")
    return int(found[-1].stem[5:]) if found else 0


def test_another_number_of_processes_goes_on_with_the_same_losses(
    config_file, video_folder, tmp_path
):
    """Batch statistics over all rows, no dropout: then only rounding depends on who holds which row.

    Adam divides by the gradient's size, so rounding grows with the learning rate: at 1e-3 it is 2e-4 after six steps.
    """
    short = ["train.steps=6", "train.log_every=1", "train.eval_every=99", "optim.lr=1e-5"]
    synced = [*short, "train.sync_batchnorm=true"]
    one = tmp_path / "one"
    assert main(arguments(config_file, video_folder, one, *synced)) == 0
    half = tmp_path / "half"
    command = [
        sys.executable,
        "-m",
        "videossl",
        *arguments(config_file, video_folder, half, *synced),
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_for_step(process, half, 3)
    process.kill()
    process.wait()
    for path in checkpoints(half / "checkpoints")[1:]:
        path.unlink()
    command = torchrun("-m", "videossl", *arguments(config_file, video_folder, half, *synced))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [step for step, _ in losses(half)] == list(range(1, 7))
    for (_, first), (_, second) in zip(losses(one), losses(half), strict=True):
        for name, value in first.items():
            assert second[name] == pytest.approx(value, abs=5e-5)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    config_file, video_folder, runs, tmp_path, caplog
):
    out = tmp_path / "run"
    assert main(arguments(config_file, video_folder, out)) == 0
    newest = checkpoints(out / "checkpoints")[-1]
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    caplog.clear()
    assert restore_encoder(out).track_stage == "res3"
    assert main(arguments(config_file, video_folder, out)) == 0
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 2  # of the encoder and of the run
    for said in warnings:
        assert "step_00000024.pt is damaged" in said
        assert "going on from step_00000021.pt" in said
    assert_same_run(out, runs[1])


def test_no_flipped_bit_goes_unnoticed(runs, tmp_path):
    sound = checkpoints(runs[1] / "checkpoints")[-1]
    expected, data = load_checkpoint(sound), sound.read_bytes()
    chooser, refused = random.Random(0), 0
    for _ in range(40):
        position = chooser.randrange(len(data))
        flipped = bytearray(data)
        flipped[position] ^= 1 << chooser.randrange(8)
        (tmp_path / "f.pt").write_bytes(flipped)
        try:
            state = load_checkpoint(tmp_path / "f.pt")
        except UserError:
            refused += 1
            continue
        for name, value in expected["model"].items():  # a byte of padding
            assert torch.equal(state["model"][name], value)
    assert refused >= 30


def test_all_checkpoints_damaged_is_said(config_file, video_folder, tmp_path, capsys):
    out = tmp_path / "run"
    overrides = ["train.steps=3", "train.eval_every=9"]
    assert main(arguments(config_file, video_folder, out, *overrides)) == 0
    (only,) = checkpoints(out / "checkpoints")
    only.write_bytes(b"not a checkpoint")
    assert main(arguments(config_file, video_folder, out, *overrides)) == 2
    assert "no checkpoint is sound" in capsys.readouterr().err


def test_the_best_checkpoint_stays(config_file, video_folder, tmp_path):
    out = tmp_path / "run"
    overrides = ["train.best_metric=val/colorization/loss", "train.keep_checkpoints=1"]
    assert main(arguments(config_file, video_folder, out, *overrides)) == 0
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    heldout = {r["step"]: r["val"]["colorization"]["loss"] for r in records if "val" in r}
    best = load_checkpoint(out / "checkpoints/best.pt")
    assert best["step"] == min(heldout, key=heldout.get)
    assert best["best"] == -min(heldout.values())
    assert [p.name for p in checkpoints(out / "checkpoints")] == ["step_00000024.pt"]


def test_an_unknown_best_metric_is_named(config_file, video_folder, tmp_path, capsys):
    run = arguments(config_file, video_folder, tmp_path / "run", "train.eval_every=1")
    assert main([*run, "train.best_metric=colour"]) == 2
    error = capsys.readouterr().err
    assert "train.best_metric 'colour' is not measured: it must begin with one of val/" in error
    assert not (tmp_path / "run").exists()
    assert main([*run, "train.best_metric=val/colour"]) == 2
    assert "is not measured; allowed: val/colorization/loss, " in capsys.readouterr().err


def test_a_full_disk_keeps_the_checkpoint_before(config_file, video_folder, tmp_path):
    """The limit on the size of files refuses the checkpoint, and nothing else, as a full disk would."""
    out = tmp_path / "run"
    script = (
        "import resource, sys; from videossl.__main__ import main; from videossl.engine.trainer import Trainer\n"
        "step = Trainer.train_step\n"
        "def limited(self, *arguments):\n"
        "    if self.step == 4: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))\n"
        "    return step(self, *arguments)\n"
        "Trainer.train_step = limited\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [
        sys.executable,
        "-c",
        script,
        *arguments(config_file, video_folder, out, "train.steps=8"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "step_00000006.pt cannot be written: File too large; make room in " in done.stderr
    assert "PytorchStreamWriter" not in done.stderr
    assert "earlier checkpoints are untouched; training goes on" in done.stderr
    assert done.stderr.count("tb cannot be written: ") == 1
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step_00000003.pt"]
    load_checkpoint(out / "checkpoints/step_00000003.pt")
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
