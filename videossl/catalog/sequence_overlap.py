"""Which videos show footage that must not be trained on, by the signatures of their frames.

SAME_DISTANCE would rather lose a clip than train on footage. Measured on the 868 frames of 13 DAVIS sequences
(2026-11-28): copies, changed and encoded again in 22 ways that are to be found, have their third nearest frame at 0.079
at most, 578 other videos at 0.28 at least. docs/your_videos.md has the table, and what is not found.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image

from videossl.catalog.inspect import DecodedFrames, Shrinker, frame_seconds, small_size
from videossl.catalog.list_file import VIDEO_EXTENSIONS, list_ending
from videossl.catalog.listing import FoundVideo, find_videos, walk_files
from videossl.catalog.near_duplicates import (
    FRAMES_PER_SECOND,
    NUM_VALUES,
    FileKey,
    FrameSignatures,
    SignatureFile,
    SignatureList,
    mirrored,
)
from videossl.catalog.scanning import MEMORY_BYTES, time_limit
from videossl.decode.container import as_decode_error, open_container, video_stream
from videossl.decode.index import read_index
from videossl.decode.source import VideoSource, as_text, is_url, local_path, stored_path
from videossl.errors import UserError, VideoDecodeError
from videossl.io.input_files import csv_text
from videossl.io.pictures import UNREADABLE, opened_picture, picture_size
from videossl.io.progress import track
from videossl.workers.pool import WorkerPool

PICTURE_EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"))
FRAMES_FOLDER = "JPEGImages"  # of DAVIS and YouTube-VOS: what lies beside it are masks and lists
RESOLUTION = "480p"  # of DAVIS, where it has the same frames in others too

logger = logging.getLogger("videossl")


@dataclass(frozen=True)
class Footage:
    """A video, or a folder of pictures."""

    path: str
    bytes: int
    modified: int  # nanoseconds since 1970
    name: str = ""  # for people
    pictures: tuple[str, ...] = ()  # the names in the folder; none: a video
    with_crops: bool = False

    @property
    def key(self) -> FileKey:
        """By which its signatures are kept."""
        return FileKey(self.path, self.bytes, self.modified, self.with_crops)

    def frame_name(self, seconds: float) -> str:
        """Where a frame of its signatures is: a picture's name, or a time."""
        return as_text(self.pictures[int(seconds)]) if self.pictures else f"{seconds:.2f} s"


def find_footage(sources: Iterable[str | Path]) -> list[Footage]:
    """Every folder of pictures and every video in the sources; local folders, or what `find_videos` takes.

    Where a folder holds JPEGImages only that is looked into, and of its resolutions only 480p where that is there.
    Raises UserError for a source that does not exist or in which there is neither.
    """
    found: dict[str, Footage] = {}
    for source in map(local_path, map(str, sources)):
        if is_url(source) or list_ending(source) or Path(source).is_file():
            pieces: Iterable[Footage] = _videos_of(source)
        else:
            pieces = _pieces_of(Path(source))
        for piece in pieces:
            found.setdefault(piece.path, piece)
    return list(found.values())


def read_signatures(
    pieces: Sequence[Footage], known: SignatureFile, *, num_workers: int, description: str
) -> dict[str, str]:
    """Reads those that `known` lacks, in `num_workers` processes, and adds them; returns what cannot be read, and why.

    What is interrupted loses the pieces that were being read.
    """
    todo = [piece for piece in pieces if piece.key not in known]
    unread: dict[str, str] = {}
    if not todo:
        return unread
    results = track(_read_all(todo, num_workers), description=description, total=len(todo))
    for piece, frames in results:
        if isinstance(frames, FrameSignatures):
            known.append(piece.key, frames)
        else:
            unread[piece.path] = frames
    return unread


def read_piece(piece: Footage) -> FrameSignatures:
    """The signatures of one. Raises VideoDecodeError."""
    rate = None if piece.with_crops else FRAMES_PER_SECOND
    signatures = SignatureList(frames_per_second=rate, with_crops=piece.with_crops)
    if piece.pictures:
        for number, name in enumerate(piece.pictures):
            signatures.add(number, _picture(Path(local_path(piece.path), name)))
    else:
        _add_video(VideoSource(piece.path), signatures)
    return signatures.result()


def _videos_of(source: str) -> Iterator[Footage]:
    for video in find_videos([source]).videos:
        yield Footage(
            video.path, video.bytes, video.modified, Path(video.path).name, with_crops=True
        )


def _pieces_of(root: Path) -> Iterator[Footage]:
    if not root.is_dir():
        raise UserError(f"no such file or folder: {root}")
    unreadable: list[str] = []
    pictures: dict[Path, list[Path]] = {}
    num_found = 0
    for path in walk_files(root.resolve(), set(), unreadable, enter=_frame_folders):
        kind = path.suffix.lower()
        if kind in PICTURE_EXTENSIONS and not path.name.startswith("."):
            pictures.setdefault(path.parent, []).append(path)
        elif kind in VIDEO_EXTENSIONS:
            num_found += 1
            yield _piece(path, root, [path])
    for folder, paths in pictures.items():
        yield _piece(folder, root, sorted(paths), pictures=tuple(sorted(p.name for p in paths)))
    if unreadable:
        raise UserError(f"cannot read {unreadable[0]}: what lies there cannot be left out")
    if not num_found and not pictures:
        raise UserError(
            f"no frames and no videos in {root}; looked for {' '.join(sorted(PICTURE_EXTENSIONS))} in folders, for "
            f"{FRAMES_FOLDER}/ and for videos"
        )


def _frame_folders(folders: Sequence[str]) -> list[str]:
    """The subfolders that hold frames."""
    for only in (FRAMES_FOLDER, RESOLUTION):
        if only in folders:
            return [only]
    return sorted(folders)


def _piece(
    path: Path, root: Path, files: Sequence[Path], *, pictures: tuple[str, ...] = ()
) -> Footage:
    status = [file.stat() for file in files]
    parts = [
        p for p in path.relative_to(root.resolve()).parts if p not in (FRAMES_FOLDER, RESOLUTION)
    ]
    return Footage(
        path=stored_path(str(path)),
        bytes=sum(s.st_size for s in status),
        modified=max(s.st_mtime_ns for s in status),
        name=as_text("/".join(parts) or root.resolve().name),
        pictures=pictures,
        with_crops=True,
    )


def _read_all(
    pieces: Sequence[Footage], num_workers: int
) -> Iterator[tuple[Footage, FrameSignatures | str]]:
    largest = max(piece.bytes for piece in pieces)
    with WorkerPool(
        read_piece,
        min(num_workers, len(pieces)),
        timeout_seconds=time_limit(largest, deep=True),
        memory_bytes=MEMORY_BYTES,
    ) as pool:
        pool.submit_all((piece, piece) for piece in pieces)
        for outcome in pool.outcomes():
            failure = outcome.failure
            if failure is None:
                yield outcome.key, outcome.value
            elif isinstance(failure.error, VideoDecodeError):
                yield outcome.key, failure.error.cause
            else:
                yield outcome.key, failure.cause


def _add_video(source: VideoSource, signatures: SignatureList) -> None:
    index = read_index(source)
    with as_decode_error(source, "pyav"), open_container(source) as container:
        stream = video_stream(container, source)
        shrink = Shrinker(stream, source)
        decoded = DecodedFrames(container, stream, by_decoding=index.by_decoding)
        for number, frame in enumerate(decoded):
            seconds = frame_seconds(index, number, frame)
            if signatures.wants(seconds):
                upright = index.info.orientation.upright(shrink(frame), rows=0)
                signatures.add(seconds, upright)


def _picture(path: Path) -> np.ndarray:
    """The small luma of a picture file."""
    try:
        width, height = small_size(*picture_size(path))
        # A JPEG is decoded at the next larger size.
        with opened_picture(path, within=(2 * width, 2 * height)) as image:
            grey = image.convert("L").resize((width, height), Image.Resampling.BOX)
    except UNREADABLE as error:
        cause = f"{path.name}: " + " ".join(str(error).split())
        raise VideoDecodeError(stored_path(str(path.parent)), "pillow", as_text(cause)) from None
    return np.asarray(grey)


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
        """For each video that shows a sequence, the one that it shows most closely."""
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
