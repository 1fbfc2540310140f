"""Folders, URLs and lists -> the videos to read, with what the listing itself tells: size, time, label, source group."""

import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import takewhile
from pathlib import Path, PurePosixPath

from videossl.catalog.found import (
    NO_ENDING,
    FoundFiles,
    FoundVideo,
    Listed,
    NamedVideo,
    note_on_takes,
    remote_video,
    remote_videos,
)
from videossl.catalog.list_file import (
    LIST_EXTENSIONS,
    VIDEO_EXTENSIONS,
    ListRow,
    joined,
    list_ending,
    read_list,
    require_one_label,
)
from videossl.data.entry import compile_group_pattern, source_group
from videossl.decode.source import as_text, is_url, local_path, path_of, stored_path
from videossl.errors import UserError
from videossl.io.input_files import is_system_leftover

# Endings of archives, and how fsspec calls them.
ARCHIVES = {
    ".zip": "zip",
    **dict.fromkeys(
        (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2", ".tar.xz", ".txz"), "tar"
    ),
}
FOLDER_LABELS = "folder"  # `labels`: the first folder below the source


def find_videos(
    sources: Iterable[str | Path], *, labels: str | None = None, group_pattern: str | None = None
) -> FoundFiles:
    """Lists the videos in folders and below, in lists, and those named themselves; each file once.

    A source is a local path or a URL that fsspec opens, chained ones too. Links are followed, and what two paths lead to
    is taken once, by the path that comes first; a folder that cannot be read is noted. `labels` is "folder" (the first
    folder below the source is the label), a list with labels, or None. Lists are those of `read_list`; their paths are
    relative to their folder, those of `labels` to that or to a source. Where no group is given it is that of
    `source_group`: by `group_pattern` of the path below the source (as it was given, for a file or in a list), else of
    the path below all sources.

    Raises UserError for a source that does not exist or cannot be listed, where there is no video at all, and for a
    video with two labels.
    """
    if group_pattern is not None:
        compile_group_pattern(group_pattern)
    names = [str(source) for source in sources]
    found = FoundFiles()
    listed: dict[Hashable, Listed] = {}
    visited: set[tuple[int, int]] = set()
    roots: list[str] = []
    num_links = 0
    for name in names:
        for one in _videos_of(name, found, visited, roots, by_folder=labels == FOLDER_LABELS):
            known = listed.get(one.key)
            num_links += known is not None and known.video.path != one.video.path
            listed[one.key] = one if known is None else _merged(known, one)
    if not listed:
        raise UserError(_nothing_found(names, found))
    if labels == FOLDER_LABELS and not any(one.video.label for one in listed.values()):
        raise UserError(
            f"--labels folder: no video lies in a folder below {', '.join(names)}, where its label would be; "
            "name the folder that holds the folders of the classes"
        )
    if labels not in (None, FOLDER_LABELS):
        _attach_labels(listed, roots, str(labels), found)
    if num_links:
        found.notes.append(
            f"{num_links} paths lead to files that others lead to: a file is taken once"
        )
    found.videos = _grouped(listed.values(), roots, group_pattern, found)
    return found


def _merged(known: Listed, other: Listed) -> Listed:
    """One file that was found twice: by its first path, with what each says of it."""
    one, two = known.video, other.video
    if one.label and two.label and one.label != two.label:
        raise UserError(
            f"{one.path} has the label {one.label!r} by {_naming(known)}, and {two.label!r} by {_naming(other)}; a video "
            "has one label: leave one of them out"
        )
    video = replace(one, label=one.label or two.label, group=one.group or two.group)
    return replace(known, video=video)


def _naming(listed: Listed) -> str:
    return (
        f"line {listed.row.line} of a list" if listed.row else f"its folder, as {listed.video.path}"
    )


def _grouped(
    listed: Iterable[Listed], roots: Sequence[str], pattern: str | None, found: FoundFiles
) -> list[FoundVideo]:
    """The videos in sorted order, each with its group."""
    base = _common_folder(roots)
    videos: list[FoundVideo] = []
    by_default: list[NamedVideo] = []
    for one in sorted(listed, key=lambda one: one.video.path):
        video = one.video
        if not video.group:
            default = as_text(_below(base, one.place))
            below = as_text(one.below)
            video = replace(video, group=source_group(below, pattern, default=default))
            by_default.append(NamedVideo(below, video.label, video.group))
        videos.append(video)
    if pattern is None:
        found.notes += note_on_takes(by_default)
    return videos


def _common_folder(roots: Sequence[str]) -> str:
    """The folder in which all of these are, with its last slash; empty if there is none."""
    parts = [root.rstrip("/").split("/") for root in set(roots)]
    levels = takewhile(lambda level: len(set(level)) == 1, zip(*parts, strict=False))
    return "".join(f"{level[0]}/" for level in levels)


def _below(base: str, path: str) -> str:
    return path.removeprefix(base).lstrip("/") or path


def _videos_of(
    source: str,
    found: FoundFiles,
    visited: set[tuple[int, int]],
    roots: list[str],
    *,
    by_folder: bool,
) -> Iterator[Listed]:
    source = local_path(source)
    if source.lower().endswith(".parquet"):
        raise UserError(
            f"{source}: a manifest is what scan writes; name the folders, files or lists of the videos themselves"
        )
    _refuse_archive(source)
    if list_ending(source) and not (not is_url(source) and Path(source).is_dir()):
        yield from _listed_videos(source, roots)
    elif is_url(source):
        yield from remote_videos(source, found, roots, by_folder=by_folder)
    else:
        yield from _local_videos(Path(source), found, visited, roots, by_folder=by_folder)


def _refuse_archive(source: str) -> None:
    """Raises UserError for an archive that is named as if it were a video."""
    path = path_of(source) if is_url(source) else source
    kind = next((k for ending, k in ARCHIVES.items() if path.lower().endswith(ending)), "")
    if not kind or (not is_url(source) and not Path(source).is_file()):
        return
    raise UserError(
        f"{as_text(source)} is an archive: write {kind}://::{as_text(source)} for the videos in it"
    )


def _local_videos(
    source: Path,
    found: FoundFiles,
    visited: set[tuple[int, int]],
    roots: list[str],
    *,
    by_folder: bool,
) -> Iterator[Listed]:
    if not source.exists():
        raise UserError(f"no such file or folder: {as_text(str(source))}")
    root = Path(_absolute(source))
    if not source.is_dir():
        roots.append(str(root.parent))
        # Named by the user: never passed over for its name.
        yield _local_video(root, real=os.path.realpath(root), below=_as_given(source))
        return
    roots.append(str(root))
    # Of the last file, whose neighbours lie there too.
    real_folder: tuple[Path | None, str] = (None, "")
    for path in walk_files(root, visited, found.unreadable):
        if path.suffix.lower() not in VIDEO_EXTENSIONS:
            found.passed_over[as_text(path.suffix.lower()) or NO_ENDING] += 1
            continue
        if path.parent != real_folder[0]:
            real_folder = path.parent, os.path.realpath(path.parent)
        real = os.path.realpath(path) if path.is_symlink() else f"{real_folder[1]}/{path.name}"
        below = path.relative_to(root)
        label = below.parts[0] if by_folder and len(below.parts) > 1 else ""
        yield _local_video(path, real=real, below=str(below), label=as_text(label))


def _local_video(
    path: Path, *, real: str, below: str, label: str = "", row: ListRow | None = None
) -> Listed:
    stored = stored_path(str(path))
    group = row.group if row else ""
    try:
        status = path.stat()
    except (OSError, ValueError):  # a dead link, or a name no system has: reading it says why
        return Listed(FoundVideo(stored, label=label, group=group), real, below, str(path), row)
    video = FoundVideo(stored, status.st_size, status.st_mtime_ns, group, label)
    return Listed(video, _key(real, status), below, str(path), row)


def _key(real: str, status: os.stat_result) -> Hashable:
    """What one file has by all its paths; hard links are of one file too."""
    return (status.st_dev, status.st_ino) if status.st_nlink > 1 else real


def _absolute(path: Path | str) -> str:
    """The path as it was given, from the root on, without the dots that mean nothing."""
    path = os.path.join(Path.cwd(), path)  # noqa: PTH118 (a Path would drop what normpath should judge)
    plain = os.path.normpath(path)
    try:
        # Behind a link, .. is not the folder before.
        return plain if ".." not in path or Path(path).samefile(plain) else path
    except OSError:
        return plain


def _as_given(path: Path) -> str:
    given = os.path.normpath(path)
    return given if not given.startswith("..") else _absolute(path)


def walk_files(
    folder: Path,
    visited: set[tuple[int, int]],
    unreadable: list[str],
    *,
    enter: Callable[[Sequence[str]], Sequence[str]] = sorted,
) -> Iterator[Path]:
    """The files in a folder and below, links followed once; `enter` picks and sorts the subfolders to look into.

    What systems leave behind is passed over. Folders seen are added to `visited`, those that cannot be listed to
    `unreadable`.
    """

    def note(error: OSError) -> None:
        unreadable.append(f"{as_text(str(error.filename))}: {error.strerror}")

    for name, folders, files in os.walk(folder, followlinks=True, onerror=note):
        status = Path(name).stat()
        if (status.st_dev, status.st_ino) in visited:  # a link that leads back
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = enter([one for one in folders if not is_system_leftover(one)])
        yield from (Path(name, file) for file in files if not is_system_leftover(file))


def _listed_videos(source: str, roots: list[str]) -> Iterator[Listed]:
    rows = read_list(source, is_there=partial(_is_beside, source))
    listed = [_listed_video(source, row) for row in rows]
    local = [one for one in listed if not is_url(one.video.path)]
    if local and not any(one.video.bytes for one in local):
        raise UserError(
            f"{source}: not one of its {len(local)} files is there, the first would be {local[0].video.path}; paths in a "
            "list are relative to its folder"
        )
    require_one_label(source, ((one.key, row) for one, row in zip(listed, rows, strict=True)))
    roots += {one.place.rpartition("/")[0] for one in listed}
    yield from listed


def _listed_video(source: str, row: ListRow) -> Listed:
    there = next((path for path in row.paths if _is_beside(source, path)), row.path)
    path = joined(source, there)
    if is_url(path):
        return remote_video(path, row)
    local = _absolute(Path(source).parent / local_path(path))
    below = os.path.normpath(there)
    folder = "" if is_url(source) else _absolute(Path(source).parent)
    if folder and local.startswith(f"{folder}/"):
        below = local.removeprefix(f"{folder}/")
    real = os.path.realpath(local)
    return _local_video(Path(local), real=real, below=below, label=row.label, row=row)


def _is_beside(source: str, path: str) -> bool:
    """Whether a path of a list is that of a local file, which its folder or the path itself says."""
    if is_url(path) or (is_url(source) and not path.startswith("/")):
        return False
    try:
        return os.path.lexists(Path(source).parent / local_path(path))
    except ValueError:  # no path of any system
        return False


class _Directory:
    """Finds listed videos by what a list of labels calls them."""

    def __init__(self, listed: Mapping[Hashable, Listed]) -> None:
        self._keys = set(listed)
        self._by_path = {one.video.path: key for key, one in listed.items()}
        self._by_below: dict[str, list[Hashable]] = {}
        self._by_name: dict[str, list[Hashable]] = {}
        for key, one in listed.items():
            self._by_below.setdefault(one.below, []).append(key)
            self._by_name.setdefault(PurePosixPath(one.below).name, []).append(key)

    def find(self, source: str, row: ListRow) -> Hashable:
        """The key of the video of a row, None if there is none. Raises UserError if it may be one of several."""
        for path in row.paths:
            if (key := self._lying(source, path)) is not None:
                return key
        for path in row.paths:
            name = os.path.normpath(path)
            keys = self._by_below.get(name) or (row.by_name and self._by_name.get(Path(name).name))
            if keys and len(keys) > 1:
                raise UserError(
                    f"{source}, line {row.line}: {as_text(path)} may be any of {len(keys)} videos: write longer paths"
                )
            if keys:
                return keys[0]
        return None

    def knows(self, source: str, path: str) -> bool:
        """Whether a path, as it is written, is that of a video or of a file beside the list."""
        name = os.path.normpath(path)
        return name in self._by_below or _is_beside(source, path)

    def _lying(self, source: str, path: str) -> Hashable:
        """The key of the video that lies where the list says."""
        path = joined(source, path)
        if is_url(path):
            return self._by_path.get(path)
        local = _absolute(Path(source).parent / local_path(path))
        known = self._by_path.get(local)
        if known is not None or not _is_beside(source, path):
            return known
        real = os.path.realpath(local)
        try:
            key = _key(real, Path(local).stat())
        except OSError:
            key = real
        return key if key in self._keys else None


def _attach_labels(
    listed: dict[Hashable, Listed], roots: Sequence[str], source: str, found: FoundFiles
) -> None:
    """Gives the videos the labels and groups of a list. Raises UserError if it names none of them."""
    source = local_path(source)
    if not list_ending(source):
        kinds = ", ".join(LIST_EXTENSIONS[1:])
        raise UserError(f"--labels must be 'folder' or a .csv file (or {kinds}), got {source!r}")
    directory = _Directory(listed)
    rows = read_list(source, is_there=partial(directory.knows, source), needs_label=True)
    keys = [directory.find(source, row) for row in rows]
    missing = [row for row, key in zip(rows, keys, strict=True) if key is None]
    if len(missing) == len(rows):
        first = f", the first of them {as_text(missing[0].path)}" if missing else ""
        raise UserError(
            f"{source} names none of the {len(listed)} videos found{first}; its paths are relative to its folder, or "
            f"below {', '.join(map(as_text, sorted(set(roots))[:3]))}"
        )
    named = [(key, row) for key, row in zip(keys, rows, strict=True) if key is not None]
    require_one_label(source, named)
    for key, row in named:
        video = listed[key].video
        labelled = replace(video, label=row.label or video.label, group=row.group or video.group)
        listed[key] = replace(listed[key], video=labelled)
    if missing:
        first = as_text(missing[0].path)
        found.notes.append(f"{source} names {len(missing)} files not found: {first}, ...")
    if bare := sum(not one.video.label for one in listed.values()):
        found.notes.append(f"{source} gives {bare} of the {len(listed)} videos no label")


def _nothing_found(sources: Sequence[str], found: FoundFiles) -> str:
    endings = f": {found.other_endings}" if found.passed_over else ""
    message = (
        f"no video files in {', '.join(map(as_text, sources))} ({found.num_others} other files{endings}); "
        f"looked for {' '.join(sorted(VIDEO_EXTENSIONS))}"
    )
    if found.unreadable:
        message += f"; could not read {', '.join(found.unreadable[:3])}"
    return message
