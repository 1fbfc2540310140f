"""What a scan has read so far, on disk row by row beside the manifest to be: a scan that is cut off goes on from it."""

import json
import logging
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyarrow as pa

from videossl.data.listing import FoundVideo
from videossl.data.manifest import (
    LEFT_OUT,
    MANIFEST_VERSION,
    VideoEntry,
    entry_of,
    parquet_file,
)
from videossl.data.table import Manifest, read_manifest
from videossl.decode.source import WHOLE_FILE
from videossl.decode.urls import is_url
from videossl.errors import UserError

logger = logging.getLogger("videossl")

_HEADER = {"manifest_version": MANIFEST_VERSION}
_KEY_COLUMNS = ["path", "offset", "bytes", "modified", "status", "is_deep"]


@dataclass(frozen=True)
class _Known:
    """Where a row lies and what must not have changed for it to be true."""

    at: int  # byte in the journal, or row of the manifest
    in_journal: bool
    bytes: int
    modified: int
    is_broken: bool
    is_deep: bool


class Journal:
    """Rows by path: those appended, in this run or one before it, else those of the finished manifest at `manifest`.

    Rows stay on disk; a million of them take a few hundred MB here. Raises UserError if it cannot be written.
    """

    def __init__(self, manifest: str | Path, *, fresh: bool = False) -> None:
        """`fresh` forgets all earlier rows."""
        manifest = Path(manifest)
        self.path = manifest.with_name(f".{manifest.name}.journal")
        self._known: dict[str, _Known] = {}
        self._manifest: Manifest | None = None
        self.num_left_out = 0  # by the earlier scan
        if not fresh:
            self._load_manifest(manifest)
        try:
            manifest.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("w+b" if fresh else "a+b")
            self._load_lines()
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}") from None

    def is_current(self, video: FoundVideo, *, deep: bool) -> bool:
        """Whether the row of this file is there and still true, and of a deep scan where that is asked for."""
        known = self._known.get(video.path)
        if known is None or known.is_deep < deep:
            return False
        if is_url(video.path):
            if known.is_broken:  # a connection that broke, as likely as a file
                return False
            if not video.bytes:  # nothing to compare with
                return True
        return (known.bytes, known.modified) == (video.bytes, video.modified)

    def append(self, entries: Iterable[VideoEntry]) -> None:
        """Adds rows and hands them to the system. Raises UserError where the disk is full."""
        try:
            self._file.seek(0, os.SEEK_END)
            for entry in entries:
                self._remember(entry.path, asdict(entry), self._file.tell())
                self._file.write(json.dumps(asdict(entry)).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}") from None

    def entry(self, path: str) -> VideoEntry:
        """The row of a file as it was read: one that an earlier scan left out is sound."""
        known = self._known[path]
        if not known.in_journal:
            assert self._manifest is not None
            entry = self._manifest[known.at]
            return replace(entry, status="ok", reason="") if entry.status == LEFT_OUT else entry
        self._file.seek(known.at)
        return entry_of(json.loads(self._file.readline()))

    def close(self) -> None:
        """Keeps the rows for the next run."""
        self._file.close()

    def remove(self) -> None:
        """Ends it: the manifest holds the rows now."""
        self.close()
        self.path.unlink(missing_ok=True)

    def _load_manifest(self, path: Path) -> None:
        if not path.exists():
            return
        try:
            self._manifest = read_manifest(path)
            with parquet_file(path) as file:
                table = file.read(_KEY_COLUMNS)
        except (UserError, OSError, pa.ArrowInvalid) as error:
            logger.info("%s; every video is read anew", error)
            return
        rows = zip(*(table[name].to_pylist() for name in _KEY_COLUMNS), strict=True)
        for row, (name, offset, num_bytes, modified, status, is_deep) in enumerate(rows):
            if offset == WHOLE_FILE:
                is_broken = status == "broken"
                self._known[name] = _Known(row, False, num_bytes, modified, is_broken, is_deep)
                self.num_left_out += status == LEFT_OUT

    def _load_lines(self) -> None:
        self._file.seek(0)
        at, lines = 0, iter(self._file.readline, b"")
        header = next(lines, b"")
        if header != _line(_HEADER):  # new, or of another version
            self._file.truncate(0)
            self._file.write(_line(_HEADER))
            self._file.flush()
            return
        at = len(header)
        for line in lines:
            if not line.endswith(b"\n"):
                break  # torn when the last run was cut off
            row = json.loads(line)
            self._remember(row["path"], row, at)
            at += len(line)
        self._file.truncate(at)

    def _remember(self, path: str, row: dict, at: int) -> None:
        self._known[path] = _Known(
            at, True, row["bytes"], row["modified"], row["status"] == "broken", row["is_deep"]
        )


def _line(row: dict) -> bytes:
    return json.dumps(row).encode() + b"\n"
