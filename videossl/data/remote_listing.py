"""URLs of folders, archives and files -> the videos there, with what their storage tells of them."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

from videossl.data.found import NO_ENDING, FoundFiles, FoundVideo, Listed
from videossl.data.list_file import ListRow
from videossl.data.video_extensions import VIDEO_EXTENSIONS
from videossl.decode.urls import path_of, protocol_of, split_url
from videossl.errors import UserError
from videossl.leftovers import is_system_leftover

# Web servers do not list folders; those that show one as a page of links each do it in their own way.
UNLISTABLE = ("http", "https")
_TIME_KEYS = ("mtime", "LastModified", "last_modified", "updated", "created")


def remote_videos(
    url: str, found: FoundFiles, roots: list[str], *, by_folder: bool
) -> Iterator[Listed]:
    """Yields the videos of a URL; adds its place to `roots`, what else lies there to `found`.

    Raises UserError if it cannot be listed.
    """
    if protocol_of(url) in UNLISTABLE:
        if path_of(url).endswith("/"):
            raise UserError(
                f"{url}: http has no listing of folders; name the videos themselves, or a .txt or .csv list of them"
            )
        roots.append(_place(url).rpartition("/")[0])
        yield remote_video(url)  # the worker that reads it asks for its size
        return
    before, _, after = split_url(url)
    system, root, infos = _list_remote(url)
    if not infos:
        raise UserError(f"no such file or folder, or an empty one: {url}")
    is_file = set(infos) == {root}
    place = _place(f"{before}{root}{after}")
    roots.append(place.rpartition("/")[0] if is_file else place)
    for name, info in sorted(infos.items()):
        parts = (name,) if is_file else PurePosixPath(name).relative_to(root or ".").parts
        if not is_file and any(map(is_system_leftover, parts)):
            continue
        ending = PurePosixPath(name).suffix.lower()
        if not is_file and ending not in VIDEO_EXTENSIONS:
            found.passed_over[ending or NO_ENDING] += 1
            continue
        is_chained = "::" in before or after
        path = f"{before}{name}{after}" if is_chained else system.unstrip_protocol(name)
        size, label = int(info.get("size") or 0), parts[0] if by_folder and len(parts) > 1 else ""
        video = FoundVideo(path, size, _modified(info), label=label)
        yield Listed(video, path, path_of(url) if is_file else "/".join(parts), _place(path))


def remote_video(url: str, row: ListRow | None = None) -> Listed:
    """One that is named, not listed."""
    label, group = (row.label, row.group) if row else ("", "")
    video = FoundVideo(url, label=label, group=group)
    return Listed(video, url, row.path if row else path_of(url), _place(url), row)


def _place(url: str) -> str:
    """Where a URL leads to, as a path: that of an archive before that in it."""
    before, path, after = split_url(url)
    if after:
        archive = after.removeprefix("::").removeprefix("file://")
        return f"{archive.rstrip('/')}/{path.lstrip('/')}"
    # A query tells videos apart where the path does not end like one.
    plain = path_of(url)
    return before + (plain if PurePosixPath(plain).suffix.lower() in VIDEO_EXTENSIONS else path)


def _list_remote(url: str) -> tuple[Any, str, dict[str, dict[str, Any]]]:
    """The file system, the folder in it and the files below; of a pattern (`zip://*.mp4::...`), those that match."""
    import fsspec

    try:
        system, root = fsspec.core.url_to_fs(url)
        if "*" not in root or system.exists(root):
            return system, root, system.find(root, detail=True)
        infos: dict[str, dict[str, Any]] = {}
        for name in system.glob(root):
            infos |= system.find(name, detail=True)
        return system, root.partition("*")[0].rpartition("/")[0], infos
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
