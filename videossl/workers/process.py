"""A worker process: what it runs, how it is started and watched, and the pipes through which it is told and answers."""

import contextlib
import errno
import logging
import os
import pickle
import re
import selectors
import signal
import socket
import struct
import threading
import time
import traceback
import weakref
from collections.abc import Callable, MutableSequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from videossl.workers.signals import end_with_parent

LENGTH = struct.Struct("<I")
CHUNK_BYTES = 1 << 16

# All pools' ends in this process. A forked worker closes its copies, or nobody would notice that a pool has died.
_pool_ends: "weakref.WeakSet[socket.socket]" = weakref.WeakSet()


class PoolEnd:
    """Sends and receives without waiting; `selector` knows it by `owner` and wakes for what it waits for."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._socket, self.worker_end = socket.socketpair()
        self._socket.setblocking(False)
        _pool_ends.add(self._socket)
        self._selector = selector
        self._inbox, self._outbox = bytearray(), bytearray()

    def watch(self, owner: object) -> None:
        """From here on the selector reports `owner` when there is something to read."""
        self.worker_end.close()  # the worker has its own copy now
        self._selector.register(self._socket, selectors.EVENT_READ, owner)

    def queue(self, message: bytes) -> None:
        """Has a message go out at the next `flush`."""
        self._outbox += LENGTH.pack(len(message)) + message

    def flush(self) -> None:
        """Writes what is queued, as far as the other side has room.

        Where that is gone the queue is forgotten, and `receive` finds it out.
        """
        try:
            while self._outbox:
                del self._outbox[: self._socket.send(self._outbox)]
        except BlockingIOError:
            pass  # the selector says when there is room again
        except OSError:
            self._outbox.clear()
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._outbox else 0)
        key = self._selector.get_key(self._socket)
        if key.events != wanted:
            self._selector.modify(self._socket, wanted, key.data)

    def receive(self) -> tuple[list[bytes], bool]:
        """The messages that have come whole, and whether the other side is gone."""
        is_over = False
        while True:
            try:
                data = self._socket.recv(CHUNK_BYTES)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            self._inbox += data
            if len(data) < CHUNK_BYTES:
                is_over = not data
                break
        return self._whole_messages(), is_over

    def close(self) -> None:
        """Frees both ends."""
        with contextlib.suppress(KeyError):  # never watched
            self._selector.unregister(self._socket)
        self._socket.close()
        self.worker_end.close()

    def _whole_messages(self) -> list[bytes]:
        messages, start = [], 0
        while len(self._inbox) - start >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._inbox, start)
            end = start + LENGTH.size + length
            if len(self._inbox) < end:
                break
            messages.append(bytes(self._inbox[start + LENGTH.size : end]))
            start = end
        del self._inbox[:start]
        return messages


def send(link: socket.socket, message: bytes) -> None:
    """Sends from a worker; waits for room. Raises OSError where the pool is gone."""
    link.sendall(LENGTH.pack(len(message)) + message)


def receive(link: socket.socket) -> bytes | None:
    """The next message to a worker, waiting for it; None where the pool is gone."""
    head = _read(link, LENGTH.size)
    return None if head is None else _read(link, LENGTH.unpack(head)[0])


def close_inherited() -> None:
    """Closes the pools' ends that a forked process has copies of."""
    for end in list(_pool_ends):
        end.close()


def _read(link: socket.socket, num_bytes: int) -> bytes | None:
    data = bytearray()
    while len(data) < num_bytes:
        try:
            chunk = link.recv(num_bytes - len(data))
        except OSError:
            return None
        if not chunk:
            return None
        data += chunk
    return bytes(data)


SERIAL = struct.Struct("<Q")
STARTING, IDLE = -1.0, 0.0  # in the clock, in place of a task's serial number (1, 2, ...)
# A worker ends itself this many times the limit after the pool should have ended it: its pool is dead, or does not look.
ORPHAN_FACTOR = 10
RECYCLE_SHARE = 0.5  # of the memory limit: growth that lives on after a task is a leak; chosen
# Sent by people, schedulers and the kernel's memory killer, hardly by a decoder to itself.
OUTSIDE_SIGNALS = ("SIGKILL", "SIGTERM", "SIGHUP")
OUT_OF_MEMORY = re.compile(r"can(no|')t allocate|bad_alloc|out of memory", re.IGNORECASE)


@dataclass(frozen=True)
class Job:
    """What a worker is born with."""

    function: Callable[[Any], Any]
    initialize: Callable[[], None] | None
    timeout_seconds: float | None
    memory_bytes: int | None


class Answer(NamedTuple):
    """The outcome of a task, or of the worker itself (serial 0). `payload` is the pickled value or exception."""

    serial: int
    kind: Literal["value", "error", "memory", "start", "log"]
    payload: bytes = b""
    text: str = ""  # one line: what went wrong
    grown_bytes: int = 0  # not 0: the worker has leaked this much and ends now


def serve(
    link: socket.socket,
    clock: MutableSequence[float],
    index: int,
    job: Job,
    log_level: int,
    by_main_thread: bool,
) -> None:
    """Runs the tasks that come over the link until it closes, then ends the process. Never returns."""
    end_with_parent(by_main_thread=by_main_thread)
    close_inherited()
    try:
        _Worker(link, clock, index, job, log_level).run()
    except BaseException:  # the last stop of this process: nothing above could report it
        traceback.print_exc()
        os._exit(1)
    os._exit(0)  # no exit handlers: they belong to the process that this one was forked from


class _Worker:
    def __init__(
        self,
        link: socket.socket,
        clock: MutableSequence[float],
        index: int,
        job: Job,
        log_level: int,
    ) -> None:
        self.link, self.clock, self.index, self.job = link, clock, index, job
        self._sending = threading.Lock()  # a library's thread may log while the answer is sent
        _take_signals()
        _forward_logs(self._send_log, log_level)

    def run(self) -> None:
        try:
            if self.job.initialize is not None:
                self.job.initialize()
        except Exception as error:  # whatever it is, the pool says it
            self._send(Answer(0, "start", text=one_line(error)))
            return
        self.limit = _limit_memory(self.job.memory_bytes)
        self.first_bytes = resident_bytes()
        self._note(IDLE)
        retired = False
        while not retired and (message := receive(self.link)) is not None:
            (serial,) = SERIAL.unpack_from(message)
            self._note(serial)
            answer = self._answer(serial, message[SERIAL.size :])
            retired = answer.grown_bytes > 0
            self.clock[2 * self.index + 1] = float("inf")  # it waits for the pool from here on
            self._send(answer)
            self._note(IDLE)

    def _answer(self, serial: int, message: bytes) -> Answer:
        seconds = self.job.timeout_seconds
        if seconds is not None and hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, ORPHAN_FACTOR * seconds)
        try:
            value = self.job.function(pickle.loads(message))
            answer = Answer(serial, "value", pickle.dumps(value, pickle.HIGHEST_PROTOCOL))
        except (
            BaseException
        ) as error:  # sys.exit() in a decoder's callback, too, is the task's fault alone
            answer = self._failure(serial, error)
        finally:
            if seconds is not None and hasattr(signal, "setitimer"):
                signal.setitimer(signal.ITIMER_REAL, 0)
        return answer._replace(grown_bytes=self._leaked(answer.kind))

    def _failure(self, serial: int, error: BaseException) -> Answer:
        is_memory = self.job.memory_bytes is not None and _is_out_of_memory(error)
        if is_memory and self.limit is not None:
            self.limit()  # room to say so
        text = one_line(error)
        try:
            payload = pickle.dumps(error)
        except Exception:  # an exception holds what it likes; its text is enough
            payload = b""
        return Answer(serial, "memory" if is_memory else "error", payload, text)

    def _leaked(self, kind: str) -> int:
        """Bytes, where the growth since the start is reason to be replaced."""
        limit = self.job.memory_bytes
        if limit is None:
            return 0
        grown = resident_bytes() - self.first_bytes
        # Past its limit the heap is in pieces, and the limit has been lifted.
        return max(grown, 1) if kind == "memory" or grown > RECYCLE_SHARE * limit else 0

    def _note(self, serial: float) -> None:
        self.clock[2 * self.index + 1] = time.monotonic()
        self.clock[2 * self.index] = serial

    def _send(self, answer: Answer) -> None:
        data = pickle.dumps(tuple(answer), pickle.HIGHEST_PROTOCOL)
        with self._sending:
            try:
                send(self.link, data)
            except OSError:  # the pool is gone, and with it the reason to live
                os._exit(0)

    def _send_log(self, record: logging.LogRecord) -> None:
        said = pickle.dumps((record.name, record.levelno))
        self._send(Answer(0, "log", said, record.getMessage()))


def one_line(error: BaseException) -> str:
    """The exception's type and text, without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")


def resident_bytes() -> int:
    """This process's own memory, without what it shares; 0 where /proc does not say."""
    try:
        _, resident, shared = Path("/proc/self/statm").read_text().split()[:3]
    except OSError:
        return 0
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def is_from_outside(exitcode: int | None) -> bool:
    """Whether a process was ended by one of `OUTSIDE_SIGNALS`."""
    return exitcode in [-getattr(signal, name) for name in OUTSIDE_SIGNALS if hasattr(signal, name)]


def gib(num_bytes: int | None) -> str:
    """The number in GiB, for messages."""
    return f"{(num_bytes or 0) / 2**30:.3g} GiB"


def ending(exitcode: int | None, memory_bytes: int | None = None) -> str:
    """How a process ended, for messages; `memory_bytes` is the bound it had."""
    if exitcode is None:
        return "the process does not end"
    if exitcode >= 0:
        return f"the process exited with code {exitcode}"
    names = {number.value: number.name for number in signal.Signals}
    name = names.get(-exitcode, f"signal {-exitcode}")
    if name == "SIGABRT" and memory_bytes is not None:
        name += f", as of C++ libraries at the limit of {gib(memory_bytes)} of memory"
    return f"the process died of {name}"


def unpickled(payload: bytes) -> BaseException | None:
    """The exception, or None where its class does not take itself out of a pickle again."""
    try:
        error = pickle.loads(payload) if payload else None
    except Exception:  # whatever such a class does; its text is kept beside it
        return None
    return error if isinstance(error, BaseException) else None


def _take_signals() -> None:
    """Ctrl-C and a scheduler's notice go to every process of a run, and are the business of the one that trains."""
    for name in ("SIGINT", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    for name in ("SIGTERM", "SIGHUP", "SIGALRM"):  # inherited handlers would run the run's own exit
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)


def _forward_logs(send: Callable[[logging.LogRecord], None], level: int) -> None:
    """Sends log records to the pool: a forked handler may hold a lock that no thread here will ever release."""

    class Forward(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            send(record)

    root = logging.getLogger()
    for logger in (root, *logging.Logger.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            logger.handlers = []
            logger.propagate = True
    root.addHandler(Forward())
    logging.getLogger("videossl").setLevel(level)


def _limit_memory(memory_bytes: int | None) -> Callable[[], None] | None:
    """Lets the kernel refuse what this process allocates beyond the limit; returns what lifts the bound again.

    None where there is no such bound: only Linux counts all private memory against RLIMIT_DATA.
    """
    if memory_bytes is None:
        return None
    try:
        import resource

        status = Path("/proc/self/status").read_text()
    except (ImportError, OSError):
        return None
    used = re.search(r"^VmData:\s+(\d+) kB", status, flags=re.MULTILINE)
    if used is None:
        return None
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = int(used[1]) * 1024 + memory_bytes
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
    return lambda: resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether it is Python's, the system's or a C++ library's way of saying so."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return OUT_OF_MEMORY.search(str(error)) is not None
