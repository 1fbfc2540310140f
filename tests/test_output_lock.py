"""Two commands never write to one place: the second is refused with the name of the first, and changes nothing."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_no_process_left import commands  # noqa: F401

from videossl.__main__ import main
from videossl.errors import UserError
from videossl.io.input_files import is_system_leftover
from videossl.io.output_files import IN_FOLDER, writing_file, writing_to_folder

HOLD = """
import fcntl, json, pathlib, sys
lock = pathlib.Path(sys.argv[1])
lock.parent.mkdir(parents=True, exist_ok=True)
with lock.open("w") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    file.write(json.dumps({"host": "node7", "pid": 4711, "command": "videossl pack"}))
    file.flush()
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def hold():
    """Called with a path, has another process lock it until the test is over, or until that is killed."""
    holders = []

    def start(lock: Path) -> subprocess.Popen:
        command = [sys.executable, "-c", HOLD, str(lock)]
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert holder.stdout.readline() == "held\n"
        holders.append(holder)
        return holder

    yield start
    for holder in holders:
        holder.communicate()


def lock_of(command: str, out: Path) -> Path:
    is_file = command in ("scan", "embed")
    return out.parent / f".{out.name}.parquet{IN_FOLDER}" if is_file else out / IN_FOLDER


@pytest.mark.parametrize("command", ["scan", "pack", "train", "embed", "audit", "probe", "track"])
def test_a_second_writer_is_refused_and_changes_nothing(command, commands, hold, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "out"
    out.mkdir()
    if command != "train":  # which refuses a folder that is no run's for that reason
        (out / "result.json").write_text("{}")
    hold(lock_of(command, out))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main(commands(command, out)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "is being written by videossl pack, process 4711 on node7" in said
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_lock_of_a_killed_command_is_taken_over(hold, tmp_path):
    lock = tmp_path / "out" / IN_FOLDER
    holder = hold(lock)
    holder.kill()
    holder.wait()
    assert lock.exists()
    with writing_to_folder(lock.parent):
        assert json.loads(lock.read_text())["pid"] != 4711
    assert not lock.exists()


def test_a_lock_is_no_video_of_a_folder(hold, tmp_path):
    for lock in (tmp_path / IN_FOLDER, tmp_path / f".m.parquet{IN_FOLDER}"):
        hold(lock)
        assert is_system_leftover(lock.name)


def test_a_command_that_writes_nothing_leaves_no_folder(tmp_path):
    with writing_to_folder(tmp_path / "a" / "b"), writing_file(tmp_path / "c" / "d"):
        pass
    assert not (tmp_path / "a").exists()


def test_workers_do_not_keep_the_lock_of_their_command(tmp_path):
    """A worker that is slow to die must not keep the next run out."""
    code = (
        "import os, sys, time, pathlib\n"
        "from videossl.io.output_files import writing_to_folder\n"
        "with writing_to_folder(pathlib.Path(sys.argv[1])):\n"
        "    if not os.fork(): time.sleep(30)\n"
        "    print('up', flush=True); time.sleep(30)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout.readline() == "up\n"
    process.kill()
    process.wait()
    with writing_to_folder(tmp_path / "out"):
        pass
    os.killpg(process.pid, signal.SIGKILL)
    process.stdout.close()


def test_a_place_without_locks_is_said_once_and_written(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    with writing_to_folder(tmp_path / "out"):
        (tmp_path / "out" / "x").touch()
    (said,) = caplog.messages
    assert "No locks available" in said


def test_a_file_in_place_of_the_folder_is_said(tmp_path):
    file = tmp_path / "m.parquet"
    file.write_bytes(b"mine")
    with (
        pytest.raises(UserError, match="is a file: name a folder"),
        writing_to_folder(file),
    ):
        pass
    assert file.read_bytes() == b"mine"
