"""Found videos -> one `VideoEntry` each. Nothing that lies in the folders may stop it: what crashes, hangs or eats the
memory of the process that reads it is a row with that reason.
"""

import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa

from videossl.catalog.inspect import deepened, inspect_video
from videossl.catalog.listing import FoundFiles, FoundVideo
from videossl.catalog.near_duplicates import (
    FRAMES_PER_SECOND,
    FileKey,
    FrameSignatures,
    SignatureFile,
    SignatureList,
    near_groups,
)
from videossl.data.entry import (
    LEFT_OUT,
    MANIFEST_VERSION,
    VideoEntry,
    entry_of,
    parquet_file,
    sound_entry,
)
from videossl.data.manifest import Manifest, read_manifest
from videossl.decode.index import read_index
from videossl.decode.shown_frames import FramesNotTold
from videossl.decode.source import WHOLE_FILE, VideoSource, is_url
from videossl.errors import UserError, VideoDecodeError
from videossl.io.progress import track
from videossl.workers.pool import Outcome, TaskFailure, WorkerPool


@dataclass
class ScanSummary:
    """Counts of what a scan found, row by row."""

    num_ok: int = 0
    num_broken: int = 0
    num_left_out: int = 0
    num_variable: int = 0
    seconds: float = 0.0
    num_cuts: int = 0
    num_with_bars: int = 0
    groups: set[str] = field(default_factory=set)
    labels: set[str] = field(default_factory=set)
    codecs: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    def counted(self, entries: Iterator[VideoEntry]) -> Iterator[VideoEntry]:
        """Passes the rows on and counts them."""
        for entry in entries:
            self._count(entry)
            yield entry

    def lines(self, found: FoundFiles, *, num_near: int | None = None) -> list[str]:
        """For people: counts, hours, codecs and the commonest reasons of failure."""
        hours = self.seconds / 3600
        left_out = f" {self.num_left_out} left out," if self.num_left_out else ""
        lines = [
            f"{self.num_ok} videos ok ({hours:.2f} h, {len(self.groups)} sources, {self.num_variable} of variable "
            f"rate), {self.num_broken} broken,{left_out} {found.num_others} other files passed over"
        ]
        if found.passed_over:
            lines.append(f"passed over: {found.other_endings}")
        if self.labels:
            lines.append(f"labels: {len(self.labels)}")
        if self.codecs:
            codecs = self.codecs.most_common()
            lines.append("codecs: " + ", ".join(f"{codec} {count}" for codec, count in codecs))
        if num_near is not None:
            lines.append(
                f"decoded: {self.num_cuts} cuts, {self.num_with_bars} videos with black bars, {num_near} with a "
                "near-duplicate (those share a source, so no split parts them)"
            )
        lines += [f"broken, {n} times: {reason}" for reason, n in self.reasons.most_common(5)]
        lines += [f"could not read {folder}" for folder in found.unreadable]
        return lines + found.notes

    def record(self, found: FoundFiles, *, num_near: int | None = None) -> dict[str, object]:
        """The same for scripts, every reason of failure included; what only --deep knows is null without it."""
        is_deep = num_near is not None
        return {
            "ok": self.num_ok,
            "broken": self.num_broken,
            "left_out": self.num_left_out,
            "variable_rate": self.num_variable,
            "other_files": found.num_others,
            "passed_over": dict(found.passed_over.most_common()),
            "seconds": self.seconds,
            "sources": len(self.groups),
            "labels": len(self.labels),
            "codecs": dict(self.codecs.most_common()),
            "cuts": self.num_cuts if is_deep else None,
            "with_black_bars": self.num_with_bars if is_deep else None,
            "near_duplicates": num_near,
            "reasons": dict(self.reasons.most_common()),
            "unreadable_folders": [str(folder) for folder in found.unreadable],
            "notes": list(found.notes),
        }

    def _count(self, entry: VideoEntry) -> None:
        if entry.status == LEFT_OUT:
            self.num_left_out += 1
            return
        if not entry.is_ok:
            self.num_broken += 1
            self.reasons[entry.reason] += 1
            return
        self.num_ok += 1
        self.seconds += entry.duration_seconds
        self.num_variable += not entry.is_constant_rate
        self.num_cuts += len(entry.cuts)
        self.num_with_bars += any(entry.bars)
        self.groups.add(entry.group)
        self.labels.update([entry.label] if entry.label else [])
        self.codecs[entry.codec] += 1


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


BATCH_FILES, BATCH_BYTES = 16, 2**23  # small files share a task: handing one over costs as much
SIZE_CLASS_FACTOR = 8  # files of a size class share a time limit
SMALLEST_CLASS = 2**23
UNKNOWN_BYTES = 2**26  # taken for files whose size the listing does not tell
# Chosen, ten times what a slow disk or decoder takes. All packets are read: a large file takes its time in both.
FAST_SECONDS, FAST_BYTES_PER_SECOND = 10.0, 20e6
DEEP_SECONDS, DEEP_BYTES_PER_SECOND = 60.0, 1e5
MEMORY_BYTES = 4 * 2**30  # 16 reference frames of the largest size allowed, and as much again


_Read = tuple[VideoEntry, FrameSignatures | None]
# A file whose packets do not tell its frames comes back as it was given: it is to be decoded, with time to do so.
_ReadBatch = Callable[[tuple[FoundVideo, ...]], list[_Read | FoundVideo]]


def scan_videos(
    videos: Sequence[FoundVideo],
    journal: Journal,
    *,
    num_workers: int,
    deep: bool = False,
    signatures: SignatureFile | None = None,
) -> int:
    """Reads the videos whose rows the journal lacks, in `num_workers` processes, and appends them; returns how many.

    `deep` decodes every frame, and adds the signatures of some where a file for them is given. A scan that is interrupted
    loses the files that were being read.
    """
    todo = {video.path: video for video in videos if not journal.is_current(video, deep=deep)}
    with_progress = track(
        _read_in_turn(list(todo.values()), num_workers, deep, with_frames=signatures is not None),
        description="scanning",
        total=len(todo),
    )
    for entry, frames in with_progress:
        if signatures is not None and frames is not None:
            video = todo[entry.path]
            signatures.append(FileKey(video.path, video.bytes, video.modified), frames)
        journal.append([entry])
    return len(todo)


def scan_video(
    video: FoundVideo,
    *,
    deep: bool = False,
    signatures: SignatureList | None = None,
    may_decode: bool = True,
) -> VideoEntry:
    """The row of one file; `signatures` takes frames of it if `deep`.

    Never raises for what the file holds, but FramesNotTold where only decoding tells its frames, and it may not.
    """
    source = VideoSource(video.path)
    try:
        index = read_index(source, may_decode=may_decode)
        entry = sound_entry(
            index, source, group=video.group, label=video.label, modified=video.modified
        )
        if not deep:
            return entry
        found = inspect_video(source, index, signatures=signatures)
        return (
            broken_entry(video, found.damage, deep=True) if found.damage else deepened(entry, found)
        )
    except FramesNotTold:
        raise
    except VideoDecodeError as error:
        return broken_entry(video, error.cause, deep=deep)
    except Exception as error:  # a parser bug on one file of a million must not end the scan
        logger.debug("probing %s failed", video.path, exc_info=True)
        return broken_entry(video, f"{type(error).__name__}: {error}", deep=deep)


def broken_entry(video: FoundVideo, reason: str, *, deep: bool = False) -> VideoEntry:
    """The row of a file that cannot be used."""
    return VideoEntry(
        path=video.path,
        group=video.group,
        label=video.label,
        status="broken",
        reason=" ".join(reason.split()),
        bytes=video.bytes,
        modified=video.modified,
        is_deep=deep,
    )


def scanned_entries(
    videos: Sequence[FoundVideo],
    journal: Journal,
    groups: Sequence[str] | None = None,
    left_out: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[VideoEntry]:
    """The rows of the videos in their order; label and group are those of today's listing, or of `groups`.

    `left_out` gives the paths of sound videos that are not to be used, and why.
    """
    for number, video in enumerate(videos):
        group = video.group if groups is None else groups[number]
        entry = replace(journal.entry(video.path), group=group, label=video.label)
        if video.path in left_out:
            entry = replace(entry, status=LEFT_OUT, reason=left_out[video.path])
        yield entry


def merge_near_duplicates(videos: Sequence[FoundVideo], journal: Journal) -> tuple[list[str], int]:
    """The group of each video, one for all that near-duplicates link, and how many videos have a near-duplicate.

    A split keeps groups whole, so near-duplicates never stand on both sides of it.
    """
    hashed: list[tuple[int, int]] = []
    for number, video in enumerate(videos):
        entry = journal.entry(video.path)
        if entry.is_ok and entry.phash is not None:
            hashed.append((number, entry.phash))
    numbers = [number for number, _ in hashed]
    firsts = near_groups(np.array([phash for _, phash in hashed], dtype=np.uint64))
    parent: dict[str, str] = {}

    def root(group: str) -> str:
        while (above := parent.get(group, group)) != group:
            parent[group] = parent.get(above, above)
            group = above
        return group

    for number, first in zip(numbers, firsts, strict=True):
        one, other = root(videos[numbers[first]].group), root(videos[number].group)
        if one != other:
            parent[max(one, other)] = min(one, other)
    sizes = np.bincount(firsts, minlength=1)
    return [root(video.group) for video in videos], int(sizes[sizes > 1].sum())


def time_limit(num_bytes: int, *, deep: bool) -> float:
    """Seconds that reading a file of this size may take."""
    if deep:
        return DEEP_SECONDS + num_bytes / DEEP_BYTES_PER_SECOND
    return FAST_SECONDS + num_bytes / FAST_BYTES_PER_SECOND


def _read_in_turn(
    videos: Sequence[FoundVideo], num_workers: int, deep: bool, *, with_frames: bool
) -> Iterator[_Read]:
    """All of them; without `deep` those that have to be decoded after all come last, and have the time of a deep scan."""
    read = partial(_scan_batch, deep=deep, with_frames=deep and with_frames, may_decode=deep)
    doubtful: list[FoundVideo] = []
    for found in _read_all(videos, num_workers, read, deep=deep, has_time=deep):
        if isinstance(found, FoundVideo):
            doubtful.append(found)
        else:
            yield found
    read = partial(_scan_batch, deep=deep, with_frames=False, may_decode=True)
    for found in _read_all(doubtful, num_workers, read, deep=deep, has_time=True):
        assert not isinstance(found, FoundVideo)
        yield found


def _read_all(
    videos: Sequence[FoundVideo],
    num_workers: int,
    read: _ReadBatch,
    *,
    deep: bool,
    has_time: bool,
) -> Iterator[_Read | FoundVideo]:
    """A pool has one time limit for all its tasks: the files of each size class have a pool of their own."""
    classes: dict[int, list[FoundVideo]] = defaultdict(list)
    for video in videos:
        classes[_size_class(video.bytes or UNKNOWN_BYTES)].append(video)
    for largest, members in sorted(classes.items()):
        batches = [(v,) for v in members] if has_time else list(_batches(members))
        with WorkerPool(
            read,
            min(num_workers, len(batches)),
            timeout_seconds=time_limit(largest, deep=has_time),
            memory_bytes=MEMORY_BYTES,
        ) as pool:
            yield from _read_class(batches, pool, deep)


def _read_class(
    batches: Sequence[tuple[FoundVideo, ...]], pool: WorkerPool, deep: bool
) -> Iterator[_Read | FoundVideo]:
    pool.submit_all((batch, batch) for batch in batches)
    for outcome in pool.outcomes():
        if _is_to_split(outcome):
            pool.submit_all(((video,), (video,)) for video in outcome.key)
        elif outcome.failure is not None:
            yield broken_entry(outcome.key[0], _reason(outcome.failure), deep=deep), None
        else:
            yield from outcome.value


def _is_to_split(outcome: Outcome) -> bool:
    """Whether a task failed and which of its files is to blame is not known yet."""
    return outcome.failure is not None and len(outcome.key) > 1


def _scan_batch(
    videos: tuple[FoundVideo, ...], *, deep: bool, with_frames: bool, may_decode: bool
) -> list[_Read | FoundVideo]:
    read: list[_Read | FoundVideo] = []
    for video in videos:
        wanted = SignatureList(frames_per_second=FRAMES_PER_SECOND) if with_frames else None
        try:
            entry = scan_video(video, deep=deep, signatures=wanted, may_decode=may_decode)
        except FramesNotTold:
            read.append(video)
            continue
        read.append((entry, wanted.result() if wanted is not None and entry.is_ok else None))
    return read


def _reason(failure: TaskFailure) -> str:
    if failure.kind == "hang":
        return f"it hangs the decoder ({failure.cause})"
    if failure.kind == "crash":
        return f"it crashes the decoder ({failure.cause})"
    return failure.cause


def _size_class(num_bytes: int) -> int:
    """The largest size of the class."""
    largest = SMALLEST_CLASS
    while largest < num_bytes:
        largest *= SIZE_CLASS_FACTOR
    return largest


def _batches(videos: Sequence[FoundVideo]) -> Iterator[tuple[FoundVideo, ...]]:
    """Runs of at most BATCH_FILES files and, unless there is but one, BATCH_BYTES bytes."""
    batch: list[FoundVideo] = []
    for video in videos:
        is_full = sum(v.bytes for v in batch) + video.bytes > BATCH_BYTES
        if batch and (is_full or len(batch) == BATCH_FILES):
            yield tuple(batch)
            batch = []
        batch.append(video)
    if batch:
        yield tuple(batch)
