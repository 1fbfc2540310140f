"""Ends a training of two ranks at random moments, in five ways in turn, and compares what goes on with a run left alone.

    python tools/kill_training.py --kills 30

After each, the same command is given again. Right is: no process is left after LEAVE_SECONDS, and the weights, the
optimiser's state, every logged loss and every held-out number are bit for bit those of the run that nobody ended.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from interrupt_commands import left_of, start

CONFIG = """
encoder: {name: tiny}
data: {short_side: 48, videos_per_step: 4, num_workers: 1, val_fraction: 0.3}
tasks:
  arrow_of_time: {crop_size: 32, num_frames: 4}
  order_verification: {crop_size: 32, num_frames: 2, window_seconds: 1.0, min_gap_seconds: 0.1}
  colorization: {crop_size: 32, frame_jitter: 4, hide: one, predict: values, num_references: 1, radius: 3}
optim: {warmup_steps: 5}
train: {steps: 24, log_every: 2, save_every: 3, eval_every: 8, eval_batches: 2, threads_per_process: 1}
"""
LEAVE_SECONDS = 20.0
RUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc_per_node=2",
    "-m",
    "videossl",
]


def ranks_of(agent: int) -> list[int]:
    """The processes that torchrun has started and not lost."""
    return [int(pid) for pid in Path(f"/proc/{agent}/task/{agent}/children").read_text().split()]


def end_rank(agent: int) -> None:
    """The last one, if any is there yet."""
    for pid in ranks_of(agent)[-1:]:
        os.kill(pid, signal.SIGKILL)


WAYS: dict[str, Callable[[int], None]] = {
    "all are killed": lambda agent: os.killpg(agent, signal.SIGKILL),
    "a rank is killed": end_rank,
    "torchrun is killed": lambda agent: os.kill(agent, signal.SIGKILL),
    "Ctrl-C": lambda agent: os.killpg(agent, signal.SIGINT),
    "SIGTERM": lambda agent: os.kill(agent, signal.SIGTERM),
}


def run(words: Sequence[str]) -> int:
    """The exit code of a training that nobody ends."""
    return start([*RUN, *words], subprocess.DEVNULL).wait()


def outcome(out: Path) -> dict[str, Any]:
    """All that a run has to show: the last checkpoint's tensors as bytes, and what was logged last of each step."""
    from videossl.engine.checkpoint import load_checkpoint
    from videossl.models.encoder_sources import checkpoints

    state = load_checkpoint(checkpoints(out / "checkpoints")[-1])
    said: dict[str, Any] = {
        "step": state["step"],
        "state": _plain([state["model"], state["optimizer"]]),
    }
    for line in (out / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        for name in ("tasks", "val"):
            if name in record:
                said[f"{name} {record['step']}"] = record[name]
    return said


def _plain(value: Any) -> Any:
    if hasattr(value, "numpy"):
        return value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def ended(words: Sequence[str], way: Callable[[int], None], delay: float) -> str:
    """Starts the command and ends it that way after so many seconds; says what was left, if anything."""
    process = start([*RUN, *words], subprocess.DEVNULL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(delay)
        return "too late"
    with suppress(FileNotFoundError, ProcessLookupError):
        way(process.pid)
    until = time.monotonic() + LEAVE_SECONDS
    while left_of(process.pid) and time.monotonic() < until:
        process.poll()
        time.sleep(0.1)
    left = left_of(process.pid)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return f"LEFT {len(left)} processes" if left else ""


def main() -> None:
    """Prints each end and the counts; exits with 1 where one was wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    chooser, counts = random.Random(args.seed), Counter[str]()
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "c.yaml").write_text(CONFIG)
        make = ["synthesize", "-o", f"{folder}/s", "--videos", "12", "--sequences", "1"]
        scan = ["scan", f"{folder}/s/videos", "-o", f"{folder}/m.parquet"]
        for words in (make, scan):
            subprocess.run(
                [sys.executable, "-m", "videossl", *words], check=True, capture_output=True
            )

        def command(out: Path) -> list[str]:
            given = ["--config", f"{folder}/c.yaml", f"data.manifest={folder}/m.parquet"]
            return ["train", *given, f"out={out}"]

        begin = time.monotonic()
        assert run(command(folder / "whole")) == 0
        seconds, whole = time.monotonic() - begin, outcome(folder / "whole")
        print(f"a run left alone takes {seconds:.1f} s", flush=True)
        while counts.total() < args.kills:
            way = list(WAYS)[counts.total() % len(WAYS)]
            delay, out = chooser.uniform(0, seconds), folder / f"run{counts.total()}"
            ending = ended(command(out), WAYS[way], delay)
            again = run(command(out))
            if not ending:
                found = outcome(out) if again == 0 else {}
                different = [key for key in whole if found.get(key) != whole[key]]
                ending = f"DIFFERS in {', '.join(different[:3])}" if different else "bit-equal"
            counts[ending] += 1
            print(f"{way} after {delay:.1f} s: {ending}", flush=True)
    print("; ".join(f"{count} {ending}" for ending, count in counts.most_common()))
    sys.exit(any(ending[0].isupper() for ending in counts))


if __name__ == "__main__":
    main()
