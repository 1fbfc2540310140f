"""Two hosts, each a network namespace of this machine: one is cut off and comes back."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_fault_tolerance import CONFIG, assert_same_run, torchrun, wait_for_step
from test_train import arguments

ADDRESSES = ("10.77.0.1", "10.77.0.2")
WATCHDOG_SECONDS = 5
ONE_THREAD = (
    "train.threads_per_process=1"  # of each process: else it depends on how many share a host
)


@dataclass(frozen=True)
class Host:
    """A namespace with one network interface; the first one holds torchrun's meeting point."""

    index: int
    name: str
    interface: str

    def start(self, *command: str) -> subprocess.Popen:
        """torchrun of one process on this host, of two in all."""
        meeting = [
            *("--nnodes=2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d"),
            *(f"--rdzv-endpoint={ADDRESSES[0]}:29511", f"--rdzv-conf=is_host={1 - self.index}"),
            f"--local-addr={ADDRESSES[self.index]}",
        ]
        run = [sys.executable, "-m", "torch.distributed.run", *meeting, *command]
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, *run],
            env={**os.environ, "GLOO_SOCKET_IFNAME": self.interface},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def set_link(self, state: str) -> None:
        """`up` or `down`."""
        ip("-n", self.name, "link", "set", self.interface, state)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    names = [f"videossl-{os.getpid()}-{index}" for index in range(2)]
    interfaces = [f"vs{os.getpid() % 100000}{side}" for side in "ab"]
    if shutil.which("ip") is None:
        pytest.skip("no `ip` here: apt-get install iproute2")
    try:
        ip("netns", "add", names[0])
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no right to make network namespaces: {error.stderr.decode().strip()}")
    try:
        ip("netns", "add", names[1])
        ip("link", "add", interfaces[0], "type", "veth", "peer", "name", interfaces[1])
        for name, interface, address in zip(names, interfaces, ADDRESSES, strict=True):
            ip("link", "set", interface, "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", interface)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", interface, "up")
        yield Host(0, names[0], interfaces[0]), Host(1, names[1], interfaces[1])
    finally:
        for name in names:
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", name)


@pytest.fixture(scope="module")
def config_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "c.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def whole(config_file, video_folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    run = arguments(config_file, video_folder, out, ONE_THREAD)
    command = torchrun("-m", "videossl", *run)
    subprocess.run(command, capture_output=True, check=True)
    return out


def test_a_host_that_is_cut_off_and_comes_back_changes_nothing(
    hosts, config_file, video_folder, whole, tmp_path
):
    out = tmp_path / "run"
    watchdog = f"train.watchdog_seconds={WATCHDOG_SECONDS}"
    run = arguments(config_file, video_folder, out, watchdog, ONE_THREAD)
    jobs = [host.start("-m", "videossl", *run) for host in hosts]
    try:
        wait_for_step(jobs[0], out, 9)
        hosts[1].set_link("down")
        time.sleep(WATCHDOG_SECONDS + 5)
        hosts[1].set_link("up")
        said = [job.communicate(timeout=150)[1] for job in jobs]
    finally:
        for job in jobs:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)
    assert [job.returncode for job in jobs] == [0, 0], said
    assert said[0].count("from step 0 to 24") == 1
    resumed = [line for line in said[0].splitlines() if "from step " in line][1:]
    assert len(resumed) == 1  # the run did stop, and went on from a checkpoint
    assert "no answer for 5 s (train.watchdog_seconds) from rank 1 at step" in said[0]
    assert_same_run(out, whole)
