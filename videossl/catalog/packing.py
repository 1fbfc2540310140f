"""Manifest to a folder of tar shards that train fast, and their manifest; the same command goes on after any stop.

Shards are tar files in the layout of WebDataset, each with a file of rows beside it.
"""

import hashlib
import io
import json
import logging
import os
import signal
import tarfile
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from videossl.catalog.pack_plan import SETTINGS
from videossl.catalog.pack_settings import PackSettings
from videossl.catalog.pack_video import PackedShot, PackedVideo, pack_video
from videossl.data.entry import VideoEntry, entry_of, write_manifest
from videossl.data.manifest import Manifest
from videossl.decode.source import VideoSource, stored_path
from videossl.errors import UserError, VideoDecodeError
from videossl.io.output_files import whole_file
from videossl.io.progress import track
from videossl.workers.pool import TaskFailure, WorkerPool

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


FORMAT = 1  # of the folder
AHEAD = 4  # videos per worker that may be done before their turn: they wait in memory
MEMORY_BYTES = 4 * 2**30  # for the decoder's pictures of the largest size allowed
# Chosen: a slow core decodes and encodes ten times as many pixels a second.
LIMIT_SECONDS, LIMIT_PIXELS_PER_SECOND = 60.0, 5e6

log = logging.getLogger("videossl")


@dataclass
class PackSummary:
    """What lies in the folder now."""

    num_shards: int = 0
    num_files: int = 0
    num_bytes: int = 0
    seconds: float = 0.0
    num_short: int = 0
    skipped: Counter[str] = field(default_factory=Counter)  # reasons


def pack_videos(
    manifest: Manifest, folder: Path, settings: PackSettings, *, num_workers: int
) -> PackSummary:
    """Packs the sound videos of a manifest into `folder`, in `num_workers` processes; skips shards that are there.

    A video that fails is skipped and listed in skipped.jsonl. However it ends, finished shards and the manifest of
    them stay. Raises UserError for a folder that holds another pack, and where the disk is full.
    """
    rows = np.flatnonzero(manifest.is_ok())
    if len(rows) == 0:
        raise UserError("the manifest holds no sound video: nothing to pack")
    claim_folder(folder, settings, manifest, rows)
    shards = np.split(rows, range(settings.videos_per_shard, len(rows), settings.videos_per_shard))
    there = [number for number in range(len(shards)) if is_finished(folder, number)]
    sound = set(there) - set(_damaged(folder, there))
    todo = [number for number in range(len(shards)) if number not in sound]
    if len(todo) < len(shards):
        log.info("%d of %d shards are there already", len(shards) - len(todo), len(shards))
    try:
        _write_shards(manifest, folder, settings, num_workers, {n: shards[n] for n in todo})
    except OSError as error:
        raise UserError(_how_far(folder, len(shards), error)) from None
    except BaseException:
        _finished(folder, len(shards))
        raise
    write_packed_manifest(folder, range(len(shards)))
    return _summary(folder, len(shards))


def packed_entries(folder: Path, *, is_deep: bool) -> Iterator[VideoEntry]:
    """The rows of a folder that `pack_videos` filled, those of damaged shards and samples broken.

    Samples are compared with what was packed only if `is_deep`: all bytes are read.
    """
    numbers = [int(path.name.split(".")[0].split("-")[1]) for path in sorted(folder.glob(ROWS))]
    for number in track(numbers, description="checking") if is_deep else numbers:
        lost = "" if is_finished(folder, number) else "its shard is not of the size it had"
        damaged = set(damaged_samples(folder, number) or ()) if is_deep and not lost else set()
        for place, entry in enumerate(shard_entries(folder, number)):
            reason = "its bytes are not those that were packed" if place in damaged else lost
            yield _broken(entry, reason) if reason else entry


def _broken(entry: VideoEntry, reason: str) -> VideoEntry:
    return VideoEntry(
        path=entry.path,
        offset=entry.offset,
        bytes=entry.bytes,
        group=entry.group,
        label=entry.label,
        status="broken",
        reason=reason,
    )


def _damaged(folder: Path, numbers: Sequence[int]) -> Iterator[int]:
    """Those of the finished shards that do not hold what was packed, which is said."""
    unknown = 0
    for number in track(numbers, description="checking"):
        damaged = damaged_samples(folder, number)
        unknown += damaged is None
        if damaged:
            path = shard_path(folder, number).name
            log.warning("%s: %d samples are damaged: it is packed anew", path, len(damaged))
            yield number
    if unknown:
        log.info(
            "%d shards were packed before digests were kept: only their sizes are checked", unknown
        )


def claim_folder(
    folder: Path, settings: PackSettings, manifest: Manifest, rows: np.ndarray
) -> None:
    """Writes pack.json, or raises UserError if it is there and of other settings or videos."""
    ours = {
        "format": FORMAT,
        "settings": asdict(settings),
        "num_videos": len(rows),
        "videos": _digest(manifest, rows),
    }
    path = folder / SETTINGS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            if any(folder.glob("*.tar")):
                raise UserError(f"{folder} holds tar files of something else: name another folder")
            path.write_text(json.dumps(ours, indent=1) + "\n", encoding="utf-8")
            return
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    except ValueError:
        raise UserError(f"{path} is damaged: delete it with the shards beside it") from None
    if theirs != ours:
        raise UserError(
            f"{folder} holds a pack of {_difference(theirs, ours)}: name another folder, or delete that one"
        )


def time_limit(entry: VideoEntry, settings: PackSettings) -> float:
    """Seconds that packing a video may take."""
    frames = max(entry.num_frames, entry.duration_seconds * (settings.fps or 0))
    return LIMIT_SECONDS + frames * entry.width * entry.height / LIMIT_PIXELS_PER_SECOND


def _write_shards(
    manifest: Manifest,
    folder: Path,
    settings: PackSettings,
    num_workers: int,
    shards: dict[int, np.ndarray],
) -> None:
    if not shards:
        return
    rows = [int(row) for members in shards.values() for row in members]
    limit = max(time_limit(manifest[row], settings) for row in rows)
    with WorkerPool(
        _pack_task, min(num_workers, len(rows)), timeout_seconds=limit, memory_bytes=MEMORY_BYTES
    ) as pool:
        packed = track(
            _packed_in_order(manifest, rows, settings, pool), description="packing", total=len(rows)
        )
        for number, members in shards.items():
            writer = ShardWriter(folder, number)
            try:
                for row in members:
                    entry, result = next(packed)
                    if isinstance(result, PackedVideo):
                        writer.add(int(row), entry, result)
                    else:
                        writer.skip(entry, result)
                writer.finish()
            except BaseException:
                writer.abandon()
                raise
        next(packed, None)  # the progress ends its line


def _packed_in_order(
    manifest: Manifest, rows: Sequence[int], settings: PackSettings, pool: WorkerPool
) -> Iterator[tuple[VideoEntry, PackedVideo | str]]:
    """The videos in order, each with what it gives or why it gives nothing."""
    coming = iter(rows)
    waiting: deque[tuple[int, VideoEntry]] = deque()
    results: dict[int, PackedVideo | str] = {}
    while True:
        while len(waiting) < AHEAD * pool.num_workers and (row := next(coming, None)) is not None:
            entry = manifest[row]
            waiting.append((row, entry))
            pool.submit(row, (entry, settings))
        if not waiting:
            return
        while waiting[0][0] not in results:
            for outcome in pool.wait():
                failure = outcome.failure
                results[outcome.key] = outcome.value if failure is None else _reason(failure)
        row, entry = waiting.popleft()
        yield entry, results.pop(row)


def _pack_task(task: tuple[VideoEntry, PackSettings]) -> PackedVideo:
    entry, settings = task
    if hasattr(signal, "setitimer"):  # the pool's own limit is that of its longest video
        signal.setitimer(signal.ITIMER_REAL, time_limit(entry, settings))
    return pack_video(entry, settings)


def _reason(failure: TaskFailure) -> str:
    if isinstance(failure.error, VideoDecodeError):
        return failure.error.cause
    return "it hangs the decoder" if failure.kind == "hang" else failure.cause


def _finished(folder: Path, num_shards: int) -> list[int]:
    """The numbers of the finished shards, once their manifest is written; says so."""
    done = [number for number in range(num_shards) if is_finished(folder, number)]
    write_packed_manifest(folder, done)
    log.info(
        "%d of %d shards are finished and in %s; the same command goes on from there",
        len(done),
        num_shards,
        folder / "manifest.parquet",
    )
    return done


def _how_far(folder: Path, num_shards: int, error: OSError) -> str:
    cause = error.strerror or str(error)
    try:
        done = _finished(folder, num_shards)
    except UserError as second:
        return f"cannot write to {folder}: {cause}; {second}; make room and give the same command again"
    return (
        f"cannot write to {folder}: {cause}; {len(done)} of {num_shards} shards are finished and can be used; make room, "
        "and the same command goes on"
    )


def _summary(folder: Path, num_shards: int) -> PackSummary:
    summary = PackSummary(num_shards)
    for number in range(num_shards):
        rows = read_rows(folder, number)
        assert rows is not None
        summary.num_files += len(rows["entries"])
        summary.num_bytes += rows["bytes"]
        summary.seconds += sum(entry["duration_seconds"] for entry in rows["entries"])
        summary.num_short += rows["num_short"]
        summary.skipped.update(skipped["reason"] for skipped in rows["skipped"])
    return summary


def _digest(manifest: Manifest, rows: np.ndarray) -> str:
    """A digest of all that decides what the shards hold."""
    digest = hashlib.sha256()
    for row in rows:
        e = manifest[int(row)]
        facts = (int(row), e.path, e.offset, e.bytes, e.modified, e.group, e.label, e.cuts, e.bars)
        digest.update(json.dumps(facts).encode())
    return digest.hexdigest()


def _difference(theirs: dict, ours: dict) -> str:
    old, new = theirs.get("settings", {}), ours["settings"]
    changed = [
        f"{name} {old.get(name)} (now {new[name]})" for name in new if old.get(name) != new[name]
    ]
    if changed:
        return "other settings, " + ", ".join(changed)
    return f"another list of videos ({theirs.get('num_videos')}, now {ours['num_videos']}), or one scanned anew"
