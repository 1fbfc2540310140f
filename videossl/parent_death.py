"""Processes that end with the one that started them, whatever ended that: workers at once, ranks of torchrun with a save."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable

from videossl import interrupts

POLL_SECONDS = 1.0  # between looks whether the parent is still the same; chosen
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
EXIT_CODE = 75  # EX_TEMPFAIL: the same command goes on


def end_with_parent(*, by_main_thread: bool = True) -> None:
    """Has the system kill this worker process when its parent dies; to be called first in it.

    Linux means the thread that started the worker: if that was not the main one, which lives as long as the process, a
    thread of ours watches, as it does on other systems.
    """
    import ctypes
    import multiprocessing

    parent = multiprocessing.parent_process()
    assert parent is not None
    assert parent.pid is not None
    if by_main_thread and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent.pid:  # it died before it was asked for
            os._exit(0)
    else:
        _watch(parent.pid, lambda: os._exit(0))


class _Agent:
    pid = 0  # of torchrun; 0 without
    when_gone: Callable[[], None] | None = None


def watch_agent() -> None:
    """In a rank of torchrun: ends it when torchrun is gone, unless `when_agent_goes` has other plans."""
    if "TORCHELASTIC_RUN_ID" in os.environ and not _Agent.pid:
        _Agent.pid = os.getppid()
        _watch(_Agent.pid, _leave)


def when_agent_goes(leave: Callable[[], None] | None) -> None:
    """Sets what is done, in another thread, when torchrun is gone; None: the process ends at once."""
    _Agent.when_gone = leave


def is_agent_gone() -> bool:
    """Whether torchrun started this process and is no more."""
    return _Agent.pid not in (0, os.getppid())


def _leave() -> None:
    if _Agent.when_gone is not None:
        _Agent.when_gone()
    else:
        end_without_agent()


def end_without_agent() -> None:
    """Ends a rank that torchrun has left alone with nothing to save."""
    interrupts.end_process(
        "torchrun is gone: the same command goes on from what is saved", EXIT_CODE
    )


def _watch(parent: int, then: Callable[[], None]) -> None:
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        then()

    threading.Thread(target=watch, name="parent", daemon=True).start()
