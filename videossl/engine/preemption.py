"""Stopping when a scheduler asks: SIGTERM or SIGUSR1 to any rank ends the step on all of them, with a checkpoint.

The ranks agree by an all-reduce of one number per poll, on gloo and started one poll ahead: no GPU waits for it, and a
signal is obeyed one step later.
"""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

SIGNALS = ("SIGTERM", "SIGUSR1")


class StopAsked(Exception):
    """Raised by `check` on every rank at the same poll."""


class StopRequest:
    """Takes the signals while it is entered; every rank must call `check` equally often."""

    def __init__(self) -> None:
        self.signal_name: str | None = None  # that this rank got
        self._group: dist.ProcessGroup | None = (
            dist.new_group(backend="gloo") if dist.is_initialized() else None  # type: ignore[assignment]
        )
        self._work: dist.Work | None = None
        self._flag = torch.zeros(1)
        self._previous: dict[int, Any] = {}

    def check(self) -> None:
        """Raises StopAsked once any rank was asked to stop."""
        if self._group is None:
            if self.signal_name is not None:
                raise StopAsked
            return
        if self._work is not None:
            self._work.wait()
            self._work = None
            if self._flag.item():
                raise StopAsked
        self._flag = torch.tensor([float(self.signal_name is not None)])
        self._work = dist.all_reduce(
            self._flag, dist.ReduceOp.MAX, group=self._group, async_op=True
        )

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for name in SIGNALS:
                if hasattr(signal, name):
                    number = getattr(signal, name)
                    self._previous[number] = signal.signal(number, self._take)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._work is not None and kind is None:
            self._work.wait()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name
