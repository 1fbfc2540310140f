import ctypes
import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from videossl.__main__ import main
from videossl.doctor import decoders, examination, machine
from videossl.doctor.examination import Check, checks, examine, plain_lines, verdict
from videossl.doctor.machine import Place, Row

PLACE = Place(Path())


def by_name(rows: list[Row]) -> dict[str, Row]:
    return {row.what: row for row in rows}


@pytest.fixture
def plant(tmp_path, monkeypatch) -> Callable[..., None]:
    """Puts modules where every check's process finds them before the real ones."""

    def put(**modules: str) -> None:
        for name, code in modules.items():
            (tmp_path / "planted" / name).mkdir(parents=True)
            (tmp_path / "planted" / name / "__init__.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path / "planted")

    return put


def rows_of(*names: str) -> dict[str, Row]:
    """Some of the checks, each as the command does it."""
    return by_name(examine([], [check for check in checks() if check.name in names]))


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> dict[str, dict]:
    """The rows of this machine, by the command, called in a folder with a torch.py that is none."""
    folder = tmp_path_factory.mktemp("working folder")
    (folder / "torch.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    command = [Path(sys.executable).with_name("videossl"), "doctor", "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (folder / "ran").exists()
    return {row["what"]: row for row in json.loads(done.stdout)}


def test_a_machine_that_runs_these_tests_is_ready(here):
    for what in (
        "torch",
        "torchvision",
        "PyAV",
        "scan and read",
        "codec h264",
        "shared memory",
    ):
        assert here[what]["state"] == "ok", here[what]
        assert here[what]["is_required"]
    assert "decoded 8 frames" in here["PyAV"]["found"]


def test_every_row_out_of_order_says_how_to_mend_it(here):
    assert [row for row in here.values() if row["state"] != "ok" and not row["mend"]] == []


def test_torchcodec_works_exactly_where_its_reader_does(here):
    from videossl.decode.backends import available_backends

    assert (here["torchcodec"]["state"] == "ok") == (not available_backends()["torchcodec"])
    assert (here["FFmpeg libraries"]["state"] == "ok") == (here["torchcodec"]["state"] == "ok")


def test_broken_torch_is_a_row_and_what_needs_no_torch_is_still_tried(plant):
    plant(torch='raise ImportError("libcudart.so.99: cannot open")')
    rows = rows_of("torch", "CUDA", "PyAV", "codec h264")
    assert rows["torch"].state == "broken"
    assert "libcudart.so.99" in rows["torch"].found
    assert rows["torchvision"].state == "broken"
    assert rows["PyAV"].state == rows["codec h264"].state == "ok"
    assert [row.what for row in rows.values() if row.stops] == ["torch", "torchvision"]


# Stands in for a PyAV that opens sound files, but not every way in which videossl asks it to.
OTHER_PYAV = """
import importlib, pathlib, sys

del sys.modules["av"]
sys.path.remove(str(pathlib.Path(__file__).parents[1]))
real = importlib.import_module("av")
sound = real.open

def open(file, mode="r", **options):
    if {refuses}:
        raise TypeError("open() got an unexpected keyword argument 'options'")
    return sound(file, mode, **options)

real.open = open
"""
REFUSES = {
    "every argument": 'mode == "r" and options',
    "to open what is known": 'mode == "r" and "analyzeduration" in options.get("options", {})',
    "to open a member of a shard": 'mode == "r" and str(file).startswith("subfile")',
}


@pytest.mark.parametrize("refuses", list(REFUSES))
def test_a_pyav_that_refuses_what_scan_or_train_ask_of_it_is_not_ready(
    plant, monkeypatch, capsys, refuses
):
    plant(av=OTHER_PYAV.format(refuses=REFUSES[refuses]))
    chosen = [check for check in checks() if check.name in ("PyAV", "scan and read")]
    monkeypatch.setattr(examination, "checks", lambda: chosen)
    assert main(["doctor"]) == 1
    pyav, reading, said = (
        line for line in capsys.readouterr().out.splitlines() if "mend:" not in line and line
    )
    assert reading.startswith("scan and read  broken")
    assert "unexpected keyword argument" in reading
    # What `scan` needs of PyAV is told without torch, too.
    assert pyav.split()[1] == ("broken" if refuses == "every argument" else "ok")
    assert said.startswith("Not ready to scan, train and track: ")


def test_a_reader_that_seeks_to_the_wrong_frame_is_not_ready(monkeypatch, tmp_path):
    from videossl.decode.pyav_reader import PyavReader
    from videossl.doctor import decoders

    sound = PyavReader.frames_at
    (row,) = decoders.scan_and_read(Place(tmp_path))
    assert row.state == "ok"

    def one_too_early(reader, indices):
        is_single = len(indices) == 1
        return sound(reader, [max(0, number - is_single) for number in indices])

    monkeypatch.setattr(PyavReader, "frames_at", one_too_early)
    (row,) = decoders.scan_and_read(Place(tmp_path))
    assert row.state == "broken"
    assert "wrong frames: [0, 0, 1, 2, 3, 4, 5, 6]" in row.found


def test_times_that_scan_gets_wrong_are_told(monkeypatch, tmp_path):
    from videossl.decode import index as index_module

    path = tmp_path / "tiny.mp4"
    decoders.write_tiny_video(path, "mpeg4")
    assert decoders.listing_fault(path) == ""
    index = index_module.read_index(path)
    late = dataclasses.replace(index, pts=index.pts * 2)
    monkeypatch.setattr(index_module, "read_index", lambda path: late)
    assert "scan lists frames at [0.0, 0.08, " in decoders.listing_fault(path)


def test_missing_torchcodec_and_a_decord_that_crashes_are_rows_of_a_machine_that_is_ready(plant):
    plant(
        torchcodec="raise ModuleNotFoundError(\"No module named 'torchcodec'\", name='torchcodec')",
        decord="import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    )
    rows = rows_of("torchcodec", "decord")
    assert rows["torchcodec"].state == "missing"
    assert "pip install" in rows["torchcodec"].mend
    assert rows["decord"].state == "broken"
    assert "SIGSEGV" in rows["decord"].found
    assert not any(row.stops for row in rows.values())


def test_a_torchvision_of_another_torch_is_told(plant):
    plant(torchvision="raise RuntimeError('operator torchvision::nms does not exist\\nmore')")
    rows = rows_of("torch")
    assert rows["torch"].state == "ok"
    assert rows["torchvision"].state == "broken"
    assert rows["torchvision"].found.endswith("operator torchvision::nms does not exist")
    assert rows["torchvision"].stops


@pytest.mark.parametrize("state", ["ok", "broken"])
def test_the_exit_code_says_whether_what_is_needed_works(monkeypatch, capsys, state):
    row = Row("torch", state, "said", is_required=True)
    monkeypatch.setattr(examination, "examine", lambda targets: [row])
    assert main(["doctor"]) == (state == "broken")
    assert "said" in capsys.readouterr().out


def test_a_module_in_the_working_folder_is_not_run(here):
    assert here["torch"]["state"] == "ok"  # `here` plants one and looks for its trace


def test_tiny_shared_memory_is_not_enough(monkeypatch):
    monkeypatch.setattr(machine, "shared_memory_space", lambda: (64 << 20, 4096))
    (row,) = machine.shared_memory(PLACE)
    assert row.state == "broken"
    assert "--shm-size" in row.mend


def test_docker_s_shared_memory_does_for_one_gpu_and_not_for_two(monkeypatch):
    monkeypatch.setattr(machine, "shared_memory_space", lambda: (64 << 20, 64 << 20))
    monkeypatch.setattr(machine, "num_gpu_devices", lambda: 1)
    assert machine.shared_memory(PLACE)[0].state == "ok"
    monkeypatch.setattr(machine, "num_gpu_devices", lambda: 2)
    (row,) = machine.shared_memory(PLACE)
    assert row.state == "warning"
    assert "NCCL on 2 GPUs" in row.found


def test_a_low_limit_on_open_files_names_the_number_to_set(monkeypatch):
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda kind: (64, 100_000))
    monkeypatch.setattr(machine, "num_cores", lambda: 10)
    (row,) = machine.open_files(PLACE)
    assert row.state == "warning"
    assert row.mend == f"ulimit -n {machine.BASE_FILES + 10 * machine.FILES_A_WORKER}"


def test_a_container_s_share_of_the_processor_is_told(monkeypatch):
    monkeypatch.setattr(machine, "cpu_quota", lambda: 1.5)
    monkeypatch.setattr(machine, "num_cores", lambda: 16)
    (row,) = machine.processor(PLACE)
    assert row.state == "warning"
    assert "data.num_workers=1" in row.mend


def test_little_memory_is_told(monkeypatch):
    monkeypatch.setattr(machine, "available_memory", lambda: 2**30)
    assert machine.memory(PLACE)[0].state == "warning"


def test_a_folder_that_cannot_be_written_makes_it_fail(tmp_path, monkeypatch, capsys):
    def refuse(dir: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(machine.tempfile, "TemporaryFile", refuse)  # root may write anywhere
    monkeypatch.setattr(examination, "checks", lambda: [c for c in checks() if c.name == "folders"])
    assert main(["doctor", "--out", str(tmp_path / "new" / "runs")]) == 1
    out = capsys.readouterr().out
    assert f"folder {tmp_path / 'new' / 'runs'}" in out
    assert "Permission denied" in out
    assert "Not ready" in out
    assert not (tmp_path / "new").exists()


def test_a_file_in_place_of_the_folder_is_told(tmp_path):
    (tmp_path / "runs").write_text("")
    (row,) = machine.writing(Place(tmp_path, (tmp_path / "runs" / "first",)))
    assert row.state == "broken"
    assert "is a file" in row.found


def test_writing_leaves_nothing_behind(tmp_path):
    assert machine.writing(Place(tmp_path, (tmp_path,)))[0].state == "ok"
    assert list(tmp_path.iterdir()) == []


def crash(place: Place) -> list[Row]:
    ctypes.string_at(0)  # reads address 0
    return []


def hang(place: Place) -> list[Row]:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    time.sleep(600)
    return []


def leave(place: Place) -> list[Row]:
    raise SystemExit("no licence found")


def raise_it(place: Place) -> list[Row]:
    raise ZeroDivisionError("of the check itself\nwith more lines")


@pytest.mark.parametrize(
    ("look", "cause"),
    [
        (crash, "ended by SIGSEGV"),
        (hang, "no answer for 3 s"),
        (leave, "no licence found"),
        (raise_it, "ZeroDivisionError: of the check itself"),
    ],
)
def test_a_check_that_breaks_is_a_row_and_the_others_go_on(monkeypatch, look, cause):
    code = "import test_doctor; from videossl.doctor import examination; "
    if look is hang:  # others may take long to start, beside other work
        monkeypatch.setattr(examination, "CHILD_SECONDS", 3.0)
    planted = Check("planted", look, is_required=True, mend="take it away")
    (python,) = [check for check in checks() if check.name == "Python"]
    real = subprocess.run

    def run(arguments, **options):  # a child knows the real checks only: hand it this one
        of_test = f"examination.Check('planted', test_doctor.{look.__name__}, mend='take it away')"
        name = f"examination.checks = lambda: [{of_test}]"
        started = arguments[2].replace("examination.child()", f"{name}; examination.child()")
        arguments[2] = started.replace("from videossl.doctor", f"{code}from videossl.doctor", 1)
        return real(arguments, **options)

    monkeypatch.setattr(examination.subprocess, "run", run)
    rows = by_name(examine([], [planted, python]))
    assert rows["planted"].state == "broken"
    assert rows["planted"].found.startswith("failed: ")
    assert rows["planted"].found.endswith(cause)
    assert rows["planted"].stops
    assert rows["planted"].mend == "take it away"
    assert rows["Python"].state == "ok"


def test_a_check_in_this_process_that_breaks_is_a_row_too():
    (row,) = examine([], [Check("planted", raise_it, is_apart=False)])
    assert row.found == "failed: ZeroDivisionError: of the check itself"
    assert not row.stops


def test_wrong_frames_are_told():
    right = np.stack([decoders.picture(number) for number in range(decoders.NUM_FRAMES)])
    assert decoders.fault(right) == ""
    assert "wrong frames: [1, 0, 2" in decoders.fault(right[[1, 0, 2, 3, 4, 5, 6, 7]])
    assert "wrong colours" in decoders.fault(right[..., ::-1])
    assert "in place of (8, 96, 128, 3)" in decoders.fault(right[:7])


def test_a_decoder_that_gives_wrong_frames_is_broken(monkeypatch, tmp_path):
    read = decoders.read_with_pyav

    def swapped(path: Path):
        frames, name = read(path)
        return frames[..., ::-1], name

    monkeypatch.setattr(decoders, "read_with_pyav", swapped)
    (row,) = decoders.pyav(Place(tmp_path))
    assert row.state == "broken"
    assert "wrong colours" in row.found


def test_plain_lines_are_aligned_and_the_verdict_names_what_stops():
    rows = [
        Row("a", "ok", "fine"),
        Row("longer", "broken", "not fine", "mend it", is_required=True),
        Row("b", "missing", "not there", "get it"),
    ]
    lines = plain_lines(rows)
    assert lines[0].index("fine") == lines[1].index("not fine") == lines[2].index("mend it") - 6
    assert verdict(rows) == "Not ready to scan, train and track: longer."
    assert verdict(rows[:1]) == "Ready to scan, train and track."
    assert verdict([rows[0], rows[2]]).endswith("Optional parts that do not work here: b.")


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs as torch would show them, of which the second adds wrongly."""
    import torch

    real = torch.ones
    answers = iter([1.0, 1023 / 1024])
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(machine, "_driver_version", lambda: "580.65 for CUDA up to 13.0")
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"H{index}")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (70 * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch, "ones", lambda count, device: real(count) * next(answers))


def test_each_gpu_is_a_row_with_its_memory_and_one_that_adds_wrongly_is_broken(gpus):
    cuda, first, second = machine.cuda(PLACE)
    assert (cuda.state, first.state, second.state) == ("ok", "ok", "broken")
    assert cuda.found == "torch is built for CUDA 13.0; driver 580.65 for CUDA up to 13.0"
    assert first.found == "H0, 70.0 GiB free of 80.0 GiB"
    assert "1024 ones add up to 1023" in second.found


def test_a_driver_that_is_too_old_for_torch_is_told(gpus, monkeypatch):
    import torch

    def refuse() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old\nPlease update")

    monkeypatch.setattr(torch.cuda, "init", refuse)
    (row,) = machine.cuda(PLACE)
    assert row.state == "broken"
    assert row.found.endswith("RuntimeError: The NVIDIA driver on your system is too old")
    assert "update the driver" in row.mend


def test_nvdec_is_tried_on_every_gpu_and_needs_torchcodec(gpus, monkeypatch, tmp_path):
    from videossl.decode import backends
    from videossl.doctor import decoders

    tried = []

    def by_reader(name: str, version: str, path: Path, device: str) -> Row:
        tried.append((name, device, path.is_file()))
        return Row(name, "ok", version)

    monkeypatch.setattr(decoders, "_by_reader", by_reader)
    monkeypatch.setattr(backends, "available_backends", lambda: {"torchcodec": ""})
    assert len(decoders.nvdec(Place(tmp_path))) == 2
    assert tried == [("NVDEC 0", "cuda:0", True), ("NVDEC 1", "cuda:1", True)]
    monkeypatch.setattr(backends, "available_backends", lambda: {"torchcodec": "no FFmpeg"})
    (row,) = decoders.nvdec(Place(tmp_path))
    assert (row.state, row.found) == ("missing", "it needs torchcodec: no FFmpeg")


def test_a_torch_without_cuda_is_told(gpus, monkeypatch):
    import torch

    monkeypatch.setattr(torch.version, "cuda", None)
    (row,) = machine.cuda(PLACE)
    assert (row.state, row.found) == ("missing", "torch is built without CUDA")


def test_help_does_not_wait_for_torch():
    code = "import sys; from videossl.__main__ import main\ntry: main(['doctor', '--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit('torch' in sys.modules or 'av' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
