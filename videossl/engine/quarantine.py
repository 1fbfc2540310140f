"""Videos that failed in a run: how often, why, and when there are too many of them.

`quarantine.jsonl` in the run folder has a line per failure and is read back on resume: a video that took a worker down
once is not tried again.
"""

import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from videossl.data.dataset import Failure
from videossl.errors import UserError

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
