"""Which videos show footage that must not be trained on, by the signatures of their frames.

SAME_DISTANCE would rather lose a clip than train on footage. Measured on the 868 frames of 13 DAVIS sequences
(2026-11-28): copies, changed and encoded again in 22 ways that are to be found, have their third nearest frame at 0.079
at most, 578 other videos at 0.28 at least. docs/your_videos.md has the table, and what is not found.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import MappingProxyType

import numpy as np

from videossl.data.footage import Footage, read_signatures
from videossl.data.listing import FoundVideo
from videossl.data.signature import NUM_VALUES, FrameSignatures, mirrored
from videossl.data.signature_file import SignatureFile
from videossl.errors import UserError
from videossl.progress import track
from videossl.text_files import csv_text

SAME_DISTANCE = 0.2
NUM_SAME = 3  # frames of a video that must match; all of a video or of footage that has fewer
CHUNK_FRAMES = 256  # compared at once: their products with those of the footage are in memory
BLANK = "not one of its frames can be told from others: they are uniform"
NUM_LINES = 20  # of what is printed; the list holds all


@dataclass(frozen=True)
class SharedFootage:
    """A video and the footage of which it shows frames."""

    path: str
    footage: str
    name: str  # of the footage, for people
    footage_frame: str  # the nearest frame: the name of a picture, or a time
    seconds: float  # of the frame of the video that is nearest to it
    distance: float
    is_mirrored: bool
    begin_seconds: float  # of the first frame of the video that matches
    end_seconds: float  # and of the last one
    num_matching: int
    num_frames: int  # of the video that were looked at

    @property
    def reason(self) -> str:
        """In one line."""
        mirrored = ", mirrored" if self.is_mirrored else ""
        return (
            f"shows {self.name}: {self.num_matching} of {self.num_frames} frames looked at, nearest its frame at "
            f"{self.seconds:.2f} s to {self.footage_frame} (distance {self.distance:.3f}{mirrored})"
        )


class FootageFrames:
    """The signatures of all footage, to look up frames of videos among them."""

    def __init__(
        self,
        pieces: Iterable[tuple[Footage, FrameSignatures]],
        unread: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`unread` are the paths of footage that could not be read, and why."""
        pieces = list(pieces)
        told = [(piece, frames) for piece, frames in pieces if len(frames.values)]
        blank = {piece.path: BLANK for piece, frames in pieces if not len(frames.values)}
        self.unread = {**unread, **blank}
        self._pieces = [piece for piece, _ in told]
        self._frames = [frames for _, frames in told]
        lengths = [len(frames.values) for frames in self._frames]
        self._starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(int)
        units = [frames.unit() for frames in self._frames]
        self._units = np.concatenate(units) if units else np.empty((0, NUM_VALUES), np.float32)

    @property
    def num_pieces(self) -> int:
        """How many pieces of footage were read and can be told apart."""
        return len(self._pieces)

    @property
    def num_frames(self) -> int:
        """How many frames there are, those that cannot be told apart left out."""
        return sum(frames.num_frames for frames in self._frames)

    def shared_with(self, path: str, frames: FrameSignatures) -> list[SharedFootage]:
        """The footage that a video shows, the nearest first."""
        if not len(frames.values) or not self._pieces:
            return []
        nearness = self._nearness(frames.unit())  # (n, pieces)
        found = [
            self._shared(path, frames, piece)
            for piece in np.flatnonzero((nearness >= 1 - SAME_DISTANCE).any(axis=0)).tolist()
            if self._is_shown(frames, nearness[:, piece], self._frames[piece].num_frames)
        ]
        return sorted(found, key=lambda shared: (shared.distance, shared.footage))

    def _nearness(self, units: np.ndarray) -> np.ndarray:
        """(n, pieces) float32: the product of each signature with the nearest one of each piece."""
        parts = []
        for begin in range(0, len(units), CHUNK_FRAMES):
            chunk = units[begin : begin + CHUNK_FRAMES]
            products = np.maximum(chunk @ self._units.T, mirrored(chunk) @ self._units.T)
            parts.append(np.maximum.reduceat(products, self._starts, axis=1))
        return np.concatenate(parts)

    def _is_shown(self, frames: FrameSignatures, nearness: np.ndarray, num_there: int) -> bool:
        times = np.unique(frames.seconds[nearness >= 1 - SAME_DISTANCE])
        return len(times) >= min(NUM_SAME, frames.num_frames, num_there)

    def _shared(self, path: str, frames: FrameSignatures, piece: int) -> SharedFootage:
        there = self._frames[piece]
        ours, theirs = frames.unit(), there.unit()
        products = np.stack([ours @ theirs.T, mirrored(ours) @ theirs.T])
        turn, row, column = np.unravel_index(products.argmax(), products.shape)
        times = np.unique(frames.seconds[products.max(axis=(0, 2)) >= 1 - SAME_DISTANCE])
        footage = self._pieces[piece]
        return SharedFootage(
            path=path,
            footage=footage.path,
            name=footage.name,
            footage_frame=footage.frame_name(float(there.seconds[column])),
            seconds=float(frames.seconds[row]),
            distance=max(0.0, 1 - float(products[turn, row, column])),
            is_mirrored=bool(turn),
            begin_seconds=float(times[0]),
            end_seconds=float(times[-1]),
            num_matching=len(times),
            num_frames=frames.num_frames,
        )


@dataclass
class Overlap:
    """What comparing videos with footage has found."""

    num_pieces: int  # of footage
    num_frames: int
    num_videos: int  # compared
    shared: list[SharedFootage]
    unread_footage: dict[str, str]  # path: why
    unread_videos: dict[str, str]

    @property
    def reasons(self) -> dict[str, str]:
        """Of each video that shows footage, that which it shows nearest."""
        reasons: dict[str, str] = {}
        for one in self.shared:
            reasons.setdefault(one.path, one.reason)
        return reasons

    def lines(self, listed_in: Path) -> list[str]:
        """For people."""
        reasons = self.reasons
        lines = [
            f"footage: {len(reasons)} of {self.num_videos} videos show some of {self.num_pieces} pieces of it "
            f"({self.num_frames} frames) and are left out: {listed_in}"
        ]
        lines += [f"left out: {path} {why}" for path, why in list(reasons.items())[:NUM_LINES]]
        if len(reasons) > NUM_LINES:
            lines.append(f"left out: {len(reasons) - NUM_LINES} more")
        unread = (("footage", self.unread_footage), ("videos", self.unread_videos))
        for kind, failed in unread:
            if failed:
                path, why = next(iter(failed.items()))
                lines.append(f"NOT COMPARED, {len(failed)} of the {kind}: {path}: {why}")
        return lines

    def record(self, listed_in: Path) -> dict[str, object]:
        """The same for scripts, whole."""
        return {
            "pieces": self.num_pieces,
            "frames": self.num_frames,
            "videos_compared": self.num_videos,
            "shared": [asdict(one) for one in self.shared],
            "list": str(listed_in),
            "not_compared": self.unread_footage | self.unread_videos,
        }

    def table(self) -> str:
        """A CSV with a row for each video and piece of footage that it shows."""
        rows = [
            [round(v, 4) if isinstance(v, float) else v for v in asdict(one).values()]
            for one in self.shared
        ]
        return csv_text([[column.name for column in fields(SharedFootage)], *rows])


def read_footage(
    footage: Sequence[Footage], known: SignatureFile, *, num_workers: int
) -> FootageFrames:
    """Reads what `known` lacks in `num_workers` processes. Raises UserError if nothing is left to compare videos with."""
    unread = read_signatures(footage, known, num_workers=num_workers, description="reading footage")
    read = [(piece, known[piece.key]) for piece in footage if piece.key in known]
    frames = FootageFrames(read, unread)
    if not frames.num_pieces:
        path, why = next(iter(frames.unread.items()))
        raise UserError(f"there is no footage to compare videos with: {path}: {why}")
    return frames


def find_overlap(
    videos: Sequence[FoundVideo], footage: FootageFrames, known: SignatureFile, *, num_workers: int
) -> Overlap:
    """Compares the videos, all of them sound, with the footage; those that `known` lacks are read."""
    pieces = [Footage(video.path, video.bytes, video.modified) for video in videos]
    unread = read_signatures(
        pieces, known, num_workers=num_workers, description="looking at frames"
    )
    shared: list[SharedFootage] = []
    readable = [piece for piece in pieces if piece.key in known]
    for piece in track(readable, description="comparing"):
        frames = known[piece.key]
        shared += footage.shared_with(piece.path, frames)
        if not frames.num_frames:
            unread[piece.path] = BLANK
    return Overlap(
        num_pieces=footage.num_pieces,
        num_frames=footage.num_frames,
        num_videos=len(videos) - len(unread),
        shared=shared,
        unread_footage=footage.unread,
        unread_videos=unread,
    )
