"""Files that are there whole or not at all: written under a temporary name, which a rename makes theirs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from videossl.errors import UserError


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A name beside `path` to write to, with the same ending; becomes `path` at the end of the block, removed if that fails.

    The folder is made. Raises UserError if the system refuses.
    """
    path = Path(path)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
