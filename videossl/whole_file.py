"""Files that are there whole or not at all, and the one line about a disk that refuses what is written."""

import errno
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from videossl.errors import StorageFull, UserError

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
