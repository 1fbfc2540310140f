"""All checks, in the order of the table. No check can bring down another: whatever one does, hang or crash, is a row."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import TextIO

from videossl.doctor import decoders, machine
from videossl.doctor.decoders import ENCODERS
from videossl.doctor.machine import Place, Row, reason
from videossl.workers.pool import num_cores

CHILD_SECONDS = 120.0  # for one check: importing torch from a cold disk takes tens of seconds
_CRASHED = "the check ended by"


@dataclass(frozen=True)
class Check:
    """`look` gives rows, which are required if `is_required`; in a process of its own where it loads others' code."""

    name: str
    look: Callable[[Place], list[Row]]
    is_required: bool = False
    is_apart: bool = True
    mend: str = ""


def checks() -> list[Check]:
    """Every check."""
    codecs = [
        Check(
            f"codec {name}",
            partial(decoders.codec, name=name),
            is_required=name == decoders.REQUIRED_CODEC,
            mend="pip install --force-reinstall av",
        )
        for name in ENCODERS
    ]
    again = "pip install --force-reinstall torch torchvision"
    return [
        Check("Python", machine.python, is_required=True, is_apart=False),
        Check("libraries", machine.libraries, is_required=True, is_apart=False),
        Check("torch", machine.torch, is_required=True, mend=again),
        Check("CUDA", machine.cuda, mend="mend torch first"),
        Check("PyAV", decoders.pyav, is_required=True, mend="pip install --force-reinstall av"),
        Check(
            "scan and read",
            decoders.scan_and_read,
            is_required=True,
            mend=decoders.REINSTALL,
        ),
        Check("torchcodec", decoders.torchcodec, mend="none needed: PyAV reads instead"),
        Check("decord", decoders.decord, mend="none needed: PyAV reads instead"),
        Check("NVDEC", decoders.nvdec, mend="none needed: decode.device=cpu"),
        *codecs,
        Check("processor", machine.processor, is_apart=False),
        Check("memory", machine.memory, is_apart=False),
        Check(
            "shared memory",
            machine.shared_memory,
            is_required=True,
            is_apart=False,
            mend=machine.MORE_SHARED_MEMORY,
        ),
        Check("open files", machine.open_files, is_apart=False),
        Check("folders", machine.writing, is_required=True, is_apart=False),
    ]


def examine(targets: Sequence[Path], only: Sequence[Check] | None = None) -> list[Row]:
    """The rows of all checks, in order; `targets` are the folders whose writing is tried."""
    found = checks() if only is None else list(only)
    with tempfile.TemporaryDirectory(prefix="videossl-doctor-") as folder:
        place = Place(Path(folder), tuple(targets))
        with ThreadPoolExecutor(min(4, num_cores())) as pool:
            # Those in this process wait, so that neither time nor memory is measured beside children.
            apart = {c.name: pool.submit(_look_apart, c, place) for c in found if c.is_apart}
            rows = {name: answer.result() for name, answer in apart.items()}
    with tempfile.TemporaryDirectory(prefix="videossl-doctor-") as folder:
        place = Place(Path(folder), tuple(targets))
        rows |= {check.name: _look(check, place) for check in found if not check.is_apart}
    return [
        replace(row, is_required=check.is_required) for check in found for row in rows[check.name]
    ]


def _look(check: Check, place: Place) -> list[Row]:
    try:
        return check.look(place)
    except Exception as error:  # a check may break in any way: that, too, is a finding
        return [_failed(check, reason(error))]


def _look_apart(check: Check, place: Place) -> list[Row]:
    """The rows of a check in a new process, which is killed when it takes too long."""
    folder = place.folder / check.name.replace(" ", "-")
    answer = folder / "rows.json"
    try:
        folder.mkdir()
        # The same modules are found there as here, also where this process was started as `python -m`.
        code = f"import sys; sys.path[:] = {sys.path!r}; from videossl.doctor import examination; examination.child()"
        arguments = [sys.executable, "-c", code, check.name, str(folder)]
        done = subprocess.run(
            arguments, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE, timeout=CHILD_SECONDS
        )
        if answer.is_file():
            return [Row(**row) for row in json.loads(answer.read_text())]
    except subprocess.TimeoutExpired:
        return [_failed(check, f"no answer for {CHILD_SECONDS:g} s")]
    except (OSError, ValueError, TypeError) as error:
        return [_failed(check, reason(error))]
    return [_failed(check, _ending(done.returncode, done.stderr.decode(errors="replace")))]


def child() -> None:
    """Runs one check, named by the command line, and writes its rows into the folder that stands there."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    check = next(check for check in checks() if check.name == name)
    rows = _look(check, Place(folder))
    partial_answer = folder / "rows.partial"
    partial_answer.write_text(json.dumps([row.as_dict() for row in rows]))
    partial_answer.replace(folder / "rows.json")


def _failed(check: Check, cause: str) -> Row:
    return Row(check.name, "broken", f"failed: {cause}", check.mend)


def _ending(returncode: int, errors: str) -> str:
    """How a process ended that left no rows, and its last word."""
    import signal

    if returncode < 0:
        try:
            name = signal.Signals(-returncode).name
        except ValueError:
            name = f"signal {-returncode}"
        return f"{_CRASHED} {name}"
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    return f"{_CRASHED} exit code {returncode}" + (f": {lines[-1]}" if lines else "")


_COLOURS = {"ok": "green", "warning": "yellow", "missing": "yellow", "broken": "red"}


def write_table(rows: Sequence[Row], stream: TextIO) -> None:
    """Writes all rows and what they come to."""
    if not (stream.isatty() and _write_rich(rows, stream)):
        stream.write("\n".join(plain_lines(rows)) + "\n")
    stream.write(f"\n{verdict(rows)}\n")


def plain_lines(rows: Sequence[Row]) -> list[str]:
    """A line a row, and one below for the remedy of what is not in order."""
    widths = [max(len(row.what) for row in rows), max(len(row.state) for row in rows)]
    lines = []
    for row in rows:
        lines.append(f"{row.what:{widths[0]}}  {row.state:{widths[1]}}  {row.found}")
        if row.mend:
            lines.append(f"{'':{widths[0]}}  {'':{widths[1]}}  mend: {row.mend}")
    return lines


def verdict(rows: Sequence[Row]) -> str:
    """Whether videossl can run here."""
    stopping = [row.what for row in rows if row.stops]
    others = [row.what for row in rows if row.state != "ok" and not row.stops]
    if stopping:
        return f"Not ready to scan, train and track: {', '.join(stopping)}."
    note = f" Optional parts that do not work here: {', '.join(others)}." if others else ""
    return f"Ready to scan, train and track.{note}"


def _write_rich(rows: Sequence[Row], stream: TextIO) -> bool:
    """False where rich is not installed: plain lines then do."""
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    table = Table("what", "state", "found", "how to mend")
    for row in rows:
        style = "red" if row.stops else _COLOURS[row.state]
        table.add_row(Text(row.what), Text(row.state, style=style), Text(row.found), Text(row.mend))
    Console(file=stream).print(table)
    return True
