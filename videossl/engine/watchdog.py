"""A rank that stands still or dies is named, with its step and its videos, before any time-out of the communication.

A thread in each rank writes down what the rank is at in torchrun's store. All ranks do the same things in the same order, so
the one that has done the fewest is the one that the others wait for; one that writes no more is dead or stopped.
"""

import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

from videossl.distributed import World
from videossl.workers import signals
from videossl.workers.signals import is_agent_gone

log = logging.getLogger("videossl")

EXIT_CODE = 70  # EX_SOFTWARE of sysexits.h
MAX_PULSE_SECONDS = 1.0  # between two looks, and two entries in the store; chosen
PULSES_TO_ANSWER = 4  # without an entry, until a rank counts as gone; chosen
_KEY = "videossl/watch/"


@dataclass(frozen=True)
class _Seen:
    """What a rank has last written."""

    rank: int
    pulse: int
    num_done: int
    step: int
    doing: str


class Watchdog:
    """Ends the process when it has stood still for `seconds`, after one line by the first rank to notice."""

    def __init__(self, world: World, seconds: float) -> None:
        self._world, self._limit = world, seconds
        self._store = world.store.clone() if world.store is not None else None
        self._pulse_seconds = min(MAX_PULSE_SECONDS, seconds / 10)
        self._num_done, self._num_pulses = 0, 0
        self._step, self._doing = 0, "starting"
        self._details: Callable[[], str] = str
        self._since = time.monotonic()
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    def note(self, step: int, doing: str, details: Callable[[], str] = str) -> None:
        """The rank begins something; every rank must call this equally often. `details` is asked from another thread."""
        self._step, self._doing, self._details = step, doing, details
        self._num_done += 1
        self._since = time.monotonic()

    def lost(self) -> str | None:
        """After a failed exchange: one line about the ranks that have gone, None if all are still there.

        Another rank may have said it already: then it is empty.
        """
        gone = [seen for seen in self._others() if seen is not None] if self._store else []
        if not gone:
            return None
        text = "; ".join(
            f"rank {seen.rank} died, or was stopped, at step {seen.step} ({seen.doing})"
            for seen in gone
        )
        return text if self._is_first() else ""

    def __enter__(self) -> Self:
        self._since = time.monotonic()
        self._is_over.clear()
        self._publish()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_over.set()
        if self._thread is not None:
            self._thread.join()
        if kind is None and self._store is not None:  # it is not gone, and writes no more
            self._store.delete_key(f"{_KEY}{self._world.rank}")

    def _watch(self) -> None:
        while not self._is_over.wait(self._pulse_seconds):
            try:
                self._publish()
                if time.monotonic() - self._since > self._limit:
                    self._end(self._diagnosis())
            except RuntimeError as error:  # torch's for a store that does not answer
                if not self._is_over.is_set() and not is_agent_gone():  # which says it itself
                    log.warning("the watchdog stops: torchrun's store does not answer (%s)", error)
                return

    def _end(self, text: str) -> None:
        if self._is_first():
            log.error("%s; the same command goes on from the last checkpoint", text)
        for handler in (*logging.getLogger().handlers, *log.handlers):
            handler.flush()
        sys.stderr.flush()
        for child in multiprocessing.active_children():  # a hung decoder would outlive this process
            child.kill()
        os._exit(EXIT_CODE)  # the main thread cannot: it stands still

    def _diagnosis(self) -> str:
        still = f"for {self._limit:g} s (train.watchdog_seconds)"
        gone = self._others() if self._store else []
        if gone:
            said = [f"rank {s.rank} at step {s.step} ({s.doing})" for s in gone]
            return f"no answer {still} from {', '.join(said)}: it died or was stopped"
        everyone = [seen for rank in range(self._world.size) if (seen := self._read(rank))]
        if not everyone:
            everyone = [self._own()]
        fewest = min(seen.num_done for seen in everyone)
        late = [seen for seen in everyone if seen.num_done == fewest]
        said = [f"rank {s.rank} at step {s.step} ({s.doing})" for s in late]
        return f"no progress {still} of {', '.join(said)}"

    def _others(self) -> list[_Seen]:
        """The ranks that write no more."""
        ranks = [rank for rank in range(self._world.size) if rank != self._world.rank]
        before = {rank: self._read(rank) for rank in ranks}
        for _ in range(PULSES_TO_ANSWER):
            time.sleep(self._pulse_seconds)
            self._publish()  # a rank that looks for the gone is not itself one of them
        return [seen for rank in ranks if (seen := before[rank]) and self._read(rank) == seen]

    def _own(self) -> _Seen:
        details = self._details()
        doing = f"{self._doing}: {details}" if details else self._doing
        return _Seen(self._world.rank, self._num_pulses, self._num_done, self._step, doing)

    def _publish(self) -> None:
        self._num_pulses += 1
        if self._store is not None:
            own: dict[str, Any] = vars(self._own())
            self._store.set(f"{_KEY}{self._world.rank}", json.dumps(own))

    def _read(self, rank: int) -> _Seen | None:
        key = f"{_KEY}{rank}"
        if self._store is None or not self._store.check([key]):
            return None
        return _Seen(**json.loads(self._store.get(key)))

    def _is_first(self) -> bool:
        return self._store is None or self._store.add(f"{_KEY}said", 1) == 1


def is_broken_exchange(error: RuntimeError) -> bool:
    """Whether an error may come from another rank's end: gloo raises plain RuntimeErrors."""
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "peer" in str(error)


SIGNALS = ("SIGUSR1", "SIGTERM", "SIGINT")
REASONS = (*SIGNALS, "the end of torchrun")  # the ranks agree on the last of those that they have


class StopAsked(Exception):
    """Raised by `check` on every rank at the same poll."""


class StopRequest:
    """Takes the signals while it is entered; every rank must call `check` equally often.

    Ctrl-C waits for a `check` only while `is_training`: before, there is nothing to save. The second one ends the process.
    """

    def __init__(self) -> None:
        self.reason: str | None = None  # of this rank; of all, once StopAsked was raised
        self.is_training = False
        self._group: dist.ProcessGroup | None = (
            dist.new_group(backend="gloo") if dist.is_initialized() else None  # type: ignore[assignment]
        )
        self._work: dist.Work | None = None
        self._flag = torch.zeros(1)
        self._previous: dict[int, Any] = {}

    def check(self) -> None:
        """Raises StopAsked once any rank was asked to stop."""
        if self._group is None:
            if self.reason is not None:
                raise StopAsked
            return
        if self._work is not None:
            self._work.wait()
            self._work = None
            if self._flag.item():
                self.reason = REASONS[int(self._flag.item()) - 1]
                raise StopAsked
        number = 0 if self.reason is None else REASONS.index(self.reason) + 1
        self._flag = torch.tensor([float(number)])
        self._work = dist.all_reduce(
            self._flag, dist.ReduceOp.MAX, group=self._group, async_op=True
        )

    @property
    def is_interrupt(self) -> bool:
        """Whether it is Ctrl-C that ends the run."""
        return self.reason == "SIGINT"

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for name in SIGNALS:
                number = getattr(signal, name, None)
                is_ignored = name == "SIGINT" and not callable(signal.getsignal(signal.SIGINT))
                if number is not None and not is_ignored:
                    self._previous[number] = signal.signal(number, self._take)
        if line := signals.ignored_line():
            log.info(line)
        signals.when_agent_goes(self._take_end_of_agent)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._work is not None and kind is None:
            self._work.wait()
        signals.when_agent_goes(None)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self.is_interrupt and kind is None:
            signals.note_late()

    def _take(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGINT:
            self.reason = self.reason or signal.Signals(number).name
        elif not self.is_training:
            self._previous[number](number, frame)
        elif signals.is_repeat() and self.is_interrupt:
            return
        elif self.is_interrupt:
            signals.end()
        else:
            self.reason = "SIGINT"
            if sys.stderr.isatty() and signals.speaks():
                os.write(2, b"\nending the step and saving; Ctrl-C again ends at once\n")

    def _take_end_of_agent(self) -> None:
        """In another thread. After a Ctrl-C it is the second one, which torchrun does not hand on."""
        if not self.is_training or self.is_interrupt:
            signals.end_without_agent()
        self.reason = REASONS[-1]
