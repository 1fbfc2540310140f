"""Manifests as users open them: rows by number, columns as arrays, and in the memory of the page cache where large.

Parquet is for people and for storage; a row of it cannot be read without its whole row group. Large manifests are
therefore copied once into an Arrow file beside them, which every process maps and none loads.
"""

import functools
import hashlib
import logging
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from videossl.data.entry import (
    MANIFEST_VERSION,
    MAX_SECONDS,
    TIMES,
    VideoEntry,
    check_manifest_schema,
    entry_batch,
    entry_of,
    parquet_file,
)
from videossl.data.manifest_path import REMEDY, check_is_there
from videossl.decode.container import MAX_FRAMES
from videossl.decode.source import WHOLE_FILE, is_text
from videossl.errors import UserError

log = logging.getLogger("videossl")

MAPPED_ROWS = (
    100_000  # from here on a manifest is mapped; below, loading it takes less than a second
)
_ROWS_PER_BATCH = 65_536
_FILE_ENDS = ("begin_seconds", "end_seconds")
_FINGERPRINT_KEY = b"videossl_manifest_fingerprint"


class Manifest(Sequence[VideoEntry]):
    """The rows of a manifest, read when asked for.

    Whole columns come as arrays, made batch by batch. A mapped one is pickled by its path.
    """

    def __init__(self, table: pa.Table, *, path: str = "", mapped: Path | None = None) -> None:
        self.path = path
        self._table = table
        self._mapped = mapped
        lengths = [batch.num_rows for batch in table.to_batches()]
        self._batches = table.to_batches()
        self._starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

    @classmethod
    def from_entries(cls, entries: Sequence[VideoEntry]) -> "Manifest":
        """A manifest that is not written anywhere."""
        return cls(pa.Table.from_batches([entry_batch(entries)]))

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, row: int) -> VideoEntry: ...

    @overload
    def __getitem__(self, row: slice) -> list[VideoEntry]: ...

    def __getitem__(self, row: int | slice) -> VideoEntry | list[VideoEntry]:
        if isinstance(row, slice):
            return [self[index] for index in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(f"no row {row}: the manifest has {len(self)}")
        row %= len(self)
        batch = int(np.searchsorted(self._starts, row, side="right")) - 1
        return entry_of(self._batches[batch].slice(row - self._starts[batch], 1).to_pylist()[0])

    def __iter__(self) -> Iterator[VideoEntry]:
        for batch in self._batches:
            yield from map(entry_of, batch.to_pylist())

    def strings(self, name: str) -> list[str]:
        """A column of strings."""
        return self._table[name].to_pylist()

    def sources(self) -> Iterator[tuple[pa.Array, pa.Array]]:
        """Where the videos lie, for people, and their groups, batch by batch."""
        for batch in self._batches:
            path, offset = batch["path"], batch["offset"]
            ends = [pc.cast(at, pa.string()) for at in (offset, pc.add(offset, batch["bytes"]))]
            # As VideoSource writes it.
            place = pc.binary_join_element_wise("[", ends[0], ":", ends[1], "]", "")
            is_whole = pc.equal(offset, WHOLE_FILE)
            member = pc.binary_join_element_wise(path, place, "")
            yield pc.if_else(is_whole, path, member), batch["group"]

    def digest(self) -> str:
        """The SHA-256 of the file that was read: another one with each change."""
        try:
            with Path(self.path).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror or error}") from None

    def is_ok(self) -> np.ndarray:
        """(rows,) bool: whether the video can be decoded, and is to be used."""
        return self._by_batch(_is_sound)

    def is_usable(self, needed_seconds: float, *, skip_ends: bool) -> np.ndarray:
        """(rows,) bool: whether the video decodes and its usable part, cuts left aside, is that long and not empty."""
        ends = ("usable_begin_seconds", "usable_end_seconds") if skip_ends else _FILE_ENDS

        def judge(batch: pa.RecordBatch) -> pa.Array:
            span = pc.subtract(batch[ends[1]], batch[ends[0]])
            is_long = pc.and_(pc.greater_equal(span, needed_seconds), pc.greater(span, 0))
            return pc.and_(_is_sound(batch), is_long)

        return self._by_batch(judge)

    def rows_with_cuts(self) -> np.ndarray:
        """(N,) int64: the rows where a deep scan found a cut."""
        parts = [
            start + np.flatnonzero(pc.greater(pc.list_value_length(batch["cuts"]), 0))
            for start, batch in zip(self._starts[:-1], self._batches, strict=True)
        ]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def hashed(self, name: str, key: int) -> np.ndarray:
        """(rows,) uint64 of a column of strings: alike for equal strings, otherwise as good as random."""
        return self._by_batch(lambda batch: _hash_strings(batch[name], key))

    def _by_batch(self, column: Callable[[pa.RecordBatch], Any]) -> np.ndarray:
        parts = [np.asarray(column(batch)) for batch in self._batches]
        return np.concatenate(parts) if parts else np.empty(0)

    def forget_pages(self) -> "Manifest":
        """The same manifest without the pages that reading whole columns has brought into this process."""
        return self if self._mapped is None else _map(self._mapped, self.path)

    def __reduce__(self) -> tuple:
        if self._mapped is not None:
            return _map, (self._mapped, self.path)
        return Manifest, (self._table,)


def read_manifest(path: str | Path) -> Manifest:
    """Opens a manifest; one of MAPPED_ROWS rows or more is copied once into a form that can be mapped.

    Raises UserError for a missing file, one that is not Parquet or no manifest, and one of another version.
    """
    path = Path(path)
    check_is_there(path)
    try:
        with parquet_file(path) as file:
            check_manifest_schema(path, file.schema_arrow)
            if file.metadata.num_rows < MAPPED_ROWS:
                return Manifest(file.read(), path=str(path))
            return _map(_mapped_copy(path, file), str(path))
    except pa.ArrowInvalid:
        raise UserError(f"{path} is not a Parquet file: {REMEDY}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def _is_sound(batch: pa.RecordBatch) -> pa.Array:
    """Whether rows are of videos to be used; what no video can be costs itself, and no memory of who plans it."""
    is_ok = pc.equal(batch["status"], "ok")
    is_possible = pc.less_equal(batch["num_frames"], MAX_FRAMES)
    for name in TIMES:
        is_possible = pc.and_(is_possible, pc.less_equal(pc.abs(batch[name]), MAX_SECONDS))
    num_bad = pc.sum(pc.and_(is_ok, pc.invert(is_possible))).as_py()
    if num_bad:
        _say_impossible(
            num_bad, batch["path"].filter(pc.and_(is_ok, pc.invert(is_possible)))[0].as_py()
        )
    return pc.and_(is_ok, is_possible)


@functools.cache
def _say_impossible(count: int, first: str) -> None:
    log.warning(
        "%d rows of the manifest are of no possible video and left out, %s the first: scan them again",
        count,
        first,
    )


def _hash_strings(strings: pa.Array, key: int) -> np.ndarray:
    encoded = strings.dictionary_encode()  # groups repeat
    values = np.array(
        [
            int.from_bytes(hashlib.blake2b(v.encode(), digest_size=8).digest(), "big")
            for v in encoded.dictionary.to_pylist()
        ],
        dtype=np.uint64,
    )
    mixed = (values ^ np.uint64(key)) * np.uint64(0x9E3779B97F4A7C15)
    return (mixed ^ (mixed >> np.uint64(29)))[encoded.indices.to_numpy()]


def _map(mapped: Path, path: str) -> Manifest:
    with pa.memory_map(str(mapped)) as file:
        return Manifest(pa.ipc.open_file(file).read_all(), path=path, mapped=mapped)


def _mapped_copy(path: Path, file: pq.ParquetFile) -> Path:
    """The Arrow file of this very manifest: beside it, or in the temporary folder where that cannot be written."""
    fingerprint = _fingerprint(path)
    beside = path.with_name(f".{path.name}.arrow")
    elsewhere = Path(tempfile.gettempdir()) / f"videossl-{os.getuid()}" / f"{fingerprint}.arrow"
    # Arrow maps no files whose names are not UTF-8.
    places = (beside, elsewhere) if is_text(str(beside)) else (elsewhere,)
    for mapped in places:
        if _fingerprint_of(mapped) == fingerprint:
            return mapped
    log.info("%s: making the form that processes share (once)", path)
    if beside in places:
        try:
            return _write_mapped(beside, file, fingerprint)
        except PermissionError:
            log.info("%s cannot be written: it is kept in %s", beside.parent, elsewhere.parent)
    elsewhere.parent.mkdir(mode=0o700, exist_ok=True)
    return _write_mapped(elsewhere, file, fingerprint)


def _write_mapped(mapped: Path, file: pq.ParquetFile, fingerprint: str) -> Path:
    partial = mapped.with_name(f"{mapped.name}.{os.getpid()}.partial")
    metadata = {**(file.schema_arrow.metadata or {}), _FINGERPRINT_KEY: fingerprint.encode()}
    schema = file.schema_arrow.with_metadata(metadata)
    try:
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for batch in file.iter_batches(batch_size=_ROWS_PER_BATCH):
                writer.write_batch(batch)
        partial.replace(mapped)  # several ranks may race: each writes its own, the last one stays
    finally:
        partial.unlink(missing_ok=True)
    return mapped


def _fingerprint(path: Path) -> str:
    """Tells manifests apart by size and by the end of the file, where Parquet keeps its statistics."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 2**20))
        return f"{MANIFEST_VERSION}-{size}-{zlib.crc32(file.read()):08x}"


def _fingerprint_of(mapped: Path) -> str:
    try:
        with pa.memory_map(str(mapped)) as file:
            metadata = pa.ipc.open_file(file).schema.metadata or {}
    except (OSError, pa.ArrowInvalid):  # absent, or torn
        return ""
    return metadata.get(_FINGERPRINT_KEY, b"").decode()
