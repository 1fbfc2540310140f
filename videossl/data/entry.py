"""The manifest: one Parquet row per video, with all that planning and decoding a clip need before the file is opened."""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from videossl.data.manifest_path import REMEDY
from videossl.decode.container import MAX_FRAMES
from videossl.decode.index import VideoIndex, VideoInfo, frame_ticks, tick_deltas, usable_seconds
from videossl.decode.source import WHOLE_FILE, VideoSource, is_text
from videossl.errors import UserError, VideoDecodeError
from videossl.io.output_files import whole_file

MANIFEST_VERSION = 3
VERSION_KEY = b"videossl_manifest_version"
LEFT_OUT = "left out"
MAX_SECONDS = 1e10  # chosen: clocks that count from 1970 are far below
TIMES = ("begin_seconds", "end_seconds", "usable_begin_seconds", "usable_end_seconds", "fps")
ROWS_PER_GROUP = 100_000
# What cutting tools append to the name of a part: _s0, _part3, -scene-004 (PySceneDetect), _c01 (UCF101 clips).
_PART_SUFFIX = re.compile(r"(_s\d+|_part\d+|-scene-\d+|_c\d+)$", re.IGNORECASE)

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("offset", pa.int64()),
        ("bytes", pa.int64()),
        ("modified", pa.int64()),
        ("group", pa.string()),
        ("label", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("container", pa.string()),
        ("codec", pa.string()),
        ("pixel_format", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("stored_width", pa.int32()),
        ("stored_height", pa.int32()),
        ("rotation", pa.int32()),
        ("is_mirrored", pa.bool_()),
        ("num_frames", pa.int64()),
        ("fps", pa.float64()),
        ("duration_seconds", pa.float64()),
        ("begin_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
        ("usable_begin_seconds", pa.float64()),
        ("usable_end_seconds", pa.float64()),
        ("is_constant_rate", pa.bool_()),
        ("motion", pa.list_(pa.float32())),
        ("key_frames", pa.list_(pa.int32())),
        ("stream_index", pa.int32()),
        ("tick_numerator", pa.int64()),
        ("tick_denominator", pa.int64()),
        ("first_tick", pa.int64()),
        ("last_tick", pa.int64()),
        ("tick_deltas", pa.list_(pa.int32())),
        ("times_by_order", pa.bool_()),
        ("by_decoding", pa.bool_()),
        ("has_closed_groups", pa.bool_()),
        ("is_deep", pa.bool_()),
        ("motion_score", pa.float32()),
        ("bars", pa.list_(pa.int32())),
        ("cuts", pa.list_(pa.float64())),
        ("phash", pa.uint64()),
        ("digest", pa.string()),
    ],
    metadata={VERSION_KEY: str(MANIFEST_VERSION).encode()},
)
_LISTS = frozenset(field.name for field in SCHEMA if pa.types.is_list(field.type))


@dataclass(frozen=True)
class VideoEntry:
    """One video. A broken one keeps where it lies, its group, label, size and reason; the rest is 0 or empty.

    One left out is sound, and not to be used for the reason given.
    """

    # Absolute (as `videossl.decode.source.stored_path` writes it), or a URL; of the shard where it is a member of one.
    path: str
    group: str  # one source: its parts never stand on both sides of a split
    status: str  # "ok", "broken" or "left out"
    reason: str  # why it is broken or left out, in one line; empty where it is ok
    bytes: int  # of the video
    offset: int = WHOLE_FILE  # of the video's first byte in its shard; -1: the whole file
    modified: int = 0  # nanoseconds since 1970; 0 where unknown
    label: str = ""  # never used in training
    container: str = ""
    codec: str = ""
    pixel_format: str = ""
    width: int = 0  # as shown: upright, in square pixels
    height: int = 0
    stored_width: int = 0  # as decoded, see `videossl.decode.index.VideoInfo`
    stored_height: int = 0
    rotation: int = 0  # clockwise degrees from stored to shown
    is_mirrored: bool = False  # left to right, before it is turned
    num_frames: int = 0
    fps: float = 0.0
    duration_seconds: float = 0.0
    begin_seconds: float = 0.0
    end_seconds: float = 0.0
    # What the codec does not mark, see `videossl.decode.index.usable_seconds`.
    usable_begin_seconds: float = 0.0
    usable_end_seconds: float = 0.0
    is_constant_rate: bool = False
    # In equal parts of the file: packet sizes (`videossl.decode.index.motion_of`), or luma differences after a deep scan.
    motion: tuple[float, ...] = ()
    key_frames: tuple[int, ...] = ()  # indices of the frames that decoding can start at
    stream_index: int = 0
    # The time of frame k is tick k * tick_numerator / tick_denominator seconds; ticks as in `videossl.decode.index`.
    tick_numerator: int = 0
    tick_denominator: int = 1
    first_tick: int = 0
    last_tick: int = 0
    tick_deltas: tuple[int, ...] = ()
    times_by_order: bool = False  # these three as in `videossl.decode.index.VideoIndex`
    by_decoding: bool = False
    has_closed_groups: bool = False
    # From here on: of a deep scan, else empty; but where one recording follows another is known without.
    is_deep: bool = False
    motion_score: float = 0.0  # mean absolute luma difference of neighbouring frames, of 255
    bars: tuple[int, ...] = ()  # black rows and columns as shown: top, bottom, left, right
    cuts: tuple[float, ...] = ()  # seconds of the first frame of each new shot
    phash: int | None = (
        None  # 64 bits, alike for near-duplicates; None where nothing can be told apart
    )
    digest: str = ""  # of a whole local file, as `VideoSource.ends_digest`: tells of another one put in its place

    def __post_init__(self) -> None:
        if self.status not in ("ok", "broken", LEFT_OUT):
            raise ValueError(f"status must be 'ok', 'broken' or 'left out', got {self.status!r}")

    @property
    def is_ok(self) -> bool:
        """Whether the video can be decoded, and is to be used."""
        return self.status == "ok"

    @property
    def source(self) -> VideoSource:
        """Where the bytes lie."""
        return VideoSource(self.path, self.offset, self.bytes)

    def index(self) -> VideoIndex:
        """What reading all packets of the file would give again: a reader that has it need not.

        Raises VideoDecodeError, which costs this video alone, for a row that cannot be of any.
        """
        keys = self.key_frames
        is_possible = (
            0 < self.num_frames <= MAX_FRAMES
            and len(self.tick_deltas) in (0, self.num_frames - 1)
            and self.tick_denominator > 0
            and (not keys or (min(keys) >= 0 and max(keys) < self.num_frames))
            and all(abs(getattr(self, name)) <= MAX_SECONDS for name in TIMES)
        )
        if not is_possible:
            cause = "its row of the manifest is of no possible video: scan it again"
            raise VideoDecodeError(str(self.source), "manifest", cause)
        names = {field.name for field in fields(VideoInfo)}
        info = VideoInfo(**{name: getattr(self, name) for name in names})
        is_key = np.zeros(self.num_frames, dtype=bool)
        is_key[list(self.key_frames)] = True
        ticks = frame_ticks(self.first_tick, self.last_tick, self.num_frames, self.tick_deltas)
        time_base = Fraction(self.tick_numerator, self.tick_denominator)
        return VideoIndex(
            info=info,
            pts=ticks,
            is_key=is_key,
            time_base=time_base,
            stream_index=self.stream_index,
            times_by_order=self.times_by_order,
            num_bytes=self.bytes,
            by_decoding=self.by_decoding,
            has_closed_groups=self.has_closed_groups,
            digest=self.digest,
        )


_ADDED = ("digest",)  # text that manifests of this version may lack: it came later
_FIELDS = tuple(field.name for field in fields(VideoEntry) if field.name not in _ADDED)


def sound_entry(
    index: VideoIndex, source: VideoSource, *, group: str, label: str = "", modified: int = 0
) -> VideoEntry:
    """The row of a video that decodes."""
    info = index.info
    span = usable_seconds(info.begin_seconds, info.end_seconds, info.fps)
    return VideoEntry(
        path=source.path,
        offset=source.offset,
        bytes=index.num_bytes,
        modified=modified,
        group=group,
        label=label,
        status="ok",
        reason="",
        container=info.container,
        codec=info.codec,
        pixel_format=info.pixel_format,
        width=info.width,
        height=info.height,
        stored_width=info.stored_width,
        stored_height=info.stored_height,
        rotation=info.rotation,
        is_mirrored=info.is_mirrored,
        num_frames=info.num_frames,
        fps=info.fps,
        duration_seconds=info.duration_seconds,
        begin_seconds=info.begin_seconds,
        end_seconds=info.end_seconds,
        usable_begin_seconds=span[0],
        usable_end_seconds=span[1],
        is_constant_rate=info.is_constant_rate,
        motion=info.motion,
        key_frames=tuple(np.flatnonzero(index.is_key).tolist()),
        stream_index=index.stream_index,
        tick_numerator=index.time_base.numerator,
        tick_denominator=index.time_base.denominator,
        first_tick=int(index.pts[0]),
        last_tick=int(index.pts[-1]),
        tick_deltas=tuple(tick_deltas(index.pts).tolist()),
        times_by_order=index.times_by_order,
        by_decoding=index.by_decoding,
        has_closed_groups=index.has_closed_groups,
        cuts=tuple(index.pts_seconds[list(index.joins)].tolist()),
        digest=index.digest,
    )


def source_group(path: str, pattern: str | None = None, *, default: str | None = None) -> str:
    """The source that a file was cut from; `path` is that below the scanned folder, with slashes.

    By default the path, or `default`, without ending and trailing part number (`_s0`, `_part3`, `-scene-004`, `_c01`): files
    of two folders are two sources. With `pattern`, the first group of that regular expression searched in the path, else
    in the file name, where it matches. Raises UserError for a pattern that is not a regular expression with a group.
    """
    if pattern is not None:
        compiled = compile_group_pattern(pattern)
        if match := compiled.search(path) or compiled.search(path.rpartition("/")[2]):
            return match.group(1) or match.group(0)
    folder, slash, name = (path if default is None else default).rpartition("/")
    return folder + slash + _PART_SUFFIX.sub("", PurePosixPath(name).stem)


def compile_group_pattern(pattern: str) -> re.Pattern[str]:
    """The compiled pattern. Raises UserError unless it is a regular expression with a capture group."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"group regex {pattern!r} is not a regular expression: {error}") from None
    if compiled.groups < 1:
        raise UserError(f"group regex {pattern!r} needs a capture group, e.g. '^(.*)_take'")
    return compiled


def write_manifest(entries: Iterable[VideoEntry], path: str | Path) -> None:
    """Writes the rows in the order given, to a temporary name that is renamed at the end.

    Raises UserError if the folder cannot be written.
    """
    with parquet_writer(path, SCHEMA, compression="zstd") as writer:
        rows = iter(entries)
        while batch := list(itertools.islice(rows, ROWS_PER_GROUP)):
            writer.write_batch(entry_batch(batch))


@contextmanager
def parquet_writer(
    path: str | Path, schema: pa.Schema, *, compression: str = "snappy"
) -> Iterator[pq.ParquetWriter]:
    """Writes a Parquet file whole or not at all, whatever its name; raises as `whole_file`."""
    with whole_file(path) as partial, ExitStack() as opened:
        # Arrow itself opens no names that are not UTF-8.
        where = partial if is_text(str(partial)) else opened.enter_context(partial.open("wb"))
        yield opened.enter_context(pq.ParquetWriter(where, schema, compression=compression))


@contextmanager
def parquet_file(path: Path) -> Iterator[pq.ParquetFile]:
    """Opens a Parquet file of any name. Raises OSError and pa.ArrowInvalid.

    By Arrow itself where it can open the name, and never by `pq.read_table` of a Python file: its threads may let go of that
    while Python exits, which ends the process by SIGABRT after all was well (seen with pyarrow 26 on Python 3.11).
    """
    with ExitStack() as opened:
        name = str(path)
        file = opened.enter_context(pa.OSFile(name) if is_text(name) else path.open("rb"))
        yield opened.enter_context(pq.ParquetFile(file))


def entry_batch(entries: Sequence[VideoEntry]) -> pa.RecordBatch:
    """Rows as an Arrow batch of SCHEMA."""
    return pa.RecordBatch.from_pylist([asdict(entry) for entry in entries], schema=SCHEMA)


def entry_of(row: Mapping[str, Any]) -> VideoEntry:
    """The inverse of `entry_batch` for one row."""
    values = {n: tuple(row[n] or ()) if n in _LISTS else row[n] for n in _FIELDS}
    values |= {n: row.get(n) or "" for n in _ADDED}
    return VideoEntry(**values)  # type: ignore[arg-type]


def check_manifest_schema(path: str | Path, schema: pa.Schema) -> None:
    """Raises UserError unless these are the columns of a manifest of this version."""
    missing = [name for name in SCHEMA.names if name not in schema.names and name not in _ADDED]
    version = (schema.metadata or {}).get(VERSION_KEY, b"none").decode()
    if version != "none" and version != str(MANIFEST_VERSION):
        raise UserError(
            f"{path} is a manifest of version {version}, this is {MANIFEST_VERSION}: {REMEDY}"
        )
    if missing:
        some = ", ".join(missing[:4])
        raise UserError(
            f"{path} is no manifest, it lacks {len(missing)} columns, among them {some}: {REMEDY}"
        )
