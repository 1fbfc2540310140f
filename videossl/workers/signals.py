"""Signals and deaths: Ctrl-C while a command runs, and the end of the process that started this one."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import (
    FrameType,
    TracebackType,
)  # nothing else: what is imported before `take` can be interrupted

EXIT_CODE = 130  # as shells say of SIGINT
GRACE_SECONDS = 1.0  # until a loop must have asked; chosen
# A launcher hands on what its process group has got already: to a rank, signals so close are one. Chosen.
REPEAT_SECONDS = 1.0


class _Taken:
    """What the handler knows; of this process, and not of those forked from it."""

    owner = 0  # the process that took the signal; 0: none has, and Python's own handler is at work
    command = ""
    is_asked = False
    is_over = False  # the command is done: nobody will ask any more
    is_ignored = False  # by whom started us, and not said yet
    last = float("-inf")


def take(command: str) -> None:
    """Installs the handler for the life of this process, unless whoever started it had SIGINT ignored."""
    _Taken.command = command
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        _Taken.is_ignored = True
        return
    _Taken.owner = os.getpid()
    signal.signal(signal.SIGINT, _note)


def check() -> None:
    """Raises KeyboardInterrupt if Ctrl-C was pressed: for loops, where nothing is half done."""
    if _Taken.is_asked and not _Taken.is_over:
        _Taken.is_over = True  # what cleans up now is not asked again, and has the time it takes
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise KeyboardInterrupt


def finish(exit_code: int) -> None:
    """The command is done: a Ctrl-C that nobody has asked for ends the process now, a later one at once."""
    _Taken.is_over = True
    if _Taken.is_asked and exit_code == 0:  # else it is said how the command ended
        end()


def note_late() -> None:
    """A Ctrl-C that a loop took when it had nothing left to do: the command ends as interrupted all the same."""
    _Taken.is_asked = True


def end() -> None:
    """Ends this process here and now, with one line, where `take` was called; raises KeyboardInterrupt elsewhere."""
    if not _Taken.owner:
        raise KeyboardInterrupt
    if _Taken.owner == os.getpid():
        end_process("interrupted", EXIT_CODE)


def end_process(text: str, exit_code: int) -> None:
    """One line, the exit code, and no exit handlers: they may hang, and be interrupted."""
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except (RuntimeError, OSError, ValueError):
        pass  # interrupted while it was writing, or closed
    line = f"videossl {_Taken.command}: {text}\n" if speaks() else ""
    if os.isatty(2):
        line = "\x1b[?25h\n" + line  # the cursor, which a progress bar hides
    try:
        os.write(2, line.encode())
    finally:
        os._exit(exit_code)


def speaks() -> bool:
    """Whether this process speaks for its host: torchrun starts several, and one line is enough."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def is_repeat() -> bool:
    """Whether this signal is the last one once more."""
    now = time.monotonic()
    is_close = now - _Taken.last < REPEAT_SECONDS
    _Taken.last = now
    return is_close and "RANK" in os.environ


def ignored_line() -> str:
    """Once, where SIGINT is ignored: how to end the command instead. Else empty."""
    was_ignored, _Taken.is_ignored = _Taken.is_ignored, False
    if not was_ignored:
        return ""
    return (
        "Ctrl-C (SIGINT) is ignored, as whatever started this command set it (a job in the background of a script, or "
        f"trap '' INT): kill {os.getpid()} ends it"
    )


class held:
    """Keeps SIGINT waiting while a process is started, which inherits that it is not told of it; a context manager."""

    def __enter__(self) -> None:
        self._before = _mask(signal.SIG_BLOCK, {signal.SIGINT})

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _mask(signal.SIG_SETMASK, self._before)


def _mask(how: int, signals: set) -> set:
    return signal.pthread_sigmask(how, signals) if hasattr(signal, "pthread_sigmask") else set()


def _note(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _Taken.owner:
        return  # a fork that has not come to its own handlers
    if is_repeat() and _Taken.is_asked:
        return
    if _Taken.is_asked or _Taken.is_over or not hasattr(signal, "setitimer"):
        end()
    _Taken.is_asked = True
    signal.signal(signal.SIGALRM, lambda *_: end())
    signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)


POLL_SECONDS = 1.0  # between looks whether the parent is still the same; chosen
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
_GOES_ON = 75  # EX_TEMPFAIL: the same command goes on


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
    end_process("torchrun is gone: the same command goes on from what is saved", _GOES_ON)


def _watch(parent: int, then: Callable[[], None]) -> None:
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        then()

    threading.Thread(target=watch, name="parent", daemon=True).start()
