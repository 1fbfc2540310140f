"""Files that are there whole or not at all: written under a temporary name, which a rename makes theirs."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from videossl.errors import UserError


@contextmanager
def whole_file(path: str | Path, *, sync: bool = True) -> Iterator[Path]:
    """A name beside `path` to write to, with the same ending; becomes `path` at the end of the block, removed if that fails.

    The folder is made. Without `sync` a power cut may leave an empty file: for what is soon made again, since waiting for
    the disk takes milliseconds for each file. Raises UserError if the system refuses.
    """
    path = Path(path)
    partial = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)  # through a link, another file would be written
        yield partial
        if sync:
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
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
