"""Batches of decoded frames, in an order that is a function of the step: worker processes on CPUs, threads on a GPU.

A rank's share of step s is the positions [s * G + rank * b, s * G + (rank + 1) * b) of global batch size G = b * ranks, so
the integer s resumes a run exactly, and another number of ranks shows the same samples in the same order.
"""

import logging
import multiprocessing
import signal
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch.utils.data import DataLoader

from videossl.data.dataset import ClipDataset, RawClips, collate
from videossl.data.transforms import Augmentation, transform_clips
from videossl.errors import UserError
from videossl.rng import RowRandom
from videossl.types import ClipBatch

log = logging.getLogger("videossl")

PREFETCHED_BATCHES = 3  # per worker: hides the spread of decoding times


class StepPositions:
    """The positions of one rank, a list per step, from `first_step` on to `last_step` (exclusive)."""

    def __init__(
        self, first_step: int, last_step: int, *, rank: int, world_size: int, videos_per_rank: int
    ) -> None:
        self.steps = range(first_step, last_step)
        self.rank, self.world_size, self.videos_per_rank = rank, world_size, videos_per_rank

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            first = (step * self.world_size + self.rank) * self.videos_per_rank
            yield list(range(first, first + self.videos_per_rank))


def frame_batches(
    dataset: ClipDataset,
    positions: StepPositions,
    *,
    num_workers: int,
    timeout_seconds: float,
    pin_memory: bool = False,
) -> Iterator[RawClips]:
    """The batches of these positions, decoded ahead.

    Raises UserError if no batch comes for `timeout_seconds`: one video hangs its decoder.
    """
    if torch.device(dataset.device).type == "cuda":
        yield from _threaded_batches(dataset, positions, num_threads=max(num_workers, 1))
        return
    loader: DataLoader[RawClips] = DataLoader(
        dataset,
        batch_sampler=positions,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        timeout=timeout_seconds if num_workers else 0,
        prefetch_factor=PREFETCHED_BATCHES if num_workers else None,
        worker_init_fn=_quiet_worker,
        multiprocessing_context=_start_method() if num_workers else None,
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "timed out" in str(error):
            raise UserError(
                f"no batch for {timeout_seconds:g} s: a video hangs its decoder or the disk stands still; "
                "set decode.backend=pyav, or raise data.timeout_seconds"
            ) from error
        raise


def _start_method() -> str:
    """fork where there is fork: a worker then costs no second import of torch."""
    return "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"


def _quiet_worker(worker_index: int) -> None:
    """One thread a worker, and signals are the rank's business: it ends its workers."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _threaded_batches(
    dataset: ClipDataset, positions: StepPositions, *, num_threads: int
) -> Iterator[RawClips]:
    """Decodes with threads of this process: a CUDA context belongs to one process and never to its workers."""
    with ThreadPoolExecutor(num_threads) as pool:
        queue: deque[list[Future[RawClips]]] = deque()
        for step_positions in positions:
            queue.append(
                [pool.submit(dataset.__getitem__, position) for position in step_positions]
            )
            if len(queue) > PREFETCHED_BATCHES:
                yield collate([future.result() for future in queue.popleft()])
        while queue:
            yield collate([future.result() for future in queue.popleft()])


def to_clip_batch(
    batch: RawClips, device: torch.device, augmentation: Augmentation, rng: RowRandom | None
) -> ClipBatch:
    """Moves frames to the device and makes clips of them there; `rng` None is the evaluation form."""
    clips = {
        spec: transform_clips(
            frames.to(device, non_blocking=True), spec.crop_size, augmentation, rng
        )
        for spec, frames in batch.frames.items()
    }
    return ClipBatch(clips, batch.pts_seconds, batch.video_ids)
