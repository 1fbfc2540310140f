"""Folders of mixed files -> one `VideoEntry` per video file. Nothing that lies in the folders may stop it."""

import logging
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

from videossl.data.manifest import VideoEntry, compile_group_pattern, sound_entry, source_group
from videossl.decode.info import read_index
from videossl.decode.source import VideoSource
from videossl.errors import UserError, VideoDecodeError
from videossl.progress import track

VIDEO_EXTENSIONS = frozenset(
    (
        *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg"),
        *(".mpeg", ".3gp", ".flv", ".ts", ".wmv", ".ogv", ".gif"),
    )
)

logger = logging.getLogger("videossl")


@dataclass
class FoundFiles:
    """What lies in the folders: video files by name, in sorted order, and what was passed over."""

    videos: list[Path] = field(default_factory=list)
    num_others: int = 0  # files whose names are not those of videos
    unreadable: list[str] = field(default_factory=list)  # "folder: reason"


def find_videos(sources: Iterable[str | Path]) -> FoundFiles:
    """Lists the video files in folders and below, and the files named themselves; each once.

    Follows links to folders, once. A folder that cannot be read is noted. Raises UserError for a source that does not
    exist and where there is no video file at all.
    """
    folders = [Path(source) for source in sources]
    found = FoundFiles()
    videos: set[Path] = set()
    visited: set[tuple[int, int]] = set()
    for source in folders:
        if not source.exists():
            raise UserError(f"no such file or folder: {source}")
        if source.is_dir():
            for path in _walk(source.resolve(), visited, found.unreadable):
                if path.suffix.lower() in VIDEO_EXTENSIONS:
                    videos.add(path)
                else:
                    found.num_others += 1
        else:
            videos.add(source.resolve())  # named by the user: never passed over for its name
    if not videos:
        raise UserError(_nothing_found(folders, found))
    found.videos = sorted(videos)
    return found


def scan_files(
    paths: Sequence[Path], *, num_workers: int, group_pattern: str | None = None
) -> list[VideoEntry]:
    """Probes the files in `num_workers` processes and returns their rows in the order of `paths`.

    A file that kills its process is broken like any other. Raises UserError for a bad `group_pattern`.
    """
    if group_pattern is not None:
        compile_group_pattern(group_pattern)
    results = _probe_in_pool(paths, num_workers, group_pattern)
    entries = dict(track(results, description="scanning", total=len(paths)))
    return [entries[path] for path in paths]


def scan_file(path: Path, group_pattern: str | None = None) -> VideoEntry:
    """The row of one file. Never raises for what the file holds."""
    group = source_group(path, group_pattern)
    try:
        index = read_index(path)
    except VideoDecodeError as error:
        return broken_entry(path, group, error.cause)
    except Exception as error:  # a parser bug on one file of a million must not end the scan
        logger.debug("probing %s failed", path, exc_info=True)
        return broken_entry(path, group, f"{type(error).__name__}: {error}")
    return sound_entry(index, VideoSource(str(path)), group=group, modified=path.stat().st_mtime_ns)


def broken_entry(path: Path, group: str, reason: str) -> VideoEntry:
    """The row of a file that cannot be used."""
    try:
        num_bytes = path.stat().st_size
    except OSError:
        num_bytes = 0
    one_line = " ".join(reason.split())
    return VideoEntry(
        path=str(path), group=group, status="broken", reason=one_line, bytes=num_bytes
    )


def summary_lines(entries: Sequence[VideoEntry], found: FoundFiles) -> list[str]:
    """What the scan found, for people: counts, hours, codecs and the commonest reasons of failure."""
    sound = [entry for entry in entries if entry.is_ok]
    hours = sum(entry.duration_seconds for entry in sound) / 3600
    variable = sum(not entry.is_constant_rate for entry in sound)
    groups = len({entry.group for entry in sound})
    lines = [
        f"{len(sound)} videos ok ({hours:.2f} h, {groups} sources, {variable} of variable rate), "
        f"{len(entries) - len(sound)} broken, {found.num_others} other files passed over"
    ]
    if sound:
        codecs = Counter(entry.codec for entry in sound).most_common()
        lines.append("codecs: " + ", ".join(f"{codec} {count}" for codec, count in codecs))
    reasons = Counter(entry.reason for entry in entries if not entry.is_ok).most_common(5)
    lines += [f"broken, {count} times: {reason}" for reason, count in reasons]
    lines += [f"could not read {folder}" for folder in found.unreadable]
    return lines


def _walk(folder: Path, visited: set[tuple[int, int]], unreadable: list[str]) -> Iterator[Path]:
    def note(error: OSError) -> None:
        unreadable.append(f"{error.filename}: {error.strerror}")

    for name, folders, files in os.walk(folder, followlinks=True, onerror=note):
        status = Path(name).stat()
        if (status.st_dev, status.st_ino) in visited:  # a link that leads back
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders.sort()
        yield from (Path(name, file) for file in files)


def _nothing_found(sources: Sequence[Path], found: FoundFiles) -> str:
    extensions = " ".join(sorted(VIDEO_EXTENSIONS))
    where = ", ".join(str(source) for source in sources)
    message = f"no video files in {where} ({found.num_others} other files); looked for {extensions}"
    if found.unreadable:
        message += f"; could not read {', '.join(found.unreadable)}"
    return message


def _probe_in_pool(
    paths: Sequence[Path], num_workers: int, group_pattern: str | None
) -> Iterator[tuple[Path, VideoEntry]]:
    remaining = list(paths)
    while remaining:
        done = set()
        with _pool(num_workers) as pool:
            for path, future in _submit_all(pool, remaining, group_pattern):
                try:
                    yield path, future.result()
                except BrokenProcessPool:
                    continue  # this file or one beside it killed its process
                done.add(path)
        remaining = [path for path in remaining if path not in done]
        # Files start in order, so the one that killed the pool is among the first of those without an answer.
        suspects, remaining = remaining[: 2 * num_workers], remaining[2 * num_workers :]
        for path in suspects:
            yield path, _probe_alone(path, group_pattern)


def _submit_all(
    pool: ProcessPoolExecutor, paths: Sequence[Path], group_pattern: str | None
) -> Iterator[tuple[Path, Future[VideoEntry]]]:
    futures = {}
    for path in paths:
        try:
            futures[pool.submit(scan_file, path, group_pattern)] = path
        except BrokenProcessPool:
            break
    for future in as_completed(futures):
        yield futures[future], future


def _probe_alone(path: Path, group_pattern: str | None) -> VideoEntry:
    """In a process of its own: the file that kills it is then known."""
    try:
        with _pool(1) as pool:
            return pool.submit(scan_file, path, group_pattern).result()
    except BrokenProcessPool:
        reason = "it crashes the decoder (the process that read it died)"
        return broken_entry(path, source_group(path, group_pattern), reason)


def _pool(num_workers: int) -> ProcessPoolExecutor:
    # Fork copies whatever threads and locks the caller holds; spawned workers import only what probing needs.
    return ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn"))
