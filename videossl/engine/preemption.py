"""Stopping when asked: SIGTERM, SIGUSR1 or Ctrl-C to any rank, or the end of its torchrun, ends the step on all of them,
with a checkpoint.

The ranks agree by an all-reduce of one number per poll, on gloo and started one poll ahead: no GPU waits for it, and a
signal is obeyed one step later.
"""

import logging
import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

from videossl import interrupts, parent_death

log = logging.getLogger("videossl")

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
        if line := interrupts.ignored_line():
            log.info(line)
        parent_death.when_agent_goes(self._take_end_of_agent)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._work is not None and kind is None:
            self._work.wait()
        parent_death.when_agent_goes(None)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self.is_interrupt and kind is None:
            interrupts.note_late()

    def _take(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGINT:
            self.reason = self.reason or signal.Signals(number).name
        elif not self.is_training:
            self._previous[number](number, frame)
        elif interrupts.is_repeat() and self.is_interrupt:
            return
        elif self.is_interrupt:
            interrupts.end()
        else:
            self.reason = "SIGINT"
            if sys.stderr.isatty() and interrupts.speaks():
                os.write(2, b"\nending the step and saving; Ctrl-C again ends at once\n")

    def _take_end_of_agent(self) -> None:
        """In another thread. After a Ctrl-C it is the second one, which torchrun does not hand on."""
        if not self.is_training or self.is_interrupt:
            parent_death.end_without_agent()
        self.reason = REASONS[-1]
