"""Files and folders that a command writes: whole or not at all, by one writer, and never over what is another's."""

import errno
import functools
import json
import logging
import os
import platform
import re
import shutil
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from errno import EACCES, EAGAIN
from pathlib import Path
from typing import IO, Any

from videossl.errors import StorageFull, UserError
from videossl.io.input_files import is_system_leftover

# A disk, a quota, a limit on the size of files: room may be made while a run goes on.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turns what the system says against writing `path` into a UserError, StorageFull where there is no room."""
    try:
        yield
    except OSError as error:
        said = f"{path} cannot be written: {error.strerror or error}"
        if error.errno in _FULL:
            raise StorageFull(f"{said}; make room in {Path(path).parent}") from error
        raise UserError(said) from error


class WholeRecords:
    """A file to append to, record by record: one that a full disk cuts off is taken back, so that the next can be read."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def write(self, record: bytes) -> None:
        """Raises OSError where the disk does not take all of it."""
        begin = self._file.tell()
        try:
            if self._file.write(record) < len(record):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with suppress(OSError):
                self._file.truncate(begin)
                self._file.seek(begin)
            raise

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Ends the file."""
        self._file.close()


@contextmanager
def whole_file(path: str | Path, *, sync: bool = True) -> Iterator[Path]:
    """A name beside `path` to write to, with the same ending; becomes `path` at the end of the block, removed if that fails.

    The folder is made. Without `sync` a power cut may leave an empty file: for what is soon made again, since waiting for
    the disk takes milliseconds for each file. Raises UserError if the system refuses.
    """
    path = Path(path)
    partial = temporary_name(path)
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.unlink(missing_ok=True)  # through a link, another file would be written
            yield partial
            if sync:
                with partial.open("rb") as file:
                    os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """What `whole_file` calls a file until it is whole; of this process, since several may write the same one."""
    return path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")


def is_unfinished(path: Path) -> bool:
    """Whether this is what `whole_file` leaves of a process that was killed."""
    return re.fullmatch(r"\..+\.\d+\.partial(\..+)?", path.name) is not None


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file whole or not at all; raises as `whole_file`."""
    with whole_file(path) as partial:
        # A name that is not UTF-8 must not cost the page that mentions it.
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | Path, record: Mapping[str, object]) -> None:
    """Writes a record whole or not at all; raises as `whole_file`."""
    write_text(path, json.dumps(record, indent=1) + "\n")


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("videossl")

Command = Callable[[Namespace], int]
IN_FOLDER = ".videossl.lock"


def is_lock(path: Path) -> bool:
    """Whether this is the lock of a folder, which is no part of what lies there."""
    return path.name == IN_FOLDER


@contextmanager
def writing_to_folder(folder: Path) -> Iterator[None]:
    """Locks a folder for the block; it is made, and goes again where nothing was written.

    Raises UserError, having changed nothing, while another process has it locked, and where a file has its name.
    """
    if folder.is_file():
        raise UserError(f"{folder} is a file: name a folder")
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with _locked(folder, folder / IN_FOLDER):
            yield
    finally:
        for path in missing:
            with suppress(OSError):  # it holds something now
                path.rmdir()


@contextmanager
def writing_file(path: Path) -> Iterator[None]:
    """Locks the name of a file for the block; raises as `writing_to_folder`."""
    with _locked(path, path.with_name(f".{path.name}{IN_FOLDER}")):
        yield


def locks_folder(run: Command) -> Command:
    """A command that has the folder `args.out` locked while it runs."""
    return _locking(run, writing_to_folder)


def locks_file(run: Command) -> Command:
    """A command that has the file `args.out` locked while it runs."""
    return _locking(run, writing_file)


def _locking(run: Command, lock: Callable[[Path], AbstractContextManager[None]]) -> Command:
    @functools.wraps(run)
    def locked(args: Namespace) -> int:
        with lock(Path(args.out)):
            return run(args)

    return locked


@contextmanager
def _locked(output: Path, lock: Path) -> Iterator[None]:
    file = _taken(output, lock)
    try:
        yield
    finally:
        if file is not None:
            lock.unlink(
                missing_ok=True
            )  # while it is ours: whoever opened it meanwhile looks again
            file.close()


def _taken(output: Path, lock: Path) -> IO[bytes] | None:
    """The locked file; None where there is none to be had, which is said."""
    if fcntl is None:
        log.info("this system has no record locks: %s", _unnoticed(output))
        return None
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = os.fdopen(os.open(lock, os.O_RDWR | os.O_CREAT, 0o666), "rb+", buffering=0)
        except OSError as error:
            if lock.exists():
                log.warning(
                    "%s cannot be opened (%s): %s", lock, error.strerror, _unnoticed(output)
                )
            return None  # where no lock can be made the command cannot write either, and says why
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(file)
            file.close()
            if error.errno in (EAGAIN, EACCES):
                raise UserError(_refusal(output, holder)) from None
            log.warning("no locks here (%s): %s", error.strerror, _unnoticed(output))
            return None
        if _is_still(lock, file):
            _sign(output, file)
            return file
        file.close()  # its last holder has removed it


def _is_still(lock: Path, file: IO[bytes]) -> bool:
    try:
        return os.path.samestat(lock.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _sign(output: Path, file: IO[bytes]) -> None:
    """Writes down who holds the lock, after a word about one that did not give it back."""
    left, host = _holder(file), platform.node()
    if left.get("host", host) != host:
        log.warning(
            "process %s on %s wrote to %s and was killed; should it still run, end it: then this file system keeps locks "
            "to each host",
            *(left.get("pid"), left["host"], output),
        )
    command = " ".join(["videossl", *sys.argv[1:2]])
    with suppress(OSError):  # on a full disk the lock holds, without a name
        file.seek(0)
        file.truncate()
        file.write(json.dumps({"host": host, "pid": os.getpid(), "command": command}).encode())


def _holder(file: IO[bytes]) -> dict[str, Any]:
    try:
        file.seek(0)
        found = json.load(file)
    except (OSError, ValueError):  # it has not written yet
        return {}
    return found if isinstance(found, dict) else {}


def _refusal(output: Path, holder: dict[str, Any]) -> str:
    command, pid = holder.get("command", "another videossl"), holder.get("pid", "(unknown)")
    where = holder.get("host", "a host not named")
    return f"{output} is being written by {command}, process {pid} on {where}: wait for it, end it, or name another output"


def _unnoticed(output: Path) -> str:
    return f"a second command that writes to {output} is not noticed"


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
