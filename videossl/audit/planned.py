"""Where in their files clips lie, from the manifest and the plan alone: what codecs and editors mark must not be in them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from videossl.audit.findings import Check
from videossl.data.dataset import ClipDataset, video_times
from videossl.data.sampling import plan_clip_times
from videossl.decode.index import usable_seconds
from videossl.decode.reader import indices_shown_at
from videossl.io.progress import track
from videossl.rng import generator
from videossl.types import ClipSpec

MAX_SHARE = 0.01  # of clips; above, what they hold or reach is named
EDGE = 1e-6  # seconds: times are rounded


@dataclass(frozen=True)
class Placement:
    """How one video's clips of one spec lie in its file."""

    holds_first: bool  # the first frame of the file
    starts_on_first: bool
    starts_on_key: (
        bool | None
    )  # any clip of them; None in a file of which most frames are key frames
    reaches_end: bool  # the last second, or the last tenth of a short file
    crosses_cut: bool | None  # None where no deep scan has looked for cuts


@dataclass(frozen=True)
class _Danger:
    fact: Callable[[Placement], bool | None]
    says: str  # of clips, where it is the case
    unknown: str = ""


DANGERS = (
    _Danger(lambda p: p.starts_on_first, "clips start at the first frame of the file"),
    _Danger(lambda p: p.holds_first, "clips hold the first frame of the file"),
    _Danger(lambda p: p.starts_on_key, "clips start on a key frame", "files are all key frames"),
    _Danger(lambda p: p.reaches_end, "clips reach into the last second of the file"),
    _Danger(
        lambda p: p.crosses_cut, "windows cross a cut", "no deep scan: whether cuts are in them"
    ),
)


def placements(data: ClipDataset, num_positions: int) -> dict[ClipSpec, list[Placement]]:
    """Of the first positions of a dataset, planned as `ClipDataset.decode` plans them; nothing is decoded."""
    found: dict[ClipSpec, list[Placement]] = {spec: [] for spec in data.specs}
    for position in track(range(num_positions), description="planning clips"):
        entry = data.manifest[data.row_at(position)]
        index = entry.index()
        random = generator(data.seed, "clip", position, 0)
        video = video_times(entry, index)
        times = plan_clip_times(video, data.specs, data.rules, random)
        _, usable_end = usable_seconds(video.begin, video.end, video.fps)
        pts = torch.from_numpy(index.pts_seconds)
        is_coded_alone = 2 * int(index.is_key.sum()) > len(pts)
        for spec, planned in times.items():
            shown = indices_shown_at(pts, planned.flatten().tolist(), video.end).numpy()
            shown = shown.reshape(planned.shape)
            first, last = float(planned.min()), float(planned.max())
            is_cut = [first < cut <= last for cut in video.cuts]
            found[spec].append(
                Placement(
                    holds_first=bool((shown == 0).any()),
                    starts_on_first=bool(shown.min() == 0 and shown.ravel()[0] == 0),
                    starts_on_key=None if is_coded_alone else bool(index.is_key[shown[:, 0]].any()),
                    reaches_end=last > usable_end + EDGE,
                    crosses_cut=any(is_cut) if entry.is_deep else None,
                )
            )
    return found


def placement_checks(placed: list[Placement]) -> list[Check]:
    """What share of clips lies where it should not."""
    checks = []
    for danger in DANGERS:
        facts = [fact for p in placed if (fact := danger.fact(p)) is not None]
        if not facts:
            checks.append(Check("sampling", danger.says, True, f"not known: {danger.unknown}"))
            continue
        share = float(np.mean(facts))
        says = f"{danger.says} ({share:.0%} of {len(facts)})"
        checks.append(Check("sampling", danger.says, share <= MAX_SHARE, says, {"share": share}))
    return checks
