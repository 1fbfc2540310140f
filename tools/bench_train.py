"""What sharing decode and encoder saves, what saving costs, what a second process brings, and how near the machine's limit.

    python tools/bench_train.py RAW_MANIFEST [PACKED_MANIFEST] [--config configs/shared_clips.yaml ...]

Shared: one run of all tasks. Separate: a run of each task alone, with its own decoding, encoder and optimiser, one after
the other; clips of all of them count, their times add up. Plain: the same, and each view goes through the encoder by itself.
Rounds alternate. Everything is trained for real, into folders that go away.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from videossl.config import Config, load_config
from videossl.distributed import World, choose_device
from videossl.engine.metrics import flops_per_video, peak_memory_gib
from videossl.engine.multitask import MultiTask
from videossl.engine.trainer import Trainer
from videossl.models.encoder import count_parameters
from videossl.types import FeatureMaps, Views

WARM_STEPS = 3
CPU_VARIANTS = {
    "fp32": [],
    "fp32, channels last": ["train.channels_last=true"],
    "bf16": ["train.precision=bf16"],
    "fp32, compiled": ["train.compile=true"],
}
GPU_VARIANTS = {
    "fp32": ["train.precision=fp32", "train.channels_last=false"],
    "bf16": ["train.channels_last=false"],
    "bf16, channels last": [],
    "bf16, channels last, compiled": ["train.compile=true"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifests", nargs="+", help="raw, then packed")
    parser.add_argument(
        "--config", nargs="+", default=["configs/shared_clips.yaml", "configs/real_small.yaml"]
    )
    parser.add_argument("--steps", type=int, default=20, help="timed, in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--only", nargs="+", default=["flops", "sharing", "saving", "processes", "machine"]
    )
    args = parser.parse_args()
    print(
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, device {choose_device('auto')}"
    )
    first = (args.config[0], args.manifests[0])
    if "flops" in args.only:
        for name in ("tiny", "slow_r50"):
            flops(*first, name)
    if "sharing" in args.only:
        for path in args.config:
            for manifest in args.manifests:
                sharing(path, manifest, args.steps, args.rounds)
    if "saving" in args.only:
        saving(*first, args.rounds)
    if "processes" in args.only:
        processes(args.config[0], args.manifests[-1], 3 * args.steps)
    if "machine" in args.only:
        machine(args.config[0], args.manifests[-1], args.steps)


@contextlib.contextmanager
def trainer_of(
    path: str, manifest: str, *overrides: str, task: str | None = None
) -> Iterator[Trainer]:
    """A trainer of all tasks of a config, or of one."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"data.manifest={manifest}", f"out={folder}/run", "monitor.gradients_every=0"]
        config = load_config(path, [*settings, "train.steps=1000000", *overrides])
        if task is not None:
            config = config.model_copy(update={"tasks": {task: config.tasks[task]}})
        world = World(rank=0, size=1, local_rank=0, device=choose_device("auto"))
        trainer = Trainer(config, world)
        trainer.model.train()
        yield trainer
        trainer.writer.close()


def timed_steps(trainer: Trainer, steps: int) -> tuple[float, float]:
    """Seconds of `steps` steps, and those of them spent waiting for data, after a few that are not counted."""
    with contextlib.closing(trainer.batches()) as batches:
        for _ in range(WARM_STEPS):
            trainer.train_step(batches)
        wait_for_device(trainer)
        begin = time.perf_counter()
        waited = sum(trainer.train_step(batches) for _ in range(steps))
        wait_for_device(trainer)
        return time.perf_counter() - begin, waited


def wait_for_device(trainer: Trainer) -> None:
    if trainer.world.device.type == "cuda":
        torch.cuda.synchronize(trainer.world.device)


def clips_per_step(config: Config, trainer: Trainer) -> int:
    return config.data.videos_per_step * sum(
        task.clip_spec.num_clips for _, task in trainer.model.named_tasks()
    )


def gflops(trainer: Trainer) -> float:
    return flops_per_video(trainer.model, trainer.train_data, trainer.world.device) / 1e9


def flops(path: str, manifest: str, encoder: str) -> None:
    """Floating-point operations of one training step, per video, shared and separate; nothing is trained."""
    counts = {}
    for task in [None, *load_config(path, ["out=unused"]).tasks]:
        with trainer_of(path, manifest, f"encoder.name={encoder}", task=task) as trainer:
            counts[task or "shared"] = gflops(trainer)
    shared = counts.pop("shared")
    print(
        f"GFLOPs/video, {encoder}, {path}: shared {shared:.2f}, separate {sum(counts.values()):.2f}, ratio "
        f"{sum(counts.values()) / shared:.2f}"
    )


def sharing(path: str, manifest: str, steps: int, rounds: int) -> None:
    names = list(load_config(path, ["out=unused"]).tasks)
    rows = ["shared", *names, *(f"{name}, plain" for name in names)]
    seconds: dict[str, list[float]] = {row: [] for row in rows}
    waits: dict[str, list[float]] = {row: [] for row in rows}
    cost, clips = {}, 0
    for _ in range(rounds):
        for row in rows:
            task = None if row == "shared" else row.removesuffix(", plain")
            with trainer_of(path, manifest, task=task) as trainer:
                if row.endswith(", plain"):
                    encode_plainly(trainer.model)
                taken, waited = timed_steps(trainer, steps)
                seconds[row].append(taken / steps)
                waits[row].append(waited / taken)
                cost[row] = gflops(trainer)
                clips = max(clips, clips_per_step(trainer.config, trainer))
    for name, parts in (("separate", names), ("plain", [f"{name}, plain" for name in names])):
        seconds[name] = [sum(seconds[part][i] for part in parts) for i in range(rounds)]
        cost[name] = sum(cost[part] for part in parts)
    print(
        f"\nsharing: {path} on {Path(manifest).parent.name}/{Path(manifest).name}, {clips} clips a step"
    )
    print(f"{'':28} {'ms/step':>8} {'clips/s':>8} {'GFLOPs/video':>13} {'waiting':>8}")
    for row in (*rows, "separate", "plain"):
        middle = statistics.median(seconds[row])
        speed = f"{clips / middle:8.1f}" if row in ("shared", "separate", "plain") else 8 * " "
        wait = f"{100 * statistics.median(waits[row]):7.0f}%" if row in waits else ""
        print(f"{row:28} {1000 * middle:8.0f} {speed} {cost[row]:13.2f} {wait}")
    for name in ("separate", "plain"):
        ratios = [a / b for a, b in zip(seconds[name], seconds["shared"], strict=True)]
        print(
            f"shared against {name}: median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); "
            f"FLOPs {cost[name] / cost['shared']:.2f}"
        )


def encode_plainly(model: MultiTask) -> None:
    """Each view by a call of its own, as a task would that knows of no other."""

    def encode(views: Mapping[str, Views]) -> dict[str, dict[str, FeatureMaps]]:
        return {
            name: {
                view: model.encoder(views[name].clips(view))[task.stage]
                for view in views[name].names
            }
            for name, task in model.named_tasks()
        }

    model.encode = encode  # type: ignore[method-assign]


def saving(path: str, manifest: str, rounds: int, every: int = 100) -> None:
    """Rounds of `every` steps with one save in their middle, against rounds without; and how long the call itself takes."""
    plain: list[float] = []
    saved: list[float] = []
    calls: list[float] = []
    with trainer_of(path, manifest) as trainer, contextlib.closing(trainer.batches()) as batches:
        for _ in range(WARM_STEPS):
            trainer.train_step(batches)
        for _ in range(rounds):
            for times, saves in ((plain, False), (saved, True)):
                begin = time.perf_counter()
                for step in range(every):
                    trainer.train_step(batches)
                    if saves and step == every // 2:
                        before = time.perf_counter()
                        trainer.save()
                        calls.append(time.perf_counter() - before)
                times.append(time.perf_counter() - begin)
    seconds = statistics.median(plain)
    print(f"\nsaving: {path}, one save in {every} steps of {1000 * seconds / every:.0f} ms")
    print(f"training waits for the call {1000 * statistics.median(calls):.0f} ms", end="")
    print(f", {100 * statistics.median(calls) / seconds:.2f} % of the steps' time")
    ratios = [100 * (s / p - 1) for s, p in zip(saved, plain, strict=True)]
    print(
        f"rounds with a save against rounds without: median {statistics.median(ratios):+.1f} % "
        f"({min(ratios):+.1f} to {max(ratios):+.1f})"
    )


def processes(path: str, manifest: str, steps: int) -> None:
    """The same global batch by one process and by two, one thread each."""
    speeds = {}
    for count in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            command += [f"--nproc_per_node={count}", "-m", "videossl", "train", "--config", path]
            command += [f"data.manifest={manifest}", f"out={folder}/run", f"train.steps={steps}"]
            command += [f"train.log_every={steps // 3}", "train.threads_per_process=1"]
            command += ["train.eval_batches=1", "monitor.gradients_every=0"]
            subprocess.run(command, check=True, capture_output=True)
            lines = (Path(folder) / "run/metrics.jsonl").read_text().splitlines()
        logged = [record for record in map(json.loads, lines) if "clips_per_second" in record]
        speeds[count] = logged[-1]["clips_per_second"]  # the first interval holds the start
    print(f"\nprocesses: {path}, one thread each")
    print(
        f"clips/s 1 process {speeds[1]:.1f}, 2 processes {speeds[2]:.1f}; ratio {speeds[2] / speeds[1]:.2f}"
    )


def machine(path: str, manifest: str, steps: int) -> None:
    """Variants of precision and memory order, as shares of what matrix products reach here."""
    device = choose_device("auto")
    rates = {dtype: matrix_rate(device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    print(f"\nmachine: {path} on {device}; matrix products reach")
    print(", ".join(f"{str(dtype)[6:]} {rate / 1e9:.0f} GFLOP/s" for dtype, rate in rates.items()))
    print(f"{'':32} {'clips/s':>8} {'of the rate':>12} {'waiting':>8} {'peak GiB':>9}")
    variants = GPU_VARIANTS if device.type == "cuda" else CPU_VARIANTS
    for name, overrides in variants.items():
        with trainer_of(path, manifest, *overrides) as trainer:
            taken, waited = timed_steps(trainer, steps)
            videos = steps * trainer.config.data.videos_per_step
            used = gflops(trainer) * 1e9 * videos / taken
            rate = rates[torch.bfloat16 if "bf16" in name else torch.float32]
            clips = steps * clips_per_step(trainer.config, trainer)
            memory = peak_memory_gib(device)
        print(
            f"{name:32} {clips / taken:8.1f} {100 * used / rate:11.1f}% {100 * waited / taken:7.0f}% {memory:9.2f}"
        )
    parameters = count_parameters(trainer.model)
    print(f"parameters {parameters / 1e6:.2f} M: {4 * parameters / 2**20:.1f} MiB of gradients")


def matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float = 2.0) -> float:
    """FLOP/s of products of square matrices."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    a @ b
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        for _ in range(10):
            a @ b
        count += 10
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return 2 * size**3 * count / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
