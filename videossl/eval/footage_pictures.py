"""What a tracked piece of footage looks like: overlay and comparison as mp4, a contact sheet of all rows."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from videossl.drawing import Rgb
from videossl.eval.davis import DavisSequence
from videossl.eval.footage import Footage
from videossl.eval.frames import FrameSource
from videossl.eval.mask_files import IndexMask, read_mask
from videossl.eval.overlay import draw_mask, write_comparison, write_contact_sheet
from videossl.video_writer import write_video

SHEET_FRAMES = 6
_CHUNK_FRAMES = 16  # of native size in memory while a video is drawn: chosen


def write_footage_pictures(
    out: Path, footage: Footage, truth: DavisSequence | None, *, row_names: Sequence[str], main: str
) -> None:
    """Writes `overlay/<name>.mp4` and `.png` and `comparison/<name>.mp4` of the row `main`, with the truth if it is known.

    The masks of each row lie in `out/<row>/<name>`.
    """
    masks = out / main / footage.name
    overlay = out / "overlay" / f"{footage.name}.mp4"
    drawn = map(draw_mask, _native_frames(footage.source), _masks(footage, masks))
    write_video(overlay, drawn, frames_per_second=footage.frames_per_second)
    folders = [out / name for name in row_names]
    _write_sheet(footage, folders, truth, overlay.with_suffix(".png"))
    write_comparison(
        out / "comparison" / overlay.name,
        _native_frames(footage.source),
        _masks(footage, masks),
        None if truth is None else map(truth.mask, range(len(footage.frame_names))),
        frames_per_second=footage.frames_per_second,
    )


def _masks(footage: Footage, folder: Path) -> Iterator[IndexMask]:
    return (read_mask(folder / f"{name}.png", form="2017") for name in footage.frame_names)


def _native_frames(source: FrameSource) -> Iterator[Rgb]:
    for start in range(0, source.num_frames, _CHUNK_FRAMES):
        yield from _native(source, range(start, min(start + _CHUNK_FRAMES, source.num_frames)))


def _native(source: FrameSource, indices: Sequence[int]) -> Rgb:
    frames = source.read(indices, source.native_size)
    return np.ascontiguousarray(frames.permute(0, 2, 3, 1).numpy())


def _write_sheet(
    footage: Footage, row_folders: Sequence[Path], truth: DavisSequence | None, path: Path
) -> None:
    """A few frames of each row, under the ground truth where there is one."""
    count = min(SHEET_FRAMES, footage.source.num_frames)
    indices = [int(i) for i in np.linspace(0, footage.source.num_frames - 1, count).round()]
    frames = _native(footage.source, indices)
    rows: list[tuple[str, list[Rgb]]] = []
    if truth is not None:
        drawn = [draw_mask(rgb, truth.mask(i)) for i, rgb in zip(indices, frames, strict=True)]
        rows.append((f"{footage.name}: ground truth", drawn))
    for folder in row_folders:
        paths = [folder / footage.name / f"{footage.frame_names[i]}.png" for i in indices]
        masks = [read_mask(mask, form="2017") for mask in paths]
        drawn = [draw_mask(rgb, mask) for rgb, mask in zip(frames, masks, strict=True)]
        rows.append((f"{footage.name}: {folder.name}", drawn))
    write_contact_sheet(path, rows)
