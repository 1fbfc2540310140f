"""Clips for one rank: decoded ahead, bad videos written down, moved to the device and augmented there."""

import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from videossl.config import Config
from videossl.data.dataset import ClipDataset, Failure, RawClips
from videossl.data.loader import Batches, DecodeStatus, StepPositions, frame_batches, to_clip_batch
from videossl.distributed import World
from videossl.errors import UserError
from videossl.rng import RowRandom, row_random
from videossl.types import ClipBatch

log = logging.getLogger("videossl")

MIN_SAMPLES_TO_ABORT = 50  # before the share of bad videos is judged
NUM_NAMED = 10  # of the worst files, where a run stops


class Quarantine:
    """One rank's account of failures. `videos` are those not to be tried again, by name."""

    def __init__(self, out: Path, *, rank: int, max_bad_fraction: float) -> None:
        self.videos: dict[str, Failure] = {}
        self.num_failures = 0  # among the samples trained on, since this process began
        self._num_samples = 0
        self._counts: Counter[str] = Counter()  # of this rank in this folder, as in the file
        self._path = out / "quarantine.jsonl"
        self._rank, self._max_bad_fraction = rank, max_bad_fraction
        self._said: set[str] = set()
        self._read()

    def record(self, failures: Sequence[Failure], *, step: int) -> None:
        """Writes the failures down, and says each video's first one in the log."""
        for failure in failures:
            self._counts[failure.path] += 1
            if failure.path not in self._said:
                self._said.add(failure.path)
                log.warning("replaced %s: %s: %s", failure.path, failure.kind, failure.reason)
            self._write(failure, step)

    def count(self, failures: Sequence[Failure], *, num_samples: int) -> None:
        """Takes a batch trained on into account.

        Raises UserError, with the worst files, when more samples failed than `max_bad_fraction` allows.
        """
        self._num_samples += num_samples
        self.num_failures += len(failures)
        limit = self._max_bad_fraction * self._num_samples
        if self._num_samples >= MIN_SAMPLES_TO_ABORT and self.num_failures > limit:
            worst = ", ".join(
                f"{path} ({count}x)" for path, count in self._counts.most_common(NUM_NAMED)
            )
            raise UserError(
                f"{self.num_failures} of {self._num_samples} samples could not be decoded, more than "
                f"data.max_bad_fraction {self._max_bad_fraction:g} allows; the worst: {worst}; the reasons are in "
                f"{self._path}: run `videossl scan` again, or raise the limit"
            )

    def _write(self, failure: Failure, step: int) -> None:
        record = {
            "path": failure.path,
            "backend": failure.backend,
            "kind": failure.kind,
            "error": failure.reason,
            "rank": self._rank,
            "worker": failure.worker,
            "count": self._counts[failure.path],
            "step": step,
        }
        line = (json.dumps(record) + "\n").encode()
        try:
            # All ranks append to one file: lines stay whole if each is one write at the end.
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                os.write(file, line)
            finally:
                os.close(file)
        except OSError as error:  # what that means for the run, its next checkpoint says
            log.warning("%s cannot be written: %s", self._path, error.strerror)

    def _read(self) -> None:
        if not self._path.exists():
            return
        for line in self._path.read_text(errors="replace").splitlines():
            try:
                record = json.loads(line)
                failure = Failure(
                    record["path"], record["error"], record["backend"], record["kind"]
                )
                is_own = record["rank"] == self._rank
            except (ValueError, KeyError, TypeError):
                continue  # the last line of a machine that lost its power
            if is_own:
                self._counts[failure.path] += 1
            self._said.add(failure.path)
            if failure.kind != "error":
                self.videos[failure.path] = failure


class Feed:
    """What a rank is fed with. `status.ask()` says which videos are being decoded."""

    def __init__(self, config: Config, world: World, quarantine: Quarantine) -> None:
        self.quarantine, self.status = quarantine, DecodeStatus()
        self.device, self.is_main = world.device, world.is_main
        self._config, self._world = config, world
        self._augmentation = config.augment
        self._videos_per_rank = config.data.videos_per_step // world.size
        self._stream = torch.cuda.Stream(world.device) if world.device.type == "cuda" else None

    def batches(self, data: ClipDataset, first: int, last: int) -> Batches:
        """This rank's share of the batches [first, last), decoded ahead; close it to end the workers."""
        positions = StepPositions(
            first,
            last,
            rank=self._world.rank,
            world_size=self._world.size,
            videos_per_rank=self._videos_per_rank,
        )
        return frame_batches(
            data, positions, **self._options(), pin_memory=self._stream is not None
        )

    def first_videos(self, data: ClipDataset, count: int) -> ClipBatch:
        """The first `count` videos without augmentation: the same ones on every rank."""
        positions = StepPositions(0, 1, rank=0, world_size=1, videos_per_rank=count)
        (raw,) = frame_batches(data, positions, **self._options())
        self.quarantine.record(raw.failures, step=0)
        return to_clip_batch(raw, self._world.device, self._augmentation, rng=None)

    def clips(self, raw: RawClips, rng: RowRandom | None) -> ClipBatch:
        """A batch on the device, augmented, or in its evaluation form without `rng`.

        On a GPU a stream of its own copies and augments while the step before is still being computed.
        """
        device = self._world.device
        if self._stream is None:
            return to_clip_batch(raw, device, self._augmentation, rng)
        with torch.cuda.stream(self._stream):
            batch = to_clip_batch(raw, device, self._augmentation, rng)
        current = torch.cuda.current_stream(device)
        current.wait_stream(self._stream)
        for clip in batch.clips.values():
            clip.record_stream(
                current
            )  # its memory is free for the other stream only when this one is done
        return batch

    def rows(self, purpose: str, index: int, num_rows: int) -> RowRandom:
        """The draws of this rank's rows of a global batch."""
        return row_random(
            self._config.seed,
            purpose,
            index,
            rank=self._world.rank,
            world_size=self._world.size,
            num_rows=num_rows,
            device=self._world.device,
        )

    def _options(self) -> dict[str, Any]:
        data = self._config.data
        return {
            "num_workers": data.num_workers,
            "timeout_seconds": data.timeout_seconds,
            "memory_gib": data.worker_memory_gib,
            "quarantine": self.quarantine.videos,
            "status": self.status,
        }
