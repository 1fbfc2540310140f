"""Names that suggest takes of one scene, which a split should not part, and the regular expression that would join them."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from videossl.data.manifest import source_group

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
