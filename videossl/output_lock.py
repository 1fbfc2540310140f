"""One writer per output: a command locks the folder or file that it writes, and the second one is refused.

The system's record locks (fcntl) end with their process, however that ends, are not handed to its workers, and hold across
the hosts of a network file system that has locks at all. The file that bears the lock says who holds it; one that a killed
command has left is taken over.
"""

import functools
import json
import logging
import os
import platform
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from errno import EACCES, EAGAIN
from pathlib import Path
from typing import IO, Any

from videossl.errors import UserError

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
