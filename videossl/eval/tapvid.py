"""TAP-Vid files: videos with tracks of points in, frames at 256x256 with queries in one of two modes out.

Doersch et al., NeurIPS 2022, arXiv:2211.03726; queries as in google-deepmind/tapnet, tapvid/evaluation_datasets.py.
"""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from videossl.errors import UserError
from videossl.eval.array_pickle import load_array_pickle
from videossl.eval.entry_names import check_entry_name
from videossl.eval.frames import resize_rgb
from videossl.eval.point_metrics import QueryMode
from videossl.eval.point_sets import PointVideo, read_all
from videossl.eval.points import Flags

RASTER = (
    256,
    256,
)  # (H, W): the benchmark squeezes every video to it and counts errors in its pixels
QUERY_STRIDE = 5  # frames between the queries of the strided mode (tapnet)
_ARRAYS = ("video", "points", "occluded")


class ArrayFrames:
    """Frames in memory, (T, H, W, 3) uint8, taken to be of 256x256 pixels; each is resized once, from what it is."""

    native_size = RASTER

    def __init__(self, frames: NDArray[np.uint8]) -> None:
        self.frames = frames
        self.num_frames = len(frames)

    def read(self, indices: Sequence[int], size: tuple[int, int]) -> Tensor:
        """See FrameSource."""
        resized = [resize_rgb(Image.fromarray(self.frames[index]), size) for index in indices]
        return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)


def read_tapvid(path: Path, mode: QueryMode) -> list[PointVideo]:
    """The videos of a TAP-Vid file with queries at each point's first visible frame, or at every fifth frame.

    The file is a pickle of {name: {video, points, occluded}} (or a list), or .npz with keys `<name>/video` and so on:
    video (T, H, W, 3) uint8, points (N, T, 2) x and y in [0, 1], occluded (N, T) bool. A pickle may hold arrays only and
    nothing of it is run. Raises UserError that lists all problems.
    """
    if not path.is_file():
        raise UserError(f"--tapvid {path}: no such file")
    found = _load_npz(path) if path.suffix == ".npz" else load_array_pickle(path)
    if not found:
        raise UserError(f"{path} holds no video")
    return read_all(path, found.items(), lambda item: _video(item[0], item[1], mode))


def _load_npz(path: Path) -> dict[str, dict[str, NDArray]]:
    """Keys `<name>/<array>`; keys without a name belong to a video named after the file."""
    found: dict[str, dict[str, NDArray]] = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for key in arrays.files:
                name, _, array = key.rpartition("/")
                found.setdefault(name or path.stem, {})[array] = arrays[key]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a sound .npz of arrays: {error}") from None
    return found


def _video(name: str, arrays: Mapping[str, NDArray], mode: QueryMode) -> PointVideo:
    check_entry_name(name, "video name")
    missing = [key for key in _ARRAYS if key not in arrays]
    if missing:
        raise UserError(
            f"{name}: no array of numbers {', '.join(missing)}; has {', '.join(arrays) or 'none'}"
        )
    video, points, occluded = (arrays[key] for key in _ARRAYS)
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3 or min(video.shape) == 0:
        raise UserError(
            f"{name}: video must be (T, H, W, 3) uint8, got {video.shape} {video.dtype}"
        )
    if points.ndim != 3 or points.shape[1:] != (len(video), 2) or points.dtype.kind != "f":
        raise UserError(
            f"{name}: points must be (N, {len(video)}, 2) float, got {points.shape} {points.dtype}"
        )
    if occluded.shape != points.shape[:2] or occluded.dtype != bool:
        raise UserError(
            f"{name}: occluded must be {points.shape[:2]} bool, got {occluded.shape} {occluded.dtype}"
        )
    visible = points[~occluded]
    if not visible.size:
        raise UserError(f"{name}: no point is ever visible")
    # A track may leave the frame a little and still count as visible; pixels in place of shares are far beyond.
    if not (np.isfinite(visible).all() and np.abs(visible - 0.5).max() <= 1):
        raise UserError(
            f"{name}: points must be shares of the width and height in [0, 1], got up to {visible.max():g}"
        )
    truth = points.astype(np.float64) * RASTER[::-1]
    rows, query_frames = sample_queries(occluded, mode)
    return PointVideo(name, ArrayFrames(video), RASTER, query_frames, truth[rows], ~occluded[rows])


def sample_queries(occluded: Flags, mode: QueryMode) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which points are asked for and at which frame: rows of `occluded` (N, T), and frames.

    `first`: every point that is ever visible, where it is first. `strided`: at frames 0, 5, 10, ... every point that is
    visible there, so that a point is asked for many times.
    """
    if mode == "first":
        rows = np.flatnonzero(~occluded.all(1))
        return rows, (~occluded[rows]).argmax(1)
    columns, rows = np.nonzero(~occluded[:, ::QUERY_STRIDE].T)
    return rows, columns * QUERY_STRIDE
