"""Manifest -> a folder of tar shards that train fast, and their manifest; the same command goes on after any stop.

Shard s holds what the sound videos s * N, ..., s * N + N - 1 of the manifest give, in that order: which they are is a
function of the manifest and the settings, and so are the bytes.
"""

import hashlib
import json
import logging
import signal
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from videossl.data.manifest import VideoEntry
from videossl.data.pack_settings import SETTINGS, PackSettings
from videossl.data.pack_shard import (
    ROWS,
    ShardWriter,
    damaged_samples,
    is_finished,
    read_rows,
    shard_entries,
    shard_path,
    write_packed_manifest,
)
from videossl.data.pack_video import PackedVideo, pack_video
from videossl.data.table import Manifest
from videossl.errors import UserError, VideoDecodeError
from videossl.progress import track
from videossl.workers import TaskFailure, WorkerPool

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
    """Of all that decides what the shards hold."""
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
