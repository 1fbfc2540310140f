"""What listing finds: videos in folders and behind URLs, what it passed over, and names that suggest takes of one scene."""

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

from videossl.catalog.list_file import VIDEO_EXTENSIONS, ListRow
from videossl.data.entry import source_group
from videossl.decode.source import file_system, path_of, protocol_of, remote_cause, split_url
from videossl.errors import UserError
from videossl.io.input_files import is_system_leftover

NO_ENDING = "(no ending)"
NUM_ENDINGS_SHOWN = 10


@dataclass(frozen=True)
class FoundVideo:
    """One file to read. A size or time of 0 is one that the listing does not tell."""

    path: str  # absolute, as `videossl.decode.source.stored_path` writes it, or a URL
    bytes: int = 0
    modified: int = 0  # nanoseconds since 1970
    group: str = ""
    label: str = ""


@dataclass
class FoundFiles:
    """What the sources hold: videos, each once, in sorted order, and what was passed over."""

    videos: list[FoundVideo] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)  # ending: files, not of videos
    unreadable: list[str] = field(default_factory=list)  # "folder: reason"
    notes: list[str] = field(default_factory=list)  # for the summary

    @property
    def num_others(self) -> int:
        """Files whose names are not those of videos."""
        return self.passed_over.total()

    @property
    def other_endings(self) -> str:
        """How many files of which endings were passed over, the commonest first; empty if none."""
        counted = sorted(self.passed_over.items(), key=lambda one: (-one[1], one[0]))
        shown = [f"{count} {ending}" for ending, count in counted[:NUM_ENDINGS_SHOWN]]
        if rest := counted[NUM_ENDINGS_SHOWN:]:
            shown.append(f"{sum(count for _, count in rest)} of {len(rest)} other endings")
        return ", ".join(shown)


@dataclass(frozen=True)
class Listed:
    """A video and where it was found."""

    video: FoundVideo
    key: Hashable  # the same for every path to one file
    below: str  # its path below the source, or as it was given
    place: str  # its path from the root of the file system on, that in an archive after that of the archive
    row: ListRow | None = None  # of the list that names it


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
    try:
        system, root = file_system(url)
        if "*" not in root or system.exists(root):
            return system, root, system.find(root, detail=True)
        infos: dict[str, dict[str, Any]] = {}
        for name in system.glob(root):
            infos |= system.find(name, detail=True)
        return system, root.partition("*")[0].rpartition("/")[0], infos
    except FileNotFoundError:
        raise UserError(f"no such file or folder: {url}") from None
    except Exception as error:  # each kind of storage raises its own: no login, no host, no driver
        raise UserError(f"cannot list {url}: {remote_cause(error, url)}") from error


def _modified(info: Mapping[str, Any]) -> int:
    """The time of a remote file in nanoseconds, 0 where its storage does not tell it."""
    value = next((info[key] for key in _TIME_KEYS if info.get(key)), 0)
    if isinstance(value, datetime):
        value = value.timestamp()
    return int(value * 1e9) if isinstance(value, int | float) else 0


MIN_SHARE = 0.05  # chosen: of the videos that a pattern joins with another, below which names agree by chance
# The first one that joins something is named. Each must leave more than one source.
_PATTERNS = (
    r"^(.+?)_[a-z]{1,2}_(?:cm|nm)_np\d",  # HMDB51: clips of one film differ in what follows its name
    r"S\d{3}C\d{3}(P\d{3})R\d{3}A\d{3}",  # NTU RGB+D: persons
    r"(?:^|/)a\d+_(s\d+)_t\d+",  # UTD-MHAD: subjects
    r"^(.*_g\d+)_c\d+",  # UCF101, cut further
    # KTH's person01
    r"(?:^|[/_.-])((?:person|subject|subj|actor|participant|player|user)[_-]?\d+)(?=[/_.-])",
    r"^(.+?)[_. -]?(?:take|clip|shot|segment|seg|cut|rep|trial)[_. -]?\d+\.[^./]+$",
    r"^(.*\d)[_ -]\d+\.[^./]+$",  # Jump_11_1, Jump_11_10: the last of two numbers counts
)
_BY_PERSON = r"(?:^|/)([^/_]+)_[^/]*$"  # Weizmann's daria_walk, lena_walk1


@dataclass(frozen=True)
class NamedVideo:
    """What is known of a video without reading it."""

    below: str  # its path below the scanned folder
    label: str
    group: str  # the default


def note_on_takes(videos: Sequence[NamedVideo]) -> list[str]:
    """A line that names the regular expression which joins takes that the default groups part; none if there are none."""
    for pattern in _PATTERNS:
        if joined := _joined_by(pattern, videos):
            return [_note(pattern, joined)]
    if _are_by_person(videos) and (joined := _joined_by(_BY_PERSON, videos)):
        return [_note(_BY_PERSON, joined)]
    return []


def _joined_by(pattern: str, videos: Sequence[NamedVideo]) -> list[list[NamedVideo]]:
    """The videos that the pattern puts into one source and the default does not; empty if these are too few or all."""
    is_likely = re.compile(pattern)
    sources: dict[str, list[NamedVideo]] = defaultdict(list)
    for video in videos:
        if is_likely.search(video.below):
            sources[source_group(video.below, pattern)].append(video)
    joined = [members for members in sources.values() if len({v.group for v in members}) > 1]
    enough = sum(map(len, joined)) >= max(2, MIN_SHARE * len(videos))
    leaves_several = len(sources) > 1 or len(videos) > len(next(iter(sources.values()), ()))
    return joined if joined and enough and leaves_several else []


def _are_by_person(videos: Iterable[NamedVideo]) -> bool:
    """Whether names begin with one of several words that stand for a person, or a scene: each with several labels."""
    labels: dict[str, set[str]] = defaultdict(set)
    for video in videos:
        first, underscore, _ = video.below.rpartition("/")[2].partition("_")
        if underscore and video.label and not video.label.casefold().startswith(first.casefold()):
            labels[first].add(video.label)
    return sum(len(one) > 1 for one in labels.values()) > 1


def _note(pattern: str, joined: Sequence[Sequence[NamedVideo]]) -> str:
    first = sorted(joined[0], key=lambda video: video.below)
    names = " and ".join(video.below.rpartition("/")[2] for video in (first[0], first[-1]))
    return (
        f"warning: {sum(map(len, joined))} videos look like takes of {len(joined)} scenes, for example {names}, and are "
        f"sources of their own, which a split may part; this joins them: --group-regex '{pattern}'"
    )
