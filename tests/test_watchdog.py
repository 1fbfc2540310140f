"""One line names the rank that stands still or dies, its step and its videos."""

import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from test_fault_tolerance import CONFIG, torchrun
from test_train import arguments

from videossl.distributed import World
from videossl.engine.watchdog import Watchdog


def failed_run(kind: str, video_folder: Path, tmp_path: Path) -> list[str]:
    """What the run says, without torchrun's own words."""
    (tmp_path / "c.yaml").write_text(CONFIG)
    script = str(Path(__file__).with_name("stalled_run.py"))
    overrides = ["train.watchdog_seconds=6", "data.timeout_seconds=500", "train.eval_every=99"]
    run = arguments(tmp_path / "c.yaml", video_folder, tmp_path / "run", *overrides)
    started = time.monotonic()
    done = subprocess.run(
        torchrun(script, kind, *run), capture_output=True, text=True, check=False, timeout=120
    )
    assert time.monotonic() - started < 100
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if "rank 1 " in line and "[rank" not in line]
    assert said, done.stderr
    return said


def test_a_rank_that_stands_still_is_named(video_folder, tmp_path):
    (line,) = failed_run("sleep", video_folder, tmp_path)
    assert line.startswith("no progress for 6 s (train.watchdog_seconds) of rank 1 at step 3 (")
    assert line.endswith("the same command goes on from the last checkpoint")


def test_a_rank_that_waits_for_a_video_names_it(video_folder, tmp_path):
    (line,) = failed_run("data", video_folder, tmp_path)
    assert "of rank 1 at step 0 (decoding what tasks prepare on: " in line
    assert ".mp4 for " in line


def test_a_rank_that_dies_is_named(video_folder, tmp_path):
    (line,) = failed_run("die", video_folder, tmp_path)
    assert "rank 1 died, or was stopped, at step" in line


@pytest.mark.slow  # torchrun gives a stopped process 30 s to end
def test_a_rank_that_is_stopped_is_named(video_folder, tmp_path):
    (line,) = failed_run("stop", video_folder, tmp_path)
    assert "no answer for 6 s (train.watchdog_seconds) from rank 1 at step" in line


def test_ranks_that_look_for_the_gone_at_once_are_not_gone(monkeypatch):
    """Rank 1 stands still, rank 0 waits for it: both ask who is gone, rank 1 a moment earlier."""
    said, is_over = {}, threading.Event()

    def end(self, text):  # the process would end here: nothing is written from then on
        said[self] = text
        is_over.wait(30)

    monkeypatch.setattr(Watchdog, "_end", end)
    store = dist.HashStore()
    ranks = [Watchdog(World(rank, 2, rank, torch.device("cpu"), store), 2) for rank in range(2)]
    ranks[1].note(3, "decoding")
    ranks[0].note(3, "decoding")
    ranks[0].note(3, "the exchange")
    with ranks[1]:
        time.sleep(0.3)
        with ranks[0]:
            deadline = time.monotonic() + 60
            while len(said) < 2 and time.monotonic() < deadline:
                time.sleep(0.05)
            is_over.set()
    assert set(said.values()) == {
        "no progress for 2 s (train.watchdog_seconds) of rank 1 at step 3 (decoding)"
    }
