"""The manifest: one Parquet row per video file, with all that planning a clip needs without opening the file."""

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from videossl.decode.info import VideoInfo
from videossl.errors import UserError

MANIFEST_VERSION = 1
_VERSION_KEY = b"videossl_manifest_version"
# What cutting tools append to the name of a part: _s0, _part3, -scene-004 (PySceneDetect), _c01 (UCF101 clips).
_PART_SUFFIX = re.compile(r"(_s\d+|_part\d+|-scene-\d+|_c\d+)$", re.IGNORECASE)

_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("group", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("bytes", pa.int64()),
        ("container", pa.string()),
        ("codec", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("rotation", pa.int32()),
        ("num_frames", pa.int64()),
        ("fps", pa.float64()),
        ("duration_seconds", pa.float64()),
        ("begin_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
        ("is_constant_rate", pa.bool_()),
        ("motion", pa.list_(pa.float32())),
    ],
    metadata={_VERSION_KEY: str(MANIFEST_VERSION).encode()},
)


@dataclass(frozen=True)
class VideoEntry:
    """One video file. A broken one keeps its path, group, size in bytes and reason; the rest is 0 or empty."""

    path: str  # absolute
    group: str  # one source: its parts never stand on both sides of a split
    status: str  # "ok" or "broken"
    reason: str  # why it is broken, in one line; empty where it is ok
    bytes: int
    container: str = ""
    codec: str = ""
    width: int = 0  # as shown: after rotation
    height: int = 0
    rotation: int = 0  # clockwise degrees from stored to shown
    num_frames: int = 0
    fps: float = 0.0
    duration_seconds: float = 0.0
    begin_seconds: float = 0.0
    end_seconds: float = 0.0
    is_constant_rate: bool = False
    motion: tuple[
        float, ...
    ] = ()  # compressed size as a proxy of motion, see `videossl.decode.info.motion_of`

    def __post_init__(self) -> None:
        if self.status not in ("ok", "broken"):
            raise ValueError(f"status must be 'ok' or 'broken', got {self.status!r}")

    @property
    def is_ok(self) -> bool:
        """Whether the file can be decoded."""
        return self.status == "ok"


def sound_entry(info: VideoInfo, *, group: str, num_bytes: int) -> VideoEntry:
    """The row of a file that decodes."""
    return VideoEntry(
        path=info.path,
        group=group,
        status="ok",
        reason="",
        bytes=num_bytes,
        container=info.container,
        codec=info.codec,
        width=info.width,
        height=info.height,
        rotation=info.rotation,
        num_frames=info.num_frames,
        fps=info.fps,
        duration_seconds=info.duration_seconds,
        begin_seconds=info.begin_seconds,
        end_seconds=info.end_seconds,
        is_constant_rate=info.is_constant_rate,
        motion=info.motion,
    )


def source_group(path: str | Path, pattern: str | None = None) -> str:
    """The source that a file was cut from.

    By default "folder/name" without a trailing part number (`_s0`, `_part3`, `-scene-004`, `_c01`); with `pattern`, the
    first group of that regular expression searched in the file name, where it matches. Raises UserError for a pattern
    that is not a regular expression with a group.
    """
    path = Path(path)
    if pattern is not None and (match := compile_group_pattern(pattern).search(path.name)):
        return match.group(1) or match.group(0)
    return f"{path.parent.name}/{_PART_SUFFIX.sub('', path.stem)}"


def compile_group_pattern(pattern: str) -> re.Pattern[str]:
    """The compiled pattern. Raises UserError unless it is a regular expression with a capture group."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"group regex {pattern!r} is not a regular expression: {error}") from None
    if compiled.groups < 1:
        raise UserError(f"group regex {pattern!r} needs a capture group, e.g. '^(.*)_take'")
    return compiled


def write_manifest(entries: Sequence[VideoEntry], path: str | Path) -> None:
    """Writes the rows in the order given, to a temporary name that is renamed at the end.

    Raises UserError if the folder cannot be written.
    """
    path = Path(path)
    rows = [asdict(entry) for entry in entries]
    table = pa.Table.from_pylist(rows, schema=_SCHEMA)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, partial)
        partial.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)


def read_manifest(path: str | Path) -> list[VideoEntry]:
    """Reads the rows in their order.

    Raises UserError for a missing file, one that is not Parquet or no manifest, and one of another version.
    """
    remedy = "make one with `videossl scan DIR -o manifest.parquet`"
    if Path(path).is_dir():  # Arrow would read the folder as one table
        raise UserError(f"{path} is a folder: name the manifest file in it")
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise UserError(f"no manifest at {path}: {remedy}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except pa.ArrowInvalid:
        raise UserError(f"{path} is not a Parquet file: {remedy}") from None
    missing = [field.name for field in fields(VideoEntry) if field.name not in table.column_names]
    if missing:
        raise UserError(
            f"{path} is no manifest, it lacks the columns {', '.join(missing)}: {remedy}"
        )
    version = (table.schema.metadata or {}).get(_VERSION_KEY, b"none").decode()
    if version != str(MANIFEST_VERSION):
        raise UserError(
            f"{path} is a manifest of version {version}, this is {MANIFEST_VERSION}: {remedy}"
        )
    names = [field.name for field in fields(VideoEntry)]
    return [
        VideoEntry(**{**row, "motion": tuple(row["motion"] or ())})
        for row in table.select(names).to_pylist()
    ]
