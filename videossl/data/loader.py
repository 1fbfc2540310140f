"""Batches of decoded frames, in an order that is a function of the step: worker processes on CPUs, threads on a GPU.

A rank's share of step s is the positions [s * G + rank * b, s * G + (rank + 1) * b) of global batch size G = b * ranks, so
the integer s resumes a run exactly, and another number of ranks shows the same samples in the same order.

A video that cannot be decoded, hangs its decoder, crashes it or makes it eat all memory is replaced: the n-th
replacement is a function of (seed, position, n), whichever worker finds out and however.
"""

import functools
import logging
from collections import deque
from collections.abc import Callable, Generator, Iterator, MutableMapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace

import torch

from videossl.data.dataset import MAX_ATTEMPTS, ClipDataset, Failure, RawClips, collate
from videossl.data.frame_ring import FrameRing
from videossl.data.transforms import Augmentation, transform_clips
from videossl.errors import UserError, VideoDecodeError
from videossl.rng import RowRandom
from videossl.types import ClipBatch
from videossl.worker_process import one_line
from videossl.workers import Outcome, TaskFailure, WorkerPool, can_fork

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
