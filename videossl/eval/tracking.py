"""Runs one row of the table: a way to get features, applied to each piece of footage, masks written as they come."""

import multiprocessing
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from videossl import progress
from videossl.decode.backends import open_video
from videossl.errors import UserError
from videossl.eval.davis import DavisSequence, IndexMask, object_ids, read_mask
from videossl.eval.features import Extractor, input_size, sequence_features
from videossl.eval.frames import FrameSource, ImageFrames, VideoFrames
from videossl.eval.overlay import Rgb, draw_mask, write_contact_sheet
from videossl.eval.propagation import propagate
from videossl.eval.protocol import Protocol
from videossl.masks import write_mask
from videossl.video_writer import write_video

DAVIS_FRAMES_PER_SECOND = 24.0
SHEET_FRAMES = 6
_CHUNK_FRAMES = 16  # of native size in memory while an overlay is drawn: chosen


@dataclass(frozen=True)
class Footage:
    """What is tracked: frames and the mask of the first. Nothing here can reach a later mask."""

    name: str
    source: FrameSource
    frame_names: tuple[str, ...]  # file stems of the masks to write
    first_mask: IndexMask
    object_ids: tuple[int, ...]
    frames_per_second: float


@dataclass(frozen=True)
class Row:
    """One line of the table. Without an extractor the first mask is copied to every frame."""

    name: str
    protocol: Protocol
    make_extractor: Callable[[], Extractor] | None

    def record(self) -> dict[str, object]:
        """Plain types for JSON."""
        if self.make_extractor is None:
            return {"features": "none: the first mask is repeated"}
        return {"protocol": self.protocol.as_dict()}


def davis_footage(sequence: DavisSequence) -> Footage:
    """A DAVIS sequence without its later masks."""
    return Footage(
        name=sequence.name,
        source=ImageFrames(sequence.frame_paths),
        frame_names=sequence.frame_names,
        first_mask=sequence.mask(0),
        object_ids=sequence.object_ids,
        frames_per_second=DAVIS_FRAMES_PER_SECOND,
    )


def video_footage(video: Path, mask: Path) -> Footage:
    """A user's own video and the mask of its first frame.

    Raises UserError for a file that cannot be read and a mask of another size or without an object.
    """
    first_mask = read_mask(mask)
    reader = open_video(str(video))
    source = VideoFrames(reader)
    if first_mask.shape != source.native_size:
        raise UserError(
            f"{mask} is {first_mask.shape[1]}x{first_mask.shape[0]} but the frames of {video} are "
            f"{reader.width}x{reader.height}"
        )
    ids = object_ids(first_mask)
    if not ids:
        raise UserError(f"{mask} holds no object: every pixel is background")
    seconds = float(reader.pts_seconds[-1] - reader.pts_seconds[0])
    return Footage(
        name=video.stem,
        source=source,
        frame_names=tuple(f"{index:05d}" for index in range(reader.num_frames)),
        first_mask=first_mask,
        object_ids=ids,
        frames_per_second=(reader.num_frames - 1) / seconds
        if seconds > 0
        else DAVIS_FRAMES_PER_SECOND,
    )


@dataclass(frozen=True)
class _Tracked:
    """What one piece of footage took."""

    name: str
    num_frames: int
    features: dict[str, object]
    input_size_hw: tuple[int, int] | None


def track_row(
    row: Row, footages: Sequence[Footage], folder: Path, *, pool: Executor | None = None
) -> dict[str, object]:
    """Writes `folder/<name>/<frame>.png` for each footage; returns what was used and how long it took.

    A folder of masks appears under its name only when it is complete. With a `pool` of `worker_pool` the pieces of footage
    are tracked side by side.
    """
    begin = time.perf_counter()
    if pool is not None and row.make_extractor is not None:
        tracked = _track_in_pool(row, footages, folder, pool)
    else:
        extractor = row.make_extractor() if row.make_extractor is not None else None
        shown = extractor is not None  # copying a mask takes no time worth a line
        tracked = [_track_one(row, footage, folder, extractor, shown) for footage in footages]
    record = row.record()
    num_frames = sum(t.num_frames for t in tracked)
    record["seconds_per_frame"] = (time.perf_counter() - begin) / max(1, num_frames)
    if tracked and tracked[0].input_size_hw is not None:
        record["features"] = tracked[0].features
        record["input_size_hw"] = {t.name: list(t.input_size_hw or ()) for t in tracked}
    return record


def _track_one(
    row: Row, footage: Footage, folder: Path, extractor: Extractor | None, shown: bool
) -> _Tracked:
    partial = folder / f"{footage.name}.partial"
    masks: Iterable[tuple[str, IndexMask]] = zip(
        footage.frame_names, _masks(row, footage, extractor), strict=True
    )
    if shown:
        title = f"{row.name} {footage.name}"
        masks = progress.track(masks, description=title, total=len(footage.frame_names))
    num_frames = 0
    for name, mask in masks:
        write_mask(partial / f"{name}.png", mask)
        num_frames += 1
    partial.rename(folder / footage.name)
    if extractor is None:
        return _Tracked(footage.name, num_frames, {}, None)
    size = input_size(footage.source.native_size, row.protocol, extractor.stride)
    return _Tracked(footage.name, num_frames, extractor.describe(), size)


def worker_pool(num_workers: int) -> ProcessPoolExecutor:
    """Processes of one thread each: on a CPU, tracking sequences side by side beats threads within one."""
    # Forked children would inherit torch's thread pools in an undefined state.
    return ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn"), _one_thread)


def _track_in_pool(
    row: Row, footages: Sequence[Footage], folder: Path, pool: Executor
) -> list[_Tracked]:
    """Longest first, so that no process is left alone with a long one; results in the order of `footages`."""
    order = sorted(footages, key=lambda footage: -len(footage.frame_names))
    futures = {pool.submit(_track_in_process, row, footage, folder): footage for footage in order}
    done = progress.track(as_completed(futures), description=row.name, total=len(futures))
    results = {futures[future].name: future.result() for future in done}
    return [results[footage.name] for footage in footages]


def _track_in_process(row: Row, footage: Footage, folder: Path) -> _Tracked:
    assert row.make_extractor is not None
    return _track_one(row, footage, folder, row.make_extractor(), False)


def _one_thread() -> None:
    torch.set_num_threads(1)


def _masks(row: Row, footage: Footage, extractor: Extractor | None) -> Iterator[IndexMask]:
    if extractor is None:
        yield from (footage.first_mask for _ in footage.frame_names)
        return
    yield from propagate(
        sequence_features(footage.source, extractor, row.protocol),
        footage.first_mask,
        row.protocol,
        object_ids=footage.object_ids,
        input_size=input_size(footage.source.native_size, row.protocol, extractor.stride),
    )


def write_overlay(footage: Footage, masks: Path, path: Path) -> None:
    """Draws the masks of one footage over its frames, as mp4."""
    write_video(path, _drawn(footage, masks), frames_per_second=footage.frames_per_second)


def _drawn(footage: Footage, masks: Path) -> Iterator[Rgb]:
    for start in range(0, footage.source.num_frames, _CHUNK_FRAMES):
        indices = range(start, min(start + _CHUNK_FRAMES, footage.source.num_frames))
        for index, rgb in zip(indices, _native(footage, indices), strict=True):
            yield draw_mask(
                rgb, read_mask(masks / f"{footage.frame_names[index]}.png", form="2017")
            )


def _native(footage: Footage, indices: Sequence[int]) -> Rgb:
    frames = footage.source.read(indices, footage.source.native_size)
    return np.ascontiguousarray(frames.permute(0, 2, 3, 1).numpy())


def write_sheet(
    footage: Footage, row_folders: Sequence[Path], truth: DavisSequence | None, path: Path
) -> None:
    """A contact sheet: a few frames of each row, under the ground truth where there is one."""
    count = min(SHEET_FRAMES, footage.source.num_frames)
    indices = [int(i) for i in np.linspace(0, footage.source.num_frames - 1, count).round()]
    frames = _native(footage, indices)
    rows: list[tuple[str, list[Rgb]]] = []
    if truth is not None and truth.is_annotated:
        drawn = [draw_mask(rgb, truth.mask(i)) for i, rgb in zip(indices, frames, strict=True)]
        rows.append((f"{footage.name}: ground truth", drawn))
    for folder in row_folders:
        paths = [folder / footage.name / f"{footage.frame_names[i]}.png" for i in indices]
        masks = [read_mask(mask, form="2017") for mask in paths]
        drawn = [draw_mask(rgb, mask) for rgb, mask in zip(frames, masks, strict=True)]
        rows.append((f"{footage.name}: {folder.name}", drawn))
    write_contact_sheet(path, rows)


def clear_folder(out: Path, *, marker: str, owned: Sequence[str]) -> None:
    """Empties an output folder of an earlier run, so that no old mask can pass for a new one.

    `owned` are the names that such a run writes (`*` at the end for any ending). Raises UserError if the folder holds
    anything else, or results without the `marker` file that this command writes first.
    """
    if not out.exists():
        out.mkdir(parents=True)
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file: --out takes a folder")
    entries = sorted(out.iterdir())
    foreign = [entry.name for entry in entries if not any(entry.match(name) for name in owned)]
    if foreign or (entries and not (out / marker).is_file()):
        names = ", ".join(foreign or [entry.name for entry in entries][:3])
        raise UserError(
            f"{out} holds files that are not from this command ({names}): choose another --out"
        )
    for entry in entries:
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != marker:
            entry.unlink()
    (out / marker).unlink(missing_ok=True)
