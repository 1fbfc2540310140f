"""Batches of decoded frames, in an order that is a function of the step: worker processes on CPUs, threads on a GPU.

A rank's share of step s is the positions [s * G + rank * b, s * G + (rank + 1) * b) of global batch size G = b * ranks, so
the integer s resumes a run exactly, and another number of ranks shows the same samples in the same order.

A video that cannot be decoded, hangs its decoder, crashes it or makes it eat all memory is replaced: the n-th
replacement is a function of (seed, position, n), whichever worker finds out and however.
"""

import functools
import logging
import math
import mmap
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from videossl.config import Augmentation
from videossl.data.dataset import MAX_ATTEMPTS, ClipDataset, Failure, RawClips, collate
from videossl.data.transforms import transform_clips
from videossl.errors import UserError, VideoDecodeError
from videossl.rng import RowRandom
from videossl.types import ClipBatch, ClipSpec
from videossl.workers.pool import Outcome, TaskFailure, WorkerPool, can_fork
from videossl.workers.process import one_line

ALIGNMENT = 64  # bytes: a cache line


class FrameRing:
    """`num_slots` batches of up to `num_rows` samples whose frames have the `shapes` (K, T, 3, S, S), uint8.

    A slot is taken, its rows are written by any process, and `view` gives it to a reader. It is free again when the
    reader holds none of its frames any more.
    """

    def __init__(
        self, shapes: Mapping[ClipSpec, tuple[int, ...]], *, num_rows: int, num_slots: int
    ) -> None:
        self._shapes = dict(shapes)
        self._offsets: dict[ClipSpec, tuple[int, int]] = {}  # of frames and of times in a slot
        end = 0
        for spec, shape in self._shapes.items():
            times = end + _aligned(num_rows * math.prod(shape))
            self._offsets[spec] = end, times
            end = times + _aligned(8 * num_rows * math.prod(shape[:2]))
        self._ids = end
        self._slot_bytes = end + _aligned(8 * num_rows)
        self._memory = mmap.mmap(-1, num_slots * self._slot_bytes)
        # Single operations on sets need no lock, which the garbage collector might ask for where it is held already.
        self._free, self._viewed = set(range(num_slots)), set[int]()

    @property
    def num_viewed(self) -> int:
        """Slots whose frames a reader still holds."""
        return len(self._viewed)

    def take(self) -> int:
        """A free slot; there must be one."""
        return self._free.pop()

    def frames_of(self, slot: int, row: int) -> dict[ClipSpec, Tensor]:
        """Where the frames of one sample go; in a worker."""
        frames, _, _ = self._tensors(self._array(slot), row + 1)
        return {spec: clips[row] for spec, clips in frames.items()}

    def write(self, slot: int, row: int, sample: RawClips) -> None:
        """Puts one sample into its row, but for frames that are there already; in a worker."""
        frames, pts_seconds, video_ids = self._tensors(self._array(slot), row + 1)
        for spec, clip in sample.frames.items():
            if clip.data_ptr() != frames[spec][row].data_ptr():
                frames[spec][row].copy_(clip)
            pts_seconds[spec][row].copy_(sample.pts_seconds[spec])
        video_ids[row] = sample.video_ids

    def view(self, slot: int, num_rows: int) -> RawClips:
        """The first rows of a slot, whose frames are read in place; the slot is free when all of them are dropped."""
        array = self._array(slot)
        self._viewed.add(slot)
        # Every tensor made of the array keeps it alive, so that its end is the end of the last of them.
        weakref.finalize(array, self._release, slot).atexit = False
        frames, pts_seconds, video_ids = self._tensors(array, num_rows)
        times = {
            spec: pts.clone() for spec, pts in pts_seconds.items()
        }  # small, and kept for longer
        return RawClips(frames, times, video_ids.clone())

    def copy(self, slot: int, num_rows: int) -> RawClips:
        """The first rows of a slot, copied; the slot is free at once."""
        frames, pts_seconds, video_ids = self._tensors(self._array(slot), num_rows)
        batch = RawClips(
            {spec: clips.clone() for spec, clips in frames.items()},
            {spec: pts.clone() for spec, pts in pts_seconds.items()},
            video_ids.clone(),
        )
        self._free.add(slot)
        return batch

    def _release(self, slot: int) -> None:
        self._free.add(slot)
        self._viewed.discard(slot)

    def _array(self, slot: int) -> np.ndarray:
        start = slot * self._slot_bytes
        return np.frombuffer(self._memory, np.uint8, count=self._slot_bytes, offset=start)

    def _tensors(
        self, array: np.ndarray, num_rows: int
    ) -> tuple[dict[ClipSpec, Tensor], dict[ClipSpec, Tensor], Tensor]:
        def part(offset: int, shape: tuple[int, ...], dtype: type[np.generic]) -> Tensor:
            # Shaped by numpy, which takes a third of torch's time: a training step waits for it.
            return torch.from_numpy(np.ndarray((num_rows, *shape), dtype, array, offset))

        frames, pts_seconds = {}, {}
        for spec, shape in self._shapes.items():
            start, times = self._offsets[spec]
            frames[spec] = part(start, shape, np.uint8)
            pts_seconds[spec] = part(times, shape[:2], np.float64)
        return frames, pts_seconds, part(self._ids, (), np.int64)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


log = logging.getLogger("videossl")

PREFETCHED_BATCHES = 4  # being decoded, or ready: hides the spread of decoding times
HELD_BATCHES = (
    3  # by the consumer before it gets copies: the last, the next, and one on its way to a GPU
)

Batches = Generator[RawClips, None, None]


@dataclass
class DecodeStatus:
    """`ask()` says which videos are being decoded and for how long; empty where no process but this one knows."""

    ask: Callable[[], str] = str


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


@dataclass
class Sample:
    """One position on its way into a batch: the attempt that is due, and what became of those before."""

    position: int
    row: int = 0  # of the batch
    attempt: int = 0
    failures: list[Failure] = field(default_factory=list)

    def failed(self, failure: Failure) -> None:
        """Goes on to the next replacement. Raises UserError where as many failed as may."""
        self.failures.append(failure)
        self.attempt += 1
        if self.attempt >= MAX_ATTEMPTS:
            raise UserError(
                f"{MAX_ATTEMPTS} videos in a row cannot be decoded, the last being {failure.path} "
                f"({failure.reason}): run `videossl scan` again and use the new manifest"
            )


def frame_batches(
    dataset: ClipDataset,
    positions: StepPositions,
    *,
    num_workers: int,
    timeout_seconds: float,
    memory_gib: float | None = None,
    quarantine: MutableMapping[str, Failure] | None = None,
    pin_memory: bool = False,
    status: DecodeStatus | None = None,
) -> Batches:
    """The batches of these positions, decoded ahead by `num_workers` processes; 0 decodes in this one, when asked.

    A worker that needs longer than `timeout_seconds` or more memory than `memory_gib` for one video is replaced, and so
    is the video. Videos that took a worker down are added to `quarantine`, by name, and are not tried again while they
    are there. Close the generator to end the workers. Raises UserError if too many replacements fail in a row.
    """
    quarantine = {} if quarantine is None else quarantine
    if torch.device(dataset.device).type == "cuda":
        batches = _threaded_batches(
            dataset, positions, num_threads=num_workers or 1, quarantine=quarantine
        )
    elif num_workers == 0:
        batches = _unthreaded_batches(dataset, positions, quarantine)
    elif not can_fork():
        _say_no_fork()
        batches = _threaded_batches(
            dataset, positions, num_threads=num_workers, quarantine=quarantine
        )
    else:
        batches = _PooledLoader(dataset, positions, quarantine, num_workers, status).batches(
            timeout_seconds, memory_gib
        )
    return _pinned(batches) if pin_memory else batches


@functools.cache
def _say_no_fork() -> None:
    log.info(
        "decoding with threads: this system forks no processes, so a crash of a decoder ends the run"
    )


@dataclass(eq=False)
class _Batch:
    slot: int
    samples: list[Sample]
    num_missing: int


_Task = tuple[int, int, int, int]  # slot and row to write, position and attempt to decode


class _PooledLoader:
    """Worker processes that decode single samples into the shared slots of batches, which leave in order."""

    def __init__(
        self,
        dataset: ClipDataset,
        positions: StepPositions,
        quarantine: MutableMapping[str, Failure],
        num_workers: int,
        status: DecodeStatus | None = None,
    ) -> None:
        self.status = DecodeStatus() if status is None else status
        self.dataset, self.positions, self.quarantine = dataset, positions, quarantine
        self.num_rows = positions.videos_per_rank
        self.num_workers = min(num_workers, max(len(positions) * self.num_rows, 1))
        self.ring = FrameRing(
            dataset.frame_shapes(),
            num_rows=self.num_rows,
            num_slots=min(PREFETCHED_BATCHES, len(positions)) + HELD_BATCHES,
        )
        self.in_flight: deque[_Batch] = deque()

    def batches(self, timeout_seconds: float, memory_gib: float | None) -> Batches:
        """Starts the workers at the first batch, and ends them with the last or when closed."""
        pool = WorkerPool(
            self._decode,
            self.num_workers,
            initialize=_one_thread,
            timeout_seconds=timeout_seconds,
            memory_bytes=None if memory_gib is None else int(memory_gib * 2**30),
            # A step's work each: that is what they need while the training process computes and does not look.
            ahead=-(-self.num_rows // self.num_workers) + 1,
        )
        with pool:
            steps = iter(self.positions)
            self.status.ask = lambda: self._being_decoded(pool)
            for _ in range(PREFETCHED_BATCHES):
                self._start_next(pool, steps)
            while self.in_flight:
                self._account(pool, pool.wait(0))
                while self.in_flight[0].num_missing:
                    self._account(pool, pool.wait())
                batch = self.in_flight.popleft()
                frames = self._leave(batch)
                self._start_next(pool, steps)  # before the consumer computes, not after
                yield frames
                del frames  # or the slot would be held until the next batch is there

    def _being_decoded(self, pool: WorkerPool) -> str:
        said = []
        for (_, sample), seconds in pool.busy():
            row = self.dataset.row_at(sample.position, sample.attempt)
            said.append(f"{self.dataset.source_name(row)} for {seconds:.0f} s")
        return ", ".join(said)

    def _decode(self, task: _Task) -> None:
        """In a worker."""
        slot, row, position, attempt = task
        into = self.ring.frames_of(slot, row)
        self.ring.write(slot, row, self.dataset.decode(position, attempt, into))

    def _start_next(self, pool: WorkerPool, steps: Iterator[list[int]]) -> None:
        positions = next(steps, None)
        if positions is None:
            return
        samples = [Sample(position, row) for row, position in enumerate(positions)]
        batch = _Batch(self.ring.take(), samples, len(samples))
        self.in_flight.append(batch)
        pool.submit_all([self._task(batch, sample) for sample in samples])

    def _task(self, batch: _Batch, sample: Sample) -> tuple[tuple[_Batch, Sample], _Task]:
        """The key and what `_decode` gets."""
        _skip_quarantined(self.dataset, sample, self.quarantine)
        return (batch, sample), (batch.slot, sample.row, sample.position, sample.attempt)

    def _account(self, pool: WorkerPool, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            batch, sample = outcome.key
            if outcome.failure is None:
                batch.num_missing -= 1
                continue
            failure = self._failure(sample, outcome.failure)
            if failure.kind != "error":
                self.quarantine[failure.path] = failure
            sample.failed(failure)
            pool.submit(*self._task(batch, sample))

    def _failure(self, sample: Sample, failed: TaskFailure) -> Failure:
        error = failed.error
        if isinstance(error, UserError) and not isinstance(error, VideoDecodeError):
            raise error  # not the video's fault: a backend or a device is missing
        path = self.dataset.source_name(self.dataset.row_at(sample.position, sample.attempt))
        if isinstance(error, VideoDecodeError) and failed.kind == "error":
            return Failure(path, error.cause, error.backend, "error", failed.worker)
        return Failure(path, failed.cause, self.dataset.backend, failed.kind, failed.worker)

    def _leave(self, batch: _Batch) -> RawClips:
        """The frames where they lie, unless the consumer keeps so many batches that the workers would get no room."""
        is_kept = self.ring.num_viewed >= HELD_BATCHES
        leave = self.ring.copy if is_kept else self.ring.view
        failures = tuple(failure for sample in batch.samples for failure in sample.failures)
        return replace(leave(batch.slot, len(batch.samples)), failures=failures)


def _skip_quarantined(
    dataset: ClipDataset, sample: Sample, quarantine: MutableMapping[str, Failure]
) -> None:
    """Takes the failures of videos that have taken a worker down before for granted."""
    while quarantine:
        path = dataset.source_name(dataset.row_at(sample.position, sample.attempt))
        if path not in quarantine:
            return
        sample.failed(replace(quarantine[path], worker=None))


def _one_thread() -> None:
    torch.set_num_threads(1)


def _decode_here(
    dataset: ClipDataset, position: int, quarantine: MutableMapping[str, Failure]
) -> RawClips:
    """One sample in this process, which a decoder can still take down."""
    sample = Sample(position)
    while True:
        _skip_quarantined(dataset, sample, quarantine)
        path = dataset.source_name(dataset.row_at(position, sample.attempt))
        try:
            clips = dataset.decode(position, sample.attempt)
        except VideoDecodeError as error:
            sample.failed(Failure(path, error.cause, error.backend))
            continue
        except UserError:  # not the video's fault: a backend or a device is missing
            raise
        except Exception as error:  # a decoder's bug costs its video here as it does in a worker
            log.debug("decoding %s failed", path, exc_info=True)
            sample.failed(Failure(path, one_line(error), dataset.backend))
            continue
        return replace(clips, failures=tuple(sample.failures))


def _unthreaded_batches(
    dataset: ClipDataset, positions: StepPositions, quarantine: MutableMapping[str, Failure]
) -> Batches:
    for step_positions in positions:
        yield collate([_decode_here(dataset, p, quarantine) for p in step_positions])


def _threaded_batches(
    dataset: ClipDataset,
    positions: StepPositions,
    *,
    num_threads: int,
    quarantine: MutableMapping[str, Failure] | None = None,
) -> Batches:
    """Decodes with threads of this process: a CUDA context belongs to one process and never to its workers."""
    quarantine = {} if quarantine is None else quarantine
    pool = ThreadPoolExecutor(num_threads)
    try:
        queue: deque[list[Future[RawClips]]] = deque()
        for step_positions in positions:
            queue.append(
                [pool.submit(_decode_here, dataset, p, quarantine) for p in step_positions]
            )
            if len(queue) >= PREFETCHED_BATCHES:
                yield collate([future.result() for future in queue.popleft()])
        while queue:
            yield collate([future.result() for future in queue.popleft()])
    finally:
        pool.shutdown(cancel_futures=True)


def _pinned(batches: Batches) -> Batches:
    """Copies each batch to page-locked memory while the one before it is used."""
    with closing(batches), ThreadPoolExecutor(1) as thread:
        pinned: Future[RawClips] | None = None
        for batch in batches:
            ready, pinned = pinned, thread.submit(batch.pin_memory)
            del batch
            if ready is not None:
                yield ready.result()
        if pinned is not None:
            yield pinned.result()


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
