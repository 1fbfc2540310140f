"""What the loader costs on top of decoding, and whether its workers grow.

    python tools/bench_loader.py MANIFEST [--short-side 128] [--rounds 7]

Alternates between two processes that only decode (the bare loops) and the loader with two workers, on the same samples;
then times `next` on batches that are ready, and watches the memory of a process that decodes 10,000 clips.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Generator
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import torch

from videossl.data.dataset import ClipDataset, RawClips
from videossl.data.loader import PREFETCHED_BATCHES, StepPositions, frame_batches
from videossl.data.manifest import read_manifest
from videossl.types import ClipSpec

NUM_WORKERS, VIDEOS_PER_STEP = 2, 8
CLIP = ClipSpec(
    num_clips=3,
    num_frames=16,
    seconds_between_frames=1 / 30,
    crop_size=112,
    min_gap_seconds=0.1,
    window_seconds=1.5,
)
SHORT_CLIP = ClipSpec(num_clips=1, num_frames=16, seconds_between_frames=1 / 30, crop_size=112)
CLIPS_FOR_MEMORY = (1_000, 10_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest")
    parser.add_argument("--short-side", type=int, default=128)
    parser.add_argument("--steps", type=int, default=40, help="batches of 8 videos in a round")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    dataset = ClipDataset(
        read_manifest(args.manifest), [CLIP], seed=0, short_side=args.short_side, shuffle=True
    )
    print(f"{len(dataset)} videos; 3 clips of 16 frames of each, {os.cpu_count()} cores")
    throughput(dataset, args.steps, args.rounds)
    latency(dataset)
    memory(
        ClipDataset(
            dataset.manifest, [SHORT_CLIP], seed=0, short_side=args.short_side, shuffle=True
        )
    )


def throughput(dataset: ClipDataset, num_steps: int, num_rounds: int) -> None:
    bare, loaded = [], []
    for number in range(num_rounds):
        first = number * num_steps
        bare.append(bare_loops(dataset, first, num_steps))
        loaded.append(loader(dataset, first, num_steps))
    print(f"two bare loops together: {describe(bare)} videos/s")
    print(f"loader with two workers: {describe(loaded)} videos/s")
    ratios = [a / b for a, b in zip(loaded, bare, strict=True)]
    print(f"loader / bare loops, round by round: {describe(ratios)}")


def describe(values: list[float]) -> str:
    return f"median {statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def bare_loops(dataset: ClipDataset, first: int, num_steps: int) -> float:
    """Videos per second of two processes that decode the samples of these steps and drop them."""
    context = multiprocessing.get_context("fork")
    queue: SimpleQueue = context.SimpleQueue()
    positions = range(first * VIDEOS_PER_STEP, (first + num_steps) * VIDEOS_PER_STEP)
    processes = [
        context.Process(target=decode_all, args=(dataset, positions[part::NUM_WORKERS], queue))
        for part in range(NUM_WORKERS)
    ]
    for process in processes:
        process.start()
    rates = [queue.get() for _ in processes]
    for process in processes:
        process.join()
    return sum(rates)


def decode_all(dataset: ClipDataset, positions: range, queue: SimpleQueue) -> None:
    torch.set_num_threads(1)
    dataset.decode(positions[0], 0)
    started = time.perf_counter()
    for position in positions:
        dataset.decode(position, 0)
    queue.put(len(positions) / (time.perf_counter() - started))


def loader(dataset: ClipDataset, first: int, num_steps: int) -> float:
    """Videos per second of the loader to a consumer that does nothing, from its first batch on."""
    batches = batches_of(dataset, first, first + num_steps + PREFETCHED_BATCHES)
    for _ in range(PREFETCHED_BATCHES):  # decoded ahead: they would count for nothing
        next(batches)
    started = time.perf_counter()
    for _ in range(num_steps):
        next(batches)
    elapsed = time.perf_counter() - started
    batches.close()
    return num_steps * VIDEOS_PER_STEP / elapsed


def batches_of(dataset: ClipDataset, first: int, last: int) -> Generator[RawClips, None, None]:
    positions = StepPositions(first, last, rank=0, world_size=1, videos_per_rank=VIDEOS_PER_STEP)
    return frame_batches(dataset, positions, num_workers=NUM_WORKERS, timeout_seconds=60)


def latency(dataset: ClipDataset) -> None:
    """`next` while all batches in flight are ready, as in training that computes longer than it decodes."""
    batches = batches_of(dataset, 0, 60)
    next(batches)
    milliseconds = []
    for _ in range(50):
        time.sleep(0.4)
        started = time.perf_counter()
        next(batches)
        milliseconds.append(1e3 * (time.perf_counter() - started))
    batches.close()
    print(f"next on a ready queue: {describe(milliseconds)} ms")


def memory(dataset: ClipDataset) -> None:
    """Resident memory of a process after 1,000 and after 10,000 clips."""
    context = multiprocessing.get_context("fork")
    queue: SimpleQueue = context.SimpleQueue()
    process = context.Process(target=decode_and_weigh, args=(dataset, queue))
    process.start()
    early, late = (queue.get() for _ in CLIPS_FOR_MEMORY)
    process.join()
    print(
        f"resident after {CLIPS_FOR_MEMORY[0]} clips {early / 2**20:.0f} MiB, "
        f"after {CLIPS_FOR_MEMORY[1]} {late / 2**20:.0f} MiB: {100 * (late / early - 1):+.1f} %"
    )


def decode_and_weigh(dataset: ClipDataset, queue: SimpleQueue) -> None:
    torch.set_num_threads(1)
    for position in range(CLIPS_FOR_MEMORY[-1]):
        dataset.decode(position, 0)
        if position + 1 in CLIPS_FOR_MEMORY:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            queue.put(pages * os.sysconf("SC_PAGE_SIZE"))


if __name__ == "__main__":
    main()
