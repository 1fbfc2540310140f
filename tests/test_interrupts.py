"""Ctrl-C: one line and exit code 130, wherever it comes."""

import os
import signal
import subprocess
import sys

import pytest

LOOPS = {
    "where nobody asks": "time.sleep(30)",
    "in a loop that asks": "while True: signals.check(); time.sleep(.01)",
    "where a KeyboardInterrupt would be lost": (
        "class Lost:\n    def __del__(self): time.sleep(30)\ndel [Lost()][0]\ntime.sleep(30)"
    ),
    "when the command is done": "signals.finish(0); time.sleep(30)",
}


def start(code: str, handler=signal.SIG_DFL, **environment: str) -> subprocess.Popen:
    head = "import time\nfrom videossl.workers import signals\nsignals.take('scan')\nprint('up', flush=True)\n"
    tail = "\nsignals.finish(0)"
    body = "\n".join(f"    {line}" for line in code.splitlines())
    code = f"{head}try:\n{body}\nexcept KeyboardInterrupt: signals.end(){tail}"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        preexec_fn=lambda: signal.signal(signal.SIGINT, handler),
    )
    assert process.stdout.readline() == "up\n"
    return process


@pytest.mark.parametrize("where", LOOPS)
def test_it_ends_a_command(where):
    process = start(LOOPS[where])
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (130, "videossl scan: interrupted\n")


def test_what_cleans_up_has_its_time_and_a_second_one_ends_it():
    slow = (
        "try:\n    while True: signals.check(); time.sleep(.01)\n"
        "finally:\n    time.sleep(1.5); print('clean', flush=True)"
    )
    process = start(slow)
    process.send_signal(signal.SIGINT)
    shown, said = process.communicate(timeout=20)
    assert (process.returncode, shown) == (130, "clean\n")
    process = start(slow.replace("1.5", "print('cleaning', flush=True) or 60"))
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "cleaning\n"
    process.send_signal(signal.SIGINT)
    shown, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (130, "videossl scan: interrupted\n")


def test_one_rank_of_a_host_speaks():
    process = start("time.sleep(30)", RANK="1", LOCAL_RANK="1")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[1] == ""
    assert process.returncode == 130


def test_where_it_is_ignored_that_is_said_once():
    code = "from videossl.io.progress import track\nfor _ in range(2): list(track(range(3), description='x'))"
    process = start(code, signal.SIG_IGN)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 0
    assert said.count(f"kill {process.pid} ends it") == 1


def test_a_process_is_started_before_it_is_heeded():
    """A signal that comes while a pool forks is neither lost nor raised in the fork."""
    code = (
        "import os, signal\nfrom videossl.workers.pool import WorkerPool\n"
        "os.register_at_fork(before=lambda: os.kill(os.getpid(), signal.SIGINT))\n"
        "with WorkerPool(abs, 1) as pool:\n    pool.submit(1, 1); time.sleep(.1)\n    while True: pool.wait()"
    )
    process = start(code)
    _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (130, "videossl scan: interrupted\n")
