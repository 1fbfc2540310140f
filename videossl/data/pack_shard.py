"""Shards: tar files in the layout of WebDataset, each with a file of rows beside it, and the manifest made of those.

A shard is there once its tar has its name; what is written before that has a name of its own. The bytes are a function
of the members: no dates, no owners.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from videossl.data.manifest import VideoEntry, entry_of, write_manifest
from videossl.data.pack_video import PackedShot, PackedVideo
from videossl.decode.source import VideoSource, stored_path
from videossl.errors import VideoDecodeError
from videossl.whole_file import whole_file

ROWS = "shard-*.rows.json"
BLOCK = tarfile.BLOCKSIZE  # of the header before each member


def shard_path(folder: Path, number: int) -> Path:
    """The tar file."""
    return folder / f"shard-{number:06d}.tar"


def rows_path(folder: Path, number: int) -> Path:
    """The rows of its members, and what was left out of it."""
    return folder / f"shard-{number:06d}.rows.json"


class ShardWriter:
    """Writes one shard. All methods raise OSError where the disk does not take it; then call `abandon`."""

    def __init__(self, folder: Path, number: int) -> None:
        self._folder, self._number = folder, number
        self._partial = folder / f".shard-{number:06d}.tar.partial"
        self._partial.unlink(missing_ok=True)  # through a link, another file would be written
        self._file = self._partial.open("wb")
        self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)
        self._entries: list[dict[str, Any]] = []
        self._skipped: list[dict[str, str]] = []
        self._digests: list[str] = []
        self._num_short = 0

    def add(self, row: int, source: VideoEntry, video: PackedVideo) -> None:
        """Adds the files of the video of this row of the manifest."""
        for number, packed in enumerate(video.shots):
            key = f"{row:08d}-{number:03d}"
            offset = self._add_member(f"{key}.mp4", packed.content)
            self._add_member(f"{key}.json", _description(source, packed))
            # Relative: the folder may be moved before the manifest is written again.
            path = shard_path(self._folder, self._number).name
            entry = replace(packed.entry, path=path, offset=offset, bytes=len(packed.content))
            self._entries.append(asdict(replace(entry, modified=0)))
            self._digests.append(hashlib.sha256(packed.content).hexdigest())
        self._num_short += video.num_short
        if not video.shots:
            self.skip(source, f"none of its shots is long enough (it has {video.num_short})")

    def skip(self, source: VideoEntry, reason: str) -> None:
        """Notes a video that gives no file."""
        self._skipped.append({"path": str(source.source), "reason": " ".join(reason.split())})

    def finish(self) -> None:
        """Makes the shard valid, whole and on disk."""
        self._tar.close()
        _sync_and_close(self._file)
        rows = {
            "bytes": self._partial.stat().st_size if self._entries else 0,
            "entries": self._entries,
            "sha256": self._digests,
            "skipped": self._skipped,
            "num_short": self._num_short,
        }
        _write_json(rows_path(self._folder, self._number), rows)
        if self._entries:
            self._partial.replace(shard_path(self._folder, self._number))
        else:  # readers take a tar without members for a fault
            self._partial.unlink()

    def abandon(self) -> None:
        """Frees the room that an unfinished shard takes."""
        try:
            self._file.close()
        except OSError:  # what it still held does not fit either
            pass
        finally:
            self._partial.unlink(missing_ok=True)

    def _add_member(self, name: str, content: bytes) -> int:
        """Returns the offset of the content in the tar."""
        offset = self._tar.offset + BLOCK
        info = tarfile.TarInfo(name)  # its date, owner and group are 0 and empty
        info.size = len(content)
        self._tar.addfile(info, io.BytesIO(content))
        return offset


def is_finished(folder: Path, number: int) -> bool:
    """Whether the shard and its rows are there, and belong together."""
    rows = read_rows(folder, number)
    if rows is None:
        return False
    if rows["bytes"] == 0:
        return True
    try:
        return shard_path(folder, number).stat().st_size == rows["bytes"]
    except OSError:
        return False


def damaged_samples(folder: Path, number: int) -> list[int] | None:
    """The places among the entries of a finished shard of those whose bytes are not the ones that were packed.

    None where it cannot be told: shards of an earlier version have no digests.
    """
    rows = read_rows(folder, number)
    if rows is None or "sha256" not in rows:
        return None
    found = []
    for place, (entry, digest) in enumerate(zip(rows["entries"], rows["sha256"], strict=True)):
        source = VideoSource(str(folder / entry["path"]), entry["offset"], entry["bytes"])
        try:
            is_whole = hashlib.sha256(source.read()).hexdigest() == digest
        except VideoDecodeError:
            is_whole = False
        if not is_whole:
            found.append(place)
    return found


def read_rows(folder: Path, number: int) -> dict[str, Any] | None:
    """What `ShardWriter.finish` wrote beside the tar, if it did."""
    try:
        return json.loads(rows_path(folder, number).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def write_packed_manifest(folder: Path, numbers: Iterable[int]) -> None:
    """Writes manifest.parquet and skipped.jsonl of the finished shards of these numbers.

    Raises UserError if that fails.
    """
    numbers = list(numbers)
    entries = (entry for number in numbers for entry in shard_entries(folder, number))
    write_manifest(entries, folder / "manifest.parquet")
    with (
        whole_file(folder / "skipped.jsonl") as partial,
        partial.open("w", encoding="utf-8") as file,
    ):
        for number in numbers:
            for skipped in (read_rows(folder, number) or {}).get("skipped", ()):
                file.write(json.dumps(skipped) + "\n")


def shard_entries(folder: Path, number: int) -> Iterator[VideoEntry]:
    """The rows of the samples of a shard, by where the folder lies now."""
    root = folder.resolve()
    for row in (read_rows(folder, number) or {}).get("entries", ()):
        yield replace(entry_of(row), path=stored_path(str(root / row["path"])))


def _description(source: VideoEntry, packed: PackedShot) -> bytes:
    shot = packed.shot
    described = {
        "source": str(source.source),
        "group": source.group,
        "label": source.label,
        "begin_seconds": shot.begin_seconds,
        "end_seconds": shot.end_seconds,
        "fps": float(shot.rate),
        "num_frames": len(shot.frames),
    }
    return json.dumps(described, indent=1).encode() + b"\n"


def _write_json(path: Path, value: Any) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.unlink(missing_ok=True)
        with partial.open("wb") as file:
            file.write(json.dumps(value).encode())
            _sync_and_close(file)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _sync_and_close(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()
