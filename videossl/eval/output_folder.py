"""Folders that a command fills: emptied of an earlier run of it, never of anything else."""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from videossl.errors import UserError
from videossl.leftovers import is_system_leftover
from videossl.output_lock import is_lock
from videossl.whole_file import is_unfinished, temporary_name


def check_folder(out: Path, *, marker: str, owned: Sequence[str]) -> None:
    """Raises UserError if the folder holds anything but what a run of the command writes.

    `owned` are the names that such a run writes (`*` at the end for any ending), `marker` is the file that it writes first.
    A folder that does not exist is as good as an empty one. Raises also as `check_writable`.
    """
    check_writable(out)
    if not out.exists():
        return
    entries = sorted(
        entry
        for entry in out.iterdir()
        if not is_unfinished(entry) and not is_system_leftover(entry.name) and not is_lock(entry)
    )
    foreign = [entry.name for entry in entries if not any(entry.match(name) for name in owned)]
    if foreign or (entries and not (out / marker).is_file()):
        names = ", ".join(foreign or [entry.name for entry in entries][:3])
        raise UserError(
            f"{out} holds files that are not from this command ({names}): choose another --out"
        )


def rows_written(result: Path) -> list[str]:
    """The names of the rows of a result.json that was written here before: each has a folder of its own."""
    try:
        rows = json.loads(result.read_text())["rows"]
        return [str(name) for name in rows if Path(name).name == name]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def check_writable(out: Path, *, option: str = "--out") -> None:
    """Raises UserError if the folder cannot be made or written to, with the reason that the system gives.

    It is tried: modes do not tell of read-only file systems, nor of /proc. Nothing is left behind.
    """
    nearest = out.absolute()
    while not os.path.lexists(nearest):
        nearest = nearest.parent
    if not nearest.is_dir():
        what = "is a file" if nearest.is_file() else "is no folder"
        needs = "takes a folder" if nearest == out.absolute() else "must lie in a folder"
        raise UserError(f"{nearest} {what}: {option} {needs}")
    _check_name(out, option)
    try:
        tempfile.TemporaryDirectory(prefix=".videossl-", dir=nearest).cleanup()
    except OSError as error:
        raise UserError(f"{option} {out} cannot be written to: {error.strerror}") from None


def check_writable_file(path: Path, *, option: str) -> None:
    """Raises UserError if there cannot be a file of this name, as `check_writable`."""
    check_writable(path.absolute().parent, option=option)
    _check_name(path, option)
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder: give the name of a file")


def _check_name(path: Path, option: str) -> None:
    """Raises UserError for a name that the system does not take, such as one that is too long."""
    try:
        temporary_name(path.absolute()).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise UserError(f"{option} {path} cannot be written to: {error.strerror}") from None


def clear_folder(out: Path, *, marker: str, owned: Sequence[str]) -> None:
    """Empties the folder, so that no old mask can pass for a new one; raises as `check_folder`."""
    check_folder(out, marker=marker, owned=owned)
    out.mkdir(parents=True, exist_ok=True)
    for entry in sorted(out.iterdir()):
        if entry.is_dir() and not entry.is_symlink():  # what a link leads to is not ours
            shutil.rmtree(entry)
        elif entry.name != marker and not is_lock(entry):
            entry.unlink()
    (out / marker).unlink(missing_ok=True)
