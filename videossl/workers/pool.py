"""A pool of processes that outlives whatever its tasks do: hang with the interpreter's lock held, crash, eat all memory.

Each task has one `Outcome`: its value, or a `TaskFailure` that says what became of it. The worker that a task has taken
down is replaced, and the tasks that waited behind it go to others.
"""

import logging
import multiprocessing
import os
import pickle
import selectors
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, MutableSequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Literal, Self

from videossl.errors import UserError
from videossl.workers import signals
from videossl.workers.process import (
    IDLE,
    SERIAL,
    STARTING,
    Answer,
    Job,
    PoolEnd,
    ending,
    gib,
    is_from_outside,
    serve,
    unpickled,
)
from videossl.workers.signals import end_with_parent

log = logging.getLogger("videossl")

StartMethod = Literal["fork", "spawn"]
FailureKind = Literal["error", "hang", "crash", "memory"]

POLL_SECONDS = 0.1  # between looks at the clock while the pool waits; chosen
# A task past its limit gets this much more from when that is first seen: after the whole machine was stopped (Ctrl-Z, a
# frozen container) every task looks late and none hangs. Chosen.
GRACE_SECONDS = 0.5
START_SECONDS = (
    120.0  # to be born and initialised: importing torch from a cold disk takes tens of seconds
)
JOIN_SECONDS = 5.0  # for a killed process to be gone; one that waits for a dead disk stays, and does nothing more
MAX_FAILED_STARTS = 5  # in a row, before the pool gives up


def num_cores() -> int:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class TaskFailure:
    """What a task did instead of returning."""

    kind: FailureKind
    cause: str  # one line
    worker: int
    error: BaseException | None = None  # what the function raised, where that can be pickled


@dataclass(frozen=True)
class Outcome:
    """What became of the task submitted under `key`: its value, unless it failed."""

    key: Any
    value: Any = None
    failure: TaskFailure | None = None


@dataclass(eq=False)
class _Task:
    serial: int
    key: Any
    message: bytes
    was_lost: bool = False  # with a worker that was ended from outside


@dataclass(eq=False)
class _Worker:
    index: int
    process: BaseProcess
    link: PoolEnd
    tasks: deque[_Task] = field(default_factory=deque)  # sent and not answered, in order
    late: tuple[float, float] | None = None  # the task found past its limit, and when
    last_words: str = ""
    is_retired: bool = False


class WorkerPool:
    """`num_workers` processes that run `function` over picklable tasks, in no fixed order; a context manager.

    Forked workers (the default where the system forks) take closures as `function` and as `initialize`, which each
    calls first; with start_method="spawn" both are pickled. Up to `ahead` tasks wait at each worker, so that it has
    work while the caller computes. A task may take `timeout_seconds` and, on Linux, make its process grow by
    `memory_bytes`; None is without bound. The workers start with the first task.

    A task that hangs or crashes is not tried again. One whose worker was ended from outside (`OUTSIDE_SIGNALS`) is,
    once: it is hardly to blame.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        num_workers: int,
        *,
        initialize: Callable[[], None] | None = None,
        timeout_seconds: float | None = None,
        memory_bytes: int | None = None,
        ahead: int = 2,
        start_method: StartMethod | None = None,
    ) -> None:
        if num_workers < 1 or ahead < 1:
            raise ValueError(f"num_workers and ahead must be >= 1, got {num_workers} and {ahead}")
        self._context: Any = _context(start_method)
        self.num_workers, self.ahead = num_workers, ahead
        self._job = Job(function, initialize, timeout_seconds, memory_bytes)
        self._clock: MutableSequence[float] = self._context.RawArray("d", 2 * num_workers)
        self._workers: dict[int, _Worker] = {}
        self._backlog: deque[_Task] = deque()
        self._outcomes: list[Outcome] = []
        self._selector = selectors.DefaultSelector()
        self._last_serial = 0
        self._failed_starts = 0
        self._said: set[tuple[int, str]] = set()
        self._owner = os.getpid()
        self._is_closed = False

    @property
    def num_outstanding(self) -> int:
        """Tasks submitted whose outcome is not known yet."""
        return len(self._backlog) + sum(len(w.tasks) for w in self._workers.values())

    @property
    def pids(self) -> list[int]:
        """The process numbers of the living workers."""
        return [w.process.pid for w in self._workers.values() if w.process.pid is not None]

    def busy(self) -> list[tuple[Any, float]]:
        """The key and the seconds of each task being worked at; another thread may ask."""
        found = []
        for worker in list(self._workers.values()):
            serial, since = self._clock[2 * worker.index : 2 * worker.index + 2]
            keys = [task.key for task in list(worker.tasks) if task.serial == serial]
            found += [(key, time.monotonic() - since) for key in keys]
        return found

    def submit(self, key: Any, task: Any) -> None:
        """Hands a task to the worker with least to do, or keeps it until one has room. `key` names its outcome."""
        self.submit_all([(key, task)])

    def submit_all(self, tasks: Iterable[tuple[Any, Any]]) -> None:
        """Submits (key, task) pairs at once, which takes less time than one by one."""
        assert not self._is_closed
        for key, task in tasks:
            self._last_serial += 1
            message = SERIAL.pack(self._last_serial) + pickle.dumps(task, pickle.HIGHEST_PROTOCOL)
            self._backlog.append(_Task(self._last_serial, key, message))
        self._dispatch()

    def wait(self, timeout: float | None = None) -> list[Outcome]:
        """The outcomes since the last call, as soon as there is one: at most after `timeout` seconds, 0 not to wait.

        Empty where nothing is outstanding. Raises UserError if workers die before they can do anything.
        """
        assert not self._is_closed
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        while True:
            signals.check()
            self._dispatch()
            remaining = deadline - time.monotonic()
            is_last = bool(self._outcomes) or not self.num_outstanding or remaining <= 0
            for ready, _ in self._selector.select(0 if is_last else min(remaining, POLL_SECONDS)):
                self._exchange(ready.data)
            self._watch()
            if is_last or self._outcomes:
                break
        self._dispatch()  # work for the time until the next call
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def outcomes(self) -> Iterator[Outcome]:
        """Outcomes as they come, until nothing is outstanding; whoever takes one may submit more tasks."""
        while self.num_outstanding:
            yield from self.wait()

    def close(self) -> None:
        """Ends the workers at once, whatever they do. Those of a process that is killed end with it."""
        if (
            self._is_closed or os.getpid() != self._owner
        ):  # a fork of this process owns none of them
            return
        self._is_closed = True
        for worker in self._workers.values():
            worker.process.kill()
        for worker in self._workers.values():
            worker.process.join(JOIN_SECONDS)
            worker.link.close()
        self._workers.clear()
        self._selector.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _dispatch(self) -> None:
        if not self._backlog:
            return
        for index in range(self.num_workers):
            if index not in self._workers:
                self._start(index)
        given = set()
        while self._backlog and self._workers:
            worker = min(self._workers.values(), key=lambda w: (w.is_retired, len(w.tasks)))
            if worker.is_retired or len(worker.tasks) >= self.ahead:
                break
            task = self._backlog.popleft()
            worker.tasks.append(task)
            worker.link.queue(task.message)
            given.add(worker.index)
        for index in given:
            self._workers[index].link.flush()

    def _start(self, index: int) -> None:
        self._clock[2 * index : 2 * index + 2] = [STARTING, time.monotonic()]
        link = PoolEnd(self._selector)
        is_main = threading.current_thread() is threading.main_thread()
        level = log.getEffectiveLevel()
        arguments = (link.worker_end, self._clock, index, self._job, level, is_main)
        process = self._context.Process(target=serve, args=arguments, daemon=True)
        try:
            with signals.held():
                process.start()
        except OSError as error:  # no memory or no process number left
            link.close()
            self._count_failed_start(error.strerror or str(error))
            return
        self._workers[index] = _Worker(index, process, link)
        link.watch(self._workers[index])

    def _count_failed_start(self, cause: str) -> None:
        self._failed_starts += 1
        if self._failed_starts >= MAX_FAILED_STARTS:
            raise UserError(
                f"no worker process comes up: {self._failed_starts} in a row failed, the last with: {cause}; free "
                "memory, use fewer workers, or none to see the cause in this process"
            )
        time.sleep(0.02 * 2**self._failed_starts)

    def _exchange(self, worker: _Worker) -> None:
        """Reads what a worker has said and writes what waits for it; a closed link is a dead worker."""
        if self._workers.get(worker.index) is not worker:
            return  # buried since the selector saw it
        worker.link.flush()
        if self._hear_all(worker):
            self._bury(worker, is_hung=False)

    def _hear_all(self, worker: _Worker) -> bool:
        messages, is_over = worker.link.receive()
        for message in messages:
            self._hear(worker, Answer(*pickle.loads(message)))
        return is_over

    def _hear(self, worker: _Worker, answer: Answer) -> None:
        if answer.kind == "log":
            name, level = pickle.loads(answer.payload)
            self._say(name, level, answer.text, reason=answer.text)
            return
        if answer.kind == "start":
            worker.last_words = answer.text
            return
        self._failed_starts = 0
        task = worker.tasks.popleft()
        assert task.serial == answer.serial
        if answer.grown_bytes:
            worker.is_retired = True
            text = f"workers that keep memory are replaced: one kept {gib(answer.grown_bytes)}"
            self._say(log.name, logging.INFO, text, reason="kept")
        if answer.kind == "value":
            self._outcomes.append(Outcome(task.key, pickle.loads(answer.payload)))
            return
        cause = answer.text
        if answer.kind == "memory":
            cause = f"it needs more than {gib(self._job.memory_bytes)} of memory ({cause})"
        self._fail(task, worker, answer.kind, cause, unpickled(answer.payload))

    def _say(self, name: str, level: int, text: str, *, reason: str) -> None:
        """Logs the first time what every worker says, and its successor again."""
        if (level, reason) not in self._said:
            self._said.add((level, reason))
            logging.getLogger(name).log(level, text)

    def _watch(self) -> None:
        """Buries the workers whose task is past its time."""
        now = time.monotonic()
        for worker in list(self._workers.values()):
            serial, since = self._clock[2 * worker.index : 2 * worker.index + 2]
            limit = START_SECONDS if serial == STARTING else self._job.timeout_seconds
            if serial == IDLE or limit is None or now - since <= limit:
                worker.late = None
            elif worker.late is None or worker.late[0] != serial:
                worker.late = (serial, now)
            elif now - worker.late[1] >= GRACE_SECONDS:
                self._bury(worker, is_hung=True)

    def _bury(self, worker: _Worker, *, is_hung: bool) -> None:
        """Ends what is left of a worker, and finds out which of its tasks is to blame."""
        worker.process.kill()
        worker.process.join(JOIN_SECONDS)
        self._hear_all(worker)  # it may have answered while it was being killed
        del self._workers[worker.index]
        worker.link.close()
        serial = self._clock[2 * worker.index]
        waiting = worker.tasks
        if serial == STARTING:
            cause = "it does not come up" if is_hung else ending(worker.process.exitcode)
            self._backlog.extendleft(reversed(waiting))
            self._count_failed_start(worker.last_words or cause)
            return
        if waiting and waiting[0].serial == serial:
            task = waiting.popleft()
            if is_from_outside(worker.process.exitcode) and not is_hung and not task.was_lost:
                task.was_lost = True
                waiting.appendleft(task)
            else:
                self._blame(task, worker, is_hung)
        self._backlog.extendleft(reversed(waiting))

    def _blame(self, task: _Task, worker: _Worker, is_hung: bool) -> None:
        self._failed_starts = 0
        exitcode = worker.process.exitcode
        if is_hung or (hasattr(signal, "SIGALRM") and exitcode == -signal.SIGALRM):
            cause = f"no answer for {self._job.timeout_seconds:g} s"
            self._fail(task, worker, "hang", cause)
            return
        cause = ending(exitcode, self._job.memory_bytes)
        if is_from_outside(exitcode):
            cause += " twice, as the system does when memory runs out"
        self._fail(task, worker, "crash", cause)

    def _fail(
        self,
        task: _Task,
        worker: _Worker,
        kind: FailureKind,
        cause: str,
        error: BaseException | None = None,
    ) -> None:
        failure = TaskFailure(kind, cause, worker.index, error)
        self._outcomes.append(Outcome(task.key, failure=failure))


def can_fork() -> bool:
    """Whether workers can be forked: they then cost no second import, and take closures and shared memory."""
    return "fork" in multiprocessing.get_all_start_methods()


def _context(start_method: StartMethod | None) -> Any:
    """Forked where the system forks; never by a server, which would be the parent in place of this process."""
    return multiprocessing.get_context(start_method or ("fork" if can_fork() else "spawn"))


class ProcessPool(ProcessPoolExecutor):
    """An executor of spawned or forked processes that end with this one, and at once where its block raises.

    Ctrl-C is this process's business alone. `initialize` is called first in each.
    """

    def __init__(
        self,
        num_workers: int,
        *,
        start_method: StartMethod | None = None,
        initialize: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(num_workers, _context(start_method), _begin, (initialize,))

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As of any executor."""
        with signals.held():  # it may start a process
            return super().submit(fn, *args, **kwargs)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            for process in list(self._processes.values()):
                process.kill()
        super().__exit__(kind, error, traceback)


def _begin(initialize: Callable[[], None] | None) -> None:
    end_with_parent()
    if initialize is not None:
        initialize()
