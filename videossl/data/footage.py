"""Footage that must not be trained on: where it lies, and the signatures of its frames and of those of videos.

Footage is a DAVIS or YouTube-VOS tree, folders of frames, or videos. Videos are decoded once, four frames a second of them
looked at; of footage all frames are, whole and cut to their centre.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from videossl.data.inspect import DecodedFrames, Shrinker, frame_seconds, small_size
from videossl.data.list_file import list_ending
from videossl.data.listing import find_videos, walk_files
from videossl.data.scan import MEMORY_BYTES, time_limit
from videossl.data.signature import FRAMES_PER_SECOND, FrameSignatures, SignatureList
from videossl.data.signature_file import FileKey, SignatureFile
from videossl.data.video_extensions import VIDEO_EXTENSIONS
from videossl.decode.container import as_decode_error, open_container, video_stream
from videossl.decode.info import read_index
from videossl.decode.source import VideoSource, as_text, local_path, stored_path
from videossl.decode.urls import is_url
from videossl.errors import UserError, VideoDecodeError
from videossl.picture_files import UNREADABLE, opened_picture, picture_size
from videossl.progress import track
from videossl.workers import WorkerPool

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
