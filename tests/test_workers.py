"""Tasks that do the worst a decoder can do, for real: the pool must answer for each, and leave nothing behind."""

import ctypes
import faulthandler
import mmap
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from videossl.errors import UserError
from videossl.workers.pool import Outcome, WorkerPool

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts on Linux only")
MIB = 1 << 20


class Awkward(Exception):
    """Pickles, and cannot be unpickled."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


def act(task: tuple) -> object:
    name, *arguments = task
    return ACTIONS[name](*arguments)


def spin() -> None:
    while True:
        pass


def hold_the_lock() -> None:
    ctypes.PyDLL(None).sleep(1000)  # in C, with the interpreter's lock


def die(number: int) -> None:
    faulthandler.disable()  # pytest's, which prints what is meant to happen here
    os.kill(os.getpid(), number)
    time.sleep(60)


def abort() -> None:
    faulthandler.disable()
    os.abort()


def grow_bytes() -> None:
    hoard = []
    while True:
        hoard.append(b"x" * MIB)


def grow_arrays() -> None:
    import numpy as np

    hoard = []
    while True:
        hoard.append(np.ones(MIB))


def raise_lambda() -> None:
    error = ValueError("holds a lambda")
    error.held = lambda: None
    raise error


def raise_awkward() -> None:
    raise Awkward(1, 2)


def leave() -> None:
    sys.exit(3)


LEAK: list[mmap.mmap] = []


def leak(num_bytes: int) -> int:
    # Fresh private pages: malloc would hand out room that the parent had freed before the fork.
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.write(b"x" * num_bytes)
    LEAK.append(pages)
    return os.getpid()


ACTIONS: dict[str, Callable] = {
    "square": lambda x: x * x,
    "pid": os.getpid,
    "nap": lambda seconds: time.sleep(seconds) or os.getpid(),
    "echo": lambda data: data,
    "spin": spin,
    "hold the lock": hold_the_lock,
    "die": die,
    "exit": lambda code: os._exit(code),
    "abort": abort,
    "leave": leave,
    "grow bytes": grow_bytes,
    "grow arrays": grow_arrays,
    "divide": lambda: 1 // 0,
    "unpicklable value": lambda: lambda: None,
    "lambda": raise_lambda,
    "awkward": raise_awkward,
    "leak": leak,
    "say": lambda: __import__("logging").getLogger("videossl").warning("said by a worker"),
}


def results(pool: WorkerPool) -> dict[object, Outcome]:
    found: dict[object, Outcome] = {}
    while outcomes := pool.wait():
        assert not found.keys() & {o.key for o in outcomes}, "one outcome a task"
        found |= {o.key: o for o in outcomes}
    assert pool.num_outstanding == 0
    return found


def run(bad: tuple, *, num_workers: int = 2, num_good: int = 12, **options) -> Outcome:
    """The outcome of one bad task among good ones, all of which must come through."""
    with WorkerPool(act, num_workers, ahead=4, **options) as pool:
        for x in range(num_good):
            pool.submit(x, ("square", x))
            if x == 3:
                pool.submit("bad", bad)
        found = results(pool)
        assert {x: found[x].value for x in range(num_good)} == {x: x * x for x in range(num_good)}
        pool.submit("after", ("square", 9))
        assert results(pool)["after"].value == 81
    assert multiprocessing.active_children() == []
    assert found["bad"].value is None
    return found["bad"]


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_all_tasks_are_done_by_several_processes(start_method):
    with WorkerPool(act, 2, start_method=start_method) as pool:
        for x in range(40):
            pool.submit(x, ("square", x))
        assert {k: o.value for k, o in results(pool).items()} == {x: x * x for x in range(40)}
        for x in range(6):
            pool.submit(x, ("nap", 0.05))
        assert len({o.value for o in results(pool).values()} - {os.getpid()}) == 2
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("name", ["spin", "hold the lock"])
def test_a_task_that_hangs_is_ended_at_its_limit(name):
    failure = run((name,), timeout_seconds=0.5).failure
    assert (failure.kind, failure.cause) == ("hang", "no answer for 0.5 s")
    assert failure.worker in (0, 1)


def test_a_hang_costs_a_pool_of_one_worker_no_task_but_itself():
    assert run(("spin",), num_workers=1, timeout_seconds=0.5).failure.kind == "hang"


@pytest.mark.parametrize(
    ("bad", "cause"),
    [
        (("die", signal.SIGSEGV), "the process died of SIGSEGV"),
        (("abort",), "the process died of SIGABRT"),
        (("exit", 3), "the process exited with code 3"),
        (("exit", 0), "the process exited with code 0"),
        (("die", signal.SIGKILL), "died of SIGKILL twice, as the system does when memory runs out"),
        (("die", signal.SIGTERM), "died of SIGTERM twice"),
    ],
)
def test_a_crash_costs_one_task(bad, cause):
    failure = run(bad).failure
    assert failure.kind == "crash"
    assert cause in failure.cause


@linux_only
@pytest.mark.parametrize("name", ["grow bytes", "grow arrays"])
def test_memory_without_bound_is_refused_by_the_kernel(name):
    failure = run((name,), memory_bytes=200 * MIB, timeout_seconds=60).failure
    assert failure.kind == "memory"
    assert failure.cause.startswith("it needs more than 0.195 GiB of memory (")
    assert isinstance(failure.error, MemoryError)


def test_torch_that_finds_no_memory_is_a_failure_of_memory_too():
    import torch

    def grow(task: str) -> int:
        hoard = []
        while task == "bad":
            hoard.append(torch.ones(MIB))
        return 1

    def one_thread() -> None:  # another test's pool of threads does not outlive the fork
        torch.set_num_threads(1)

    options = {"memory_bytes": 300 * MIB, "timeout_seconds": 60}
    with WorkerPool(grow, 1, initialize=one_thread, **options) as pool:
        for task in ("bad", "good"):
            pool.submit(task, task)
        found = results(pool)
    assert found["bad"].failure.kind == "memory"
    assert found["good"].value == 1


@pytest.mark.parametrize(
    ("name", "kind", "cause"),
    [
        ("divide", ZeroDivisionError, "ZeroDivisionError: integer division or modulo by zero"),
        ("lambda", type(None), "ValueError: holds a lambda"),
        ("awkward", type(None), "Awkward: 1 and 2"),
        ("leave", SystemExit, "SystemExit: 3"),
        ("unpicklable value", object, "local object"),  # in the words of every Python
    ],
)
def test_what_a_task_raises_comes_back_and_its_worker_goes_on(name, kind, cause):
    with WorkerPool(act, 1) as pool:
        pool.submit("pid", ("pid",))
        pool.submit("bad", (name,))
        pool.submit("pid again", ("pid",))
        found = results(pool)
    failure = found["bad"].failure
    assert failure.kind == "error"
    assert cause in failure.cause
    assert isinstance(failure.error, kind)
    assert found["pid"].value == found["pid again"].value


@linux_only
def test_a_worker_that_keeps_its_memory_is_replaced_without_a_word_to_the_caller():
    with WorkerPool(act, 1, memory_bytes=100 * MIB) as pool:
        for index in range(12):
            pool.submit(index, ("leak", 20 * MIB))
        pids = [outcome.value for outcome in results(pool).values()]
    assert None not in pids
    # Each keeps three times 20 MiB, then has more than half of its limit.
    assert 3 <= len(set(pids)) <= 6


def test_a_worker_killed_from_outside_costs_nothing():
    with WorkerPool(act, 2, ahead=3) as pool:
        pool.submit("first", ("square", 2))
        results(pool)
        os.kill(pool.pids[0], signal.SIGKILL)  # idle
        for index in range(4):
            pool.submit(index, ("nap", 0.3))
        time.sleep(0.1)
        for pid in pool.pids:  # all of them, at work
            os.kill(pid, signal.SIGKILL)
        found = results(pool)
    assert all(outcome.failure is None for outcome in found.values())


def test_a_worker_killed_while_it_writes_its_answer_costs_nothing():
    data = os.urandom(8 * MIB)  # far more than a socket holds
    with WorkerPool(act, 2) as pool:
        for key in range(3):
            pool.submit(key, ("echo", data))
        time.sleep(0.3)  # both now wait for the pool to read on
        for pid in pool.pids:
            os.kill(pid, signal.SIGKILL)
        found = results(pool)
    assert all(outcome.value == data for outcome in found.values())


def test_large_messages_both_ways_do_not_lock_up():
    data = os.urandom(2 * MIB)
    with WorkerPool(act, 2, ahead=8) as pool:
        for key in range(16):
            pool.submit(key, ("echo", data))
        assert all(outcome.value == data for outcome in results(pool).values())


def test_tasks_that_all_crash_end_and_are_all_reported():
    with WorkerPool(act, 2) as pool:
        for key in range(10):
            pool.submit(key, ("die", signal.SIGSEGV))
        found = results(pool)
    assert [found[key].failure.kind for key in range(10)] == ["crash"] * 10


def test_workers_that_cannot_start_fail_with_one_line():
    def refuse() -> None:
        raise OSError("no codec here")

    with WorkerPool(act, 2, initialize=refuse) as pool:
        pool.submit(0, ("square", 2))
        with pytest.raises(UserError, match=r"no worker process comes up: 5 .*OSError: no codec"):
            results(pool)
    with WorkerPool(act, 2, initialize=lambda: os._exit(7)) as pool:
        pool.submit(0, ("square", 2))
        with pytest.raises(UserError, match="exited with code 7"):
            results(pool)


def test_a_pool_closed_at_work_leaves_no_process():
    with WorkerPool(act, 3, timeout_seconds=60) as pool:
        for key in range(9):
            pool.submit(key, ("hold the lock",))
        pool.wait(0.1)
        pids = pool.pids
        started = time.monotonic()
    assert time.monotonic() - started < 5
    assert len(pids) == 3
    assert not any(is_running(pid) for pid in pids)
    assert multiprocessing.active_children() == []


def test_workers_end_with_their_pool_when_it_is_killed():
    """Those that wait, at once; one that spins is ended by its own alarm."""
    code = (
        "import os, time\n"
        "from videossl.workers.pool import WorkerPool\n"
        "def act(task):\n"
        "    while task == 'spin': pass\n"
        "with WorkerPool(act, 3, timeout_seconds=1.5) as pool:\n"
        "    for task in ('spin', 'good', 'good'): pool.submit(task, task)\n"
        "    pool.wait(0.2)\n"
        "    print(*pool.pids, flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in process.stdout.readline().split()]
    process.kill()
    process.wait()
    process.stdout.close()
    assert len(pids) == 3
    deadline = time.monotonic() + 40
    while (alive := [pid for pid in pids if is_running(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive == []


def is_running(pid: int) -> bool:
    """A zombie that nobody collects is not."""
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_ctrl_c_is_not_the_workers_business():
    with WorkerPool(act, 1) as pool:
        pool.submit("nap", ("nap", 0.3))
        pool.wait(0.1)
        for number in (signal.SIGINT, signal.SIGUSR1):
            os.kill(pool.pids[0], number)
        (pid,) = pool.pids
        assert results(pool)["nap"].value == pid


def test_what_workers_log_is_said_once_by_the_pool(caplog):
    with WorkerPool(act, 2) as pool:
        for key in range(6):
            pool.submit(key, ("say",))
        results(pool)
    assert [record.message for record in caplog.records] == ["said by a worker"]


def test_the_pool_imports_neither_torch_nor_numpy():
    code = "import sys, videossl.workers.pool; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(("num_workers", "ahead"), [(0, 1), (1, 0)])
def test_a_pool_without_workers_fails(num_workers, ahead):
    with pytest.raises(ValueError, match="must be >= 1"):
        WorkerPool(act, num_workers, ahead=ahead)
