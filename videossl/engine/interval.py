"""What has happened since the last log line: results, steps, seconds, and the part of them spent waiting for data."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from videossl.engine.tallies import Tallies


class Interval:
    """Begins at `step`; `tallies` may carry on those of a run that was stopped between two log lines."""

    def __init__(self, step: int, tallies: Tallies | None = None) -> None:
        self.tallies = Tallies() if tallies is None else tallies
        self.first_step, self.waited = step, 0.0
        self._seconds, self._since = 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Of training, without pauses."""
        return self._seconds + time.perf_counter() - self._since

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Does not count the time inside: evaluation, saving."""
        self._seconds += time.perf_counter() - self._since
        try:
            yield
        finally:
            self._since = time.perf_counter()
