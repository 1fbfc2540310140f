"""What listing finds: videos, and what it passed over."""

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field

from videossl.data.list_file import ListRow

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
