"""Folders, URLs and lists -> the videos to read, with what the listing itself tells: size, time, label, source group."""

import csv
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from videossl.data.manifest import compile_group_pattern, source_group
from videossl.decode.source import is_url
from videossl.errors import UserError

VIDEO_EXTENSIONS = frozenset(
    (
        *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg"),
        *(".mpeg", ".3gp", ".flv", ".ts", ".wmv", ".ogv", ".gif"),
    )
)
LIST_EXTENSIONS = (".csv", ".txt")
FOLDER_LABELS = "folder"  # `labels`: the first folder below the source
# Web servers do not list folders; those that show one as a page of links each do it in their own way.
UNLISTABLE = ("http", "https")
PATH_COLUMNS = ("path", "file")
_TIME_KEYS = ("mtime", "LastModified", "last_modified", "updated", "created")


@dataclass(frozen=True)
class FoundVideo:
    """One file to read. A size or time of 0 is one that the listing does not tell."""

    path: str  # absolute, or a URL
    bytes: int = 0
    modified: int = 0  # nanoseconds since 1970
    group: str = ""
    label: str = ""


@dataclass
class FoundFiles:
    """What the sources hold: videos, each once, in sorted order, and what was passed over."""

    videos: list[FoundVideo] = field(default_factory=list)
    num_others: int = 0  # files whose names are not those of videos
    unreadable: list[str] = field(default_factory=list)  # "folder: reason"
    notes: list[str] = field(default_factory=list)  # for the summary


@dataclass(frozen=True)
class _ListedRow:
    path: str
    label: str
    group: str


def find_videos(
    sources: Iterable[str | Path], *, labels: str | None = None, group_pattern: str | None = None
) -> FoundFiles:
    """Lists the videos in folders and below, in lists (.csv, .txt), and those named themselves; each once.

    A source is a local path or a URL that fsspec opens. Links to folders are followed, once; a folder that cannot be
    read is noted. `labels` is "folder" (the first folder below the source is the label), a CSV file with the columns
    path, label and group (the last one optional), or None. A list has the columns path, and label and group or not.
    Paths in either are relative to its folder. Where no group is given it is that of `source_group`.

    Raises UserError for a source that does not exist or cannot be listed, and where there is no video at all.
    """
    if group_pattern is not None:
        compile_group_pattern(group_pattern)
    names = [str(source) for source in sources]
    found = FoundFiles()
    videos: dict[str, FoundVideo] = {}
    visited: set[tuple[int, int]] = set()
    for name in names:
        for video in _videos_of(name, found, visited, by_folder=labels == FOLDER_LABELS):
            videos.setdefault(video.path, video)
    if not videos:
        raise UserError(_nothing_found(names, found))
    if labels == FOLDER_LABELS and not any(video.label for video in videos.values()):
        raise UserError(
            f"--labels folder: no video lies in a folder below {', '.join(names)}, where its label would be; "
            "name the folder that holds the folders of the classes"
        )
    if labels not in (None, FOLDER_LABELS):
        _attach_labels(videos, str(labels), found)
    found.videos = [
        video if video.group else replace(video, group=source_group(video.path, group_pattern))
        for _, video in sorted(videos.items())
    ]
    return found


def _videos_of(
    source: str, found: FoundFiles, visited: set[tuple[int, int]], *, by_folder: bool
) -> Iterator[FoundVideo]:
    if source.startswith("file://"):
        source = source.removeprefix("file://")
    if source.lower().endswith(LIST_EXTENSIONS):
        yield from _listed_videos(source)
    elif is_url(source):
        yield from _remote_videos(source, found, by_folder=by_folder)
    else:
        yield from _local_videos(Path(source), found, visited, by_folder=by_folder)


def _local_videos(
    source: Path, found: FoundFiles, visited: set[tuple[int, int]], *, by_folder: bool
) -> Iterator[FoundVideo]:
    if not source.exists():
        raise UserError(f"no such file or folder: {source}")
    root = source.resolve()
    if not source.is_dir():
        yield _local_video(root)  # named by the user: never passed over for its name
        return
    for path in walk_files(root, visited, found.unreadable):
        if path.suffix.lower() not in VIDEO_EXTENSIONS:
            found.num_others += 1
            continue
        folders = path.relative_to(root).parts[:-1]
        yield _local_video(path, label=folders[0] if by_folder and folders else "")


def _local_video(path: Path, *, label: str = "", group: str = "") -> FoundVideo:
    try:
        status = path.stat()
    except OSError:  # a dead link: reading it says why
        return FoundVideo(str(path), label=label, group=group)
    return FoundVideo(str(path), status.st_size, status.st_mtime_ns, group, label)


def walk_files(
    folder: Path,
    visited: set[tuple[int, int]],
    unreadable: list[str],
    *,
    enter: Callable[[Sequence[str]], Sequence[str]] = sorted,
) -> Iterator[Path]:
    """The files in a folder and below, links followed once; `enter` picks and sorts the subfolders to look into.

    Folders seen are added to `visited`, those that cannot be listed to `unreadable`.
    """

    def note(error: OSError) -> None:
        unreadable.append(f"{error.filename}: {error.strerror}")

    for name, folders, files in os.walk(folder, followlinks=True, onerror=note):
        status = Path(name).stat()
        if (status.st_dev, status.st_ino) in visited:  # a link that leads back
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = enter(folders)
        yield from (Path(name, file) for file in files)


def _remote_videos(url: str, found: FoundFiles, *, by_folder: bool) -> Iterator[FoundVideo]:
    if url.split("://")[0] in UNLISTABLE:
        if url.endswith("/"):
            raise UserError(
                f"{url}: http has no listing of folders; name the videos themselves, or a .txt or .csv list of them"
            )
        yield FoundVideo(url)  # the worker that reads it asks for its size
        return
    system, root, infos = _list_remote(url)
    if not infos:
        raise UserError(f"no such file or folder, or an empty one: {url}")
    for name, info in sorted(infos.items()):
        if name != root and Path(name).suffix.lower() not in VIDEO_EXTENSIONS:
            found.num_others += 1
            continue
        folders = Path(name).parts[len(Path(root).parts) : -1]
        label = folders[0] if by_folder and folders else ""
        path = system.unstrip_protocol(name)
        yield FoundVideo(path, int(info.get("size") or 0), _modified(info), label=label)


def _list_remote(url: str) -> tuple[Any, str, dict[str, dict[str, Any]]]:
    import fsspec

    try:
        system, root = fsspec.core.url_to_fs(url)
        return system, root, system.find(root, detail=True)
    except FileNotFoundError:
        raise UserError(f"no such file or folder: {url}") from None
    except Exception as error:  # each kind of storage raises its own: no login, no host, no driver
        cause = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot list {url}: {cause}") from error


def _modified(info: Mapping[str, Any]) -> int:
    """The time of a remote file in nanoseconds, 0 where its storage does not tell it."""
    value = next((info[key] for key in _TIME_KEYS if info.get(key)), 0)
    if isinstance(value, datetime):
        value = value.timestamp()
    return int(value * 1e9) if isinstance(value, int | float) else 0


def _listed_videos(source: str) -> Iterator[FoundVideo]:
    rows = _read_list(source)
    videos = [
        FoundVideo(row.path, group=row.group, label=row.label)
        if is_url(row.path)
        else _local_video(Path(row.path), group=row.group, label=row.label)
        for row in rows
    ]
    local = [video for video in videos if not is_url(video.path)]
    if local and not any(video.bytes for video in local):
        raise UserError(
            f"{source}: not one of its {len(local)} files is there, the first would be {local[0].path}; paths in a list "
            "are relative to its folder"
        )
    yield from videos


def _attach_labels(videos: dict[str, FoundVideo], source: str, found: FoundFiles) -> None:
    """Gives the videos the labels and groups of a CSV file. Raises UserError if it names none of them."""
    if not source.lower().endswith(".csv"):
        raise UserError(f"--labels must be 'folder' or a .csv file, got {source!r}")
    rows = _read_list(source, needs_label=True)
    missing = [row.path for row in rows if row.path not in videos]
    if len(missing) == len(rows):
        first = f", the first of them {missing[0]}" if missing else ""
        raise UserError(
            f"{source} names none of the {len(videos)} videos found{first}; its paths are relative to its folder"
        )
    for row in rows:
        if row.path in videos:
            video = videos[row.path]
            videos[row.path] = replace(video, label=row.label, group=row.group or video.group)
    if missing:
        found.notes.append(f"{source} names {len(missing)} files not found: {missing[0]}, ...")
    if bare := sum(not video.label for video in videos.values()):
        found.notes.append(f"{source} gives {bare} of the {len(videos)} videos no label")


def _read_list(source: str, *, needs_label: bool = False) -> list[_ListedRow]:
    """The rows of a .csv, or of a .txt with a path a line, their paths absolute. Raises UserError for bad ones."""
    text = _read_text(source)
    if is_url(source):
        base = source.rsplit("/", 1)[0] + "/"
    else:
        base = f"{Path(source).parent.resolve()}{os.sep}"
    if source.lower().endswith(".txt"):
        lines = [line.strip() for line in text.splitlines()]
        return [_ListedRow(_join(base, p), "", "") for p in lines if p and not p.startswith("#")]
    reader = csv.DictReader(io.StringIO(text))
    columns = [name.strip() for name in reader.fieldnames or ()]
    reader.fieldnames = columns
    path_column = next((name for name in PATH_COLUMNS if name in columns), None)
    if path_column is None or (needs_label and "label" not in columns):
        wanted = "path and label" if needs_label else "path"
        raise UserError(
            f"{source} needs the columns {wanted} (group as well, if you have it), it has {', '.join(columns) or 'none'}"
        )
    rows = []
    for row in reader:
        if not row[path_column]:
            raise UserError(f"{source}, line {reader.line_num}: the column {path_column} is empty")
        path = _join(base, row[path_column].strip())
        rows.append(_ListedRow(path, row.get("label") or "", row.get("group") or ""))
    return rows


def _read_text(source: str) -> str:
    try:
        if is_url(source):
            import fsspec

            with fsspec.open(source, "rt", encoding="utf-8-sig") as file:
                return file.read()
        return Path(source).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"no such list: {source}") from None
    except UnicodeDecodeError:
        raise UserError(f"{source} is not a text in UTF-8") from None
    except (OSError, ImportError, ValueError) as error:
        raise UserError(f"cannot read {source}: {error}") from None


def _join(base: str, path: str) -> str:
    if is_url(path):
        return path
    return base + path if is_url(base) else os.path.normpath(Path(base, path))


def _nothing_found(sources: list[str], found: FoundFiles) -> str:
    message = (
        f"no video files in {', '.join(sources)} ({found.num_others} other files); "
        f"looked for {' '.join(sorted(VIDEO_EXTENSIONS))}"
    )
    if found.unreadable:
        message += f"; could not read {', '.join(found.unreadable[:3])}"
    return message
