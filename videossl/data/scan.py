"""Found videos -> one `VideoEntry` each. Nothing that lies in the folders may stop it: what crashes, hangs or eats the
memory of the process that reads it is a row with that reason."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType

import numpy as np

from videossl.data.inspect import deepened, inspect_video
from videossl.data.journal import Journal
from videossl.data.listing import FoundVideo
from videossl.data.manifest import LEFT_OUT, VideoEntry, sound_entry
from videossl.data.phash import near_groups
from videossl.data.signature import FRAMES_PER_SECOND, FrameSignatures, SignatureList
from videossl.data.signature_file import FileKey, SignatureFile
from videossl.decode.info import read_index
from videossl.decode.shown_frames import FramesNotTold
from videossl.decode.source import VideoSource
from videossl.errors import VideoDecodeError
from videossl.progress import track
from videossl.workers import Outcome, TaskFailure, WorkerPool

BATCH_FILES, BATCH_BYTES = 16, 2**23  # small files share a task: handing one over costs as much
SIZE_CLASS_FACTOR = 8  # files of a size class share a time limit
SMALLEST_CLASS = 2**23
UNKNOWN_BYTES = 2**26  # taken for files whose size the listing does not tell
# Chosen, ten times what a slow disk or decoder takes. All packets are read: a large file takes its time in both.
FAST_SECONDS, FAST_BYTES_PER_SECOND = 10.0, 20e6
DEEP_SECONDS, DEEP_BYTES_PER_SECOND = 60.0, 1e5
MEMORY_BYTES = 4 * 2**30  # 16 reference frames of the largest size allowed, and as much again

logger = logging.getLogger("videossl")

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
