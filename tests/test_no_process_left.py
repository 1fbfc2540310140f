"""Whatever ends a command, none of its processes outlives it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_train import CONFIG
from test_workers import is_running

from videossl.__main__ import main

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")

Run = Callable[..., tuple[int, list[int]]]


@pytest.fixture(scope="module")
def end_in_the_pool() -> Iterator[Run]:
    """Called with a signal and a command's words, ends it when it has workers; its exit code and the workers."""
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("forked_commands.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert server.stdin is not None
    assert server.stdout is not None

    def end(number: int, words: list[str]) -> tuple[int, list[int]]:
        print(json.dumps(words), file=server.stdin, flush=True)
        pid = int(server.stdout.readline())
        while not (workers := children(pid)):
            assert is_running(pid), "the command ended before it had a worker"
            time.sleep(0.002)
        os.kill(pid, number)
        code = int(server.stdout.readline().split()[1])
        return code, workers

    with server:
        yield end
        server.stdin.close()


def children(pid: int) -> list[int]:
    try:
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


@pytest.fixture(scope="module")
def commands(
    video_folder, tinted_videos, checkpoint, tmp_path_factory
) -> Callable[[str, Path], list[str]]:
    """The words of a command that writes to a folder."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "c.yaml").write_text(CONFIG)
    assert main(["synthesize", "-o", str(folder / "synthetic")]) == 0
    davis = next((folder / "synthetic").rglob("JPEGImages")).parent

    def words(name: str, out: Path) -> list[str]:
        config = f"--config {folder}/c.yaml"
        text = {
            "scan": f"{video_folder.parent} -o {out}.parquet --deep --workers 2",
            "pack": f"{video_folder} -o {out} --workers 2",
            "train": f"{config} data.manifest={video_folder} out={out} data.num_workers=2",
            "embed": f"{video_folder} --checkpoint {checkpoint} -o {out}.parquet",
            "audit": f"{config} --manifest {video_folder} -o {out} --control-videos 0",
            "probe": f"--manifest {tinted_videos} --protocol linear --checkpoint {checkpoint} -o {out} --cache {out}.cache",
            "track": f"--checkpoint {checkpoint} --davis {davis} --workers 2 -o {out}",
            "score": f"{davis}/Annotations/480p --davis {davis} --split val --workers 2 -o {out}",
        }
        return [name, *text[name].split()]

    return words


POOLS = ["scan", "pack", "train", "embed", "audit", "probe", "track", "score"]


@pytest.mark.parametrize(
    ("name", "number"),
    [
        *((name, signal.SIGKILL) for name in POOLS),
        ("track", signal.SIGTERM),
        ("scan", signal.SIGTERM),
        ("track", signal.SIGINT),
    ],
)
def test_no_worker_outlives_its_command(name, number, end_in_the_pool, commands, tmp_path):
    code, workers = end_in_the_pool(number, commands(name, tmp_path / "out"))
    assert code == (130 if number == signal.SIGINT else -number)
    deadline = time.monotonic() + 60  # a process that is being born first comes to itself
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [pid for pid in workers if is_running(pid)] == []
