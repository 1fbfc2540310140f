"""P7: the same held-out clips from files coded anew. What a cheat or a model loses by it, the codec had told it.

Only the test changes: classifiers have learned on the files as they are, the model too. Clips are cut at the same frames.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from videossl.data.dataset import ClipDataset
from videossl.data.entry import VideoEntry
from videossl.decode.backends import open_video
from videossl.io.pictures import write_video
from videossl.io.progress import track

# What differs from files as they come: where key frames are and that nothing is predicted; coarser; other lengths of groups.
VARIANTS: dict[str, dict[str, str]] = {
    "intra-only": {"g": "1"},
    "CRF 28": {"crf": "28"},
    "groups of 12, no B-frames": {"g": "12", "bf": "0"},
}
MAX_SECONDS = 60.0  # longer videos stay as they are: a test need not code hours
MAX_SHORT_SIDE = (
    360  # pixels at which videos are coded anew, or twice what is decoded if that is more
)
CHUNK = 32  # frames decoded at a time


def transcoded(data: ClipDataset, folder: Path) -> tuple[dict[str, ClipDataset], set[int]]:
    """A dataset of the same clips for each variant, and the rows whose videos were coded anew, into `folder`."""
    rows = [row for row in sorted(set(map(int, data.rows))) if _is_short(data.manifest[row])]
    files: dict[str, dict[int, Path]] = {name: {} for name in VARIANTS}
    short_side = max(MAX_SHORT_SIDE, 2 * data.short_side)
    for row in track(rows, description="coding held-out videos anew"):
        entry = data.manifest[row]
        for number, (name, options) in enumerate(VARIANTS.items()):
            path = folder / f"{number}_{row}.mp4"
            frames = _frames(entry, short_side)
            write_video(path, frames, frames_per_second=entry.fps, options=options)
            files[name][row] = path
    return {name: data.reading(of_variant) for name, of_variant in files.items()}, set(rows)


def _is_short(entry: VideoEntry) -> bool:
    return entry.duration_seconds <= MAX_SECONDS


def _frames(entry: VideoEntry, short_side: int) -> Iterator[np.ndarray]:
    with open_video(entry.source, short_side=short_side, index=entry.index()) as reader:
        for first in range(0, reader.num_frames, CHUNK):
            chunk = range(first, min(first + CHUNK, reader.num_frames))
            yield from reader.frames_at(chunk).data.permute(0, 2, 3, 1).numpy()
