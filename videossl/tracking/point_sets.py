"""Videos with queries and true places, and the readers of BADJA, JHMDB and TAP-Vid, checked as a whole.

BADJA: Biggs et al., ACCV 2018, arXiv:1811.05804 (joints of animals in DAVIS). JHMDB: Jhuang et al., ICCV 2013. Places
are as in `videossl.tracking.points`: the centre of a pixel is at halves.
"""

import json
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import io as matlab
from torch import Tensor

from videossl.errors import UserError
from videossl.io.index_masks import read_mask
from videossl.io.input_files import is_system_leftover, read_names
from videossl.io.pictures import UNREADABLE, picture_size, pictures_of
from videossl.tracking.davis import check_entry_name
from videossl.tracking.points import Flags, Places, Queries, QueryMode
from videossl.tracking.sequence import FrameSource, ImageFrames, resize_rgb

Benchmark = Literal["badja", "jhmdb", "tapvid"]
Item = TypeVar("Item")

BADJA_SIZE = (1080, 1920)  # of the frames that were annotated, DAVIS "Full-Resolution"
JHMDB_JOINTS = 15
_SPLIT_NAME = re.compile(r"(.+)_test_split\d+")
_SHOWN_PROBLEMS = 20  # of a long list, in one line


@dataclass(frozen=True)
class PointVideo:
    """One video of a benchmark. What a tracker may see of the points is `queries`."""

    name: str
    source: FrameSource
    size: tuple[int, int]  # (H, W) of the frames in whose pixels places are given
    query_frames: NDArray[np.int64]  # (N,)
    truth: Places  # (N, T, 2)
    is_visible: Flags  # (N, T): where the truth is known and in view
    mask_areas: NDArray[np.float64] | None = None  # (T,) pixels of the animal, BADJA only

    @property
    def queries(self) -> Queries:
        """Each point at the frame where it is given."""
        rows = np.arange(len(self.truth))
        return Queries(self.query_frames, self.truth[rows, self.query_frames])


def read_all(
    root: Path, items: Iterable[Item], read: Callable[[Item], PointVideo]
) -> list[PointVideo]:
    """Reads every item; raises one UserError that lists what is wrong with any of them."""
    videos, problems = [], []
    for item in items:
        try:
            videos.append(read(item))
        except UserError as error:
            problems.append(str(error))
    if problems:
        rest = (
            f"; and {len(problems) - _SHOWN_PROBLEMS} more"
            if len(problems) > _SHOWN_PROBLEMS
            else ""
        )
        raise UserError(
            f"{len(problems)} of {len(problems) + len(videos)} videos of {root} cannot be read: "
            f"{'; '.join(problems[:_SHOWN_PROBLEMS])}{rest}"
        )
    return videos


def read_badja(root: Path) -> list[PointVideo]:
    """The annotated part of each sequence, from its first to its last annotated frame.

    `root` is a DAVIS tree with the joint files in `badja_joints`, or the published tree with `joint_annotations` beside
    `DAVIS`. Joints are [row, column] of frames of 1920x1080 and go to the size of the frames at hand: `480p`, or else
    `Full-Resolution`. The queries are the joints visible in the first annotated frame. Raises UserError that lists all
    problems.
    """
    folders = [root / "badja_joints", root / "joint_annotations"]
    folder = next((f for f in folders if f.is_dir()), None)
    if folder is None:
        raise UserError(
            f"{root} has neither badja_joints nor joint_annotations: --badja takes a DAVIS tree with the joint files "
            "of BADJA in such a folder"
        )
    paths = sorted(p for p in folder.glob("*.json") if not is_system_leftover(p.name))
    if not paths:
        raise UserError(f"{folder} holds no .json file of joints")
    frames_root = root / "DAVIS" if (root / "DAVIS").is_dir() else root
    return read_all(root, paths, lambda path: _badja_video(path, frames_root))


def _badja_video(path: Path, root: Path) -> PointVideo:
    name = path.stem
    check_entry_name(name, "sequence name")
    indices, joints, is_visible = _badja_joints(path)
    count = indices[-1] - indices[0] + 1
    folders = [root / "JPEGImages" / kind / name for kind in ("480p", "Full-Resolution")]
    folder = next((f for f in folders if f.is_dir()), None)
    if folder is None:
        raise UserError(f"{name}: no folder {folders[0]}")
    # Upper-case endings and other formats are taken; what is missing is named as it was published.
    found = {frame.stem: frame for frame in pictures_of(folder)}
    stems = [f"{indices[0] + i:05d}" for i in range(count)]
    frames = [found.get(stem, folder / f"{stem}.jpg") for stem in stems]
    _check_images(name, frames)
    source = ImageFrames(frames)
    height, width = source.native_size
    # A row or column is the number of a pixel; its centre is half a pixel farther.
    scaled = (joints[..., ::-1] + 0.5) * [width / BADJA_SIZE[1], height / BADJA_SIZE[0]]
    given, at = is_visible[0], indices - indices[0]
    truth = np.zeros((int(given.sum()), count, 2))
    seen = np.zeros((len(truth), count), bool)
    truth[:, at] = scaled[:, given].transpose(1, 0, 2)
    seen[:, at] = is_visible[:, given].T
    areas = np.zeros(count)
    masks = root / "Annotations" / folder.parent.name / name
    areas[at] = [_mask_area(masks / f"{i:05d}.png", source.native_size) for i in indices]
    query_frames = np.zeros(len(truth), np.int64)
    return PointVideo(name, source, source.native_size, query_frames, truth, seen, areas)


def _badja_joints(path: Path) -> tuple[NDArray[np.int64], Places, Flags]:
    """Frame numbers (A,), joints (A, J, 2) as [row, column], visibility (A, J), of the annotated frames in order."""
    name = path.stem
    try:
        entries = sorted(json.loads(path.read_bytes()), key=lambda entry: entry["image_path"])
        numbers = np.array([int(Path(entry["image_path"]).stem) for entry in entries], np.int64)
        joints = np.array([entry["joints"] for entry in entries], np.float64)
        is_visible = np.array([entry["visibility"] for entry in entries], bool)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{name}: {path.name} is not a list of BADJA joints ({error!r})") from None
    if len(numbers) < 2 or joints.ndim != 3 or joints.shape != (*is_visible.shape, 2):
        raise UserError(
            f"{name}: {path.name} must hold joints (frames >= 2, joints, 2) with their visibility, got "
            f"{joints.shape} and {is_visible.shape}"
        )
    if not is_visible[0].any():
        raise UserError(f"{name}: no joint is visible in the first annotated frame {numbers[0]}")
    if np.any(joints[is_visible] < 0) or np.any(joints[is_visible] >= BADJA_SIZE):
        raise UserError(
            f"{name}: joints lie outside frames of 1920x1080, which BADJA was annotated on"
        )
    return numbers, joints, is_visible


def _mask_area(path: Path, size: tuple[int, int]) -> int:
    mask = read_mask(path)
    if mask.shape != size:
        raise UserError(
            f"{path} is {mask.shape[1]}x{mask.shape[0]} but its frame is {size[1]}x{size[0]}"
        )
    if not mask.any():
        raise UserError(f"{path} shows no animal: BADJA measures errors by the area of its mask")
    return int(np.count_nonzero(mask))


def read_jhmdb(root: Path, split_lists: Sequence[Path] | None = None) -> list[PointVideo]:
    """The test videos of split 1, or those marked 2 in `split_lists`, each named `<action>_test_split<n>.txt`.

    Frames lie in `Rename_Images/<action>/<video>/*.png`, joints in `joint_positions/<action>/<video>/
    joint_positions.mat` as `pos_img` (2, 15, T), x and y of pixels counted from 1. Joints outside the first frame cannot
    be asked for and are not judged (as in tapnet); frames after the last with joints are left out. Raises UserError that
    lists all problems.
    """
    lists = list(
        split_lists
        or sorted(
            path
            for path in (root / "splits").glob("*_test_split1.txt")
            if not is_system_leftover(path.name)
        )
    )
    if not lists:
        raise UserError(
            f"{root}/splits holds no <action>_test_split1.txt: unpack the splits there or give --split-list"
        )
    names = [name for path in lists for name in _names_of_split(path)]
    if not names:
        raise UserError(f"no video is marked 2 (test) in {', '.join(map(str, lists))}")
    return read_all(root, names, lambda name: _jhmdb_video(root, name))


def _names_of_split(path: Path) -> list[str]:
    action = _SPLIT_NAME.fullmatch(path.stem)
    if action is None:
        raise UserError(
            f"{path}: a split list is named <action>_test_split<n>.txt, after its action"
        )
    try:
        lines = [line.split() for line in read_names(path)]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if any(len(line) != 2 or line[1] not in ("0", "1", "2") for line in lines):
        raise UserError(f"{path}: each line must be <video>.avi and 1 (train) or 2 (test)")
    return [f"{action[1]}/{video.removesuffix('.avi')}" for video, part in lines if part == "2"]


def _jhmdb_video(root: Path, name: str) -> PointVideo:
    action, _, video = name.partition("/")
    check_entry_name(action, "action")
    check_entry_name(video, "video name")
    path = root / "joint_positions" / name / "joint_positions.mat"
    try:
        found = np.asarray(matlab.loadmat(path)["pos_img"], np.float64)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        NotImplementedError,
        matlab.matlab.MatReadError,
    ) as error:
        raise UserError(f"{name}: no pos_img in {path} ({error!r})") from None
    if found.ndim != 3 or found.shape[:2] != (2, JHMDB_JOINTS) or not np.isfinite(found).all():
        raise UserError(
            f"{name}: pos_img of {path} must be numbers of (2, 15, T), got {found.shape}"
        )
    folder = root / "Rename_Images" / name
    frames = pictures_of(folder)[: found.shape[2]]
    if len(frames) < max(2, found.shape[2]):
        raise UserError(
            f"{name}: {found.shape[2]} frames have joints but {folder} holds {len(frames)}"
        )
    _check_images(name, frames)
    source = ImageFrames(frames)
    truth = found.transpose(1, 2, 0) - 0.5  # pixel 1 has its centre at 0.5
    first = truth[:, 0]
    is_inside = np.all((first >= 0) & (first < source.native_size[::-1]), axis=1)
    is_visible = np.repeat(np.atleast_1d(is_inside)[:, None], truth.shape[1], 1)
    query_frames = np.zeros(JHMDB_JOINTS, np.int64)
    return PointVideo(name, source, source.native_size, query_frames, truth, is_visible)


def _check_images(name: str, paths: Sequence[Path]) -> None:
    """Raises UserError unless all are there and the first can be opened."""
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(
            f"{name}: {len(missing)} of {len(paths)} frames are missing (first: {missing[0]})"
        )
    try:
        picture_size(paths[0], to_its_end=True)
    except UNREADABLE as error:
        raise UserError(f"{name}: {paths[0]} is damaged ({error})") from None


_PLAIN_DTYPE = re.compile(r"[|<>=]?(b1|[iu][1248]|f[248])")
# What the pickle machine raises on a damaged file, found by cutting and flipping bytes.
_DAMAGE = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    OverflowError,
    MemoryError,
)


def load_array_pickle(path: Path) -> dict[str, dict[str, NDArray]]:
    """The arrays of a pickled dict (or list) of dicts, by the outer key (or number) and the inner key.

    Anything that is not an array of numbers is left out. Raises UserError for a file that is missing, damaged, of another
    form, or that asks for anything but arrays and plain containers.
    """
    try:
        with path.open("rb") as file:
            found = _ArraysOnly(file).load()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except _Refused as refused:
        raise UserError(
            f"{path} asks for {refused} when read; only numpy arrays of numbers in dicts and lists are allowed: "
            "store it again in that form, or as .npz"
        ) from None
    except _DAMAGE as error:
        raise UserError(f"{path} is not a sound pickle: {error}") from None
    if isinstance(found, list):
        found = {f"{index:05d}": entry for index, entry in enumerate(found)}
    if not isinstance(found, dict) or not all(isinstance(entry, dict) for entry in found.values()):
        raise UserError(f"{path} must hold a dict of dicts of arrays, by video")
    return {str(name): _arrays_of(entry) for name, entry in found.items()}


def _arrays_of(entry: dict[Any, Any]) -> dict[str, NDArray]:
    found = {str(key): value.array for key, value in entry.items() if type(value) is _Array}
    return {key: array for key, array in found.items() if array is not None}


class _Refused(Exception):
    """The name that a pickle asked for."""


class _Dtype:
    """Keeps what a pickled dtype says of itself."""

    def __init__(self, name: object = "", *_: object) -> None:
        self.name = name
        self.is_big_endian = False

    def __setstate__(self, state: Any) -> None:
        self.is_big_endian = state[1] == ">"

    def resolve(self) -> np.dtype:
        """The dtype, if it is one of plain numbers."""
        if not isinstance(self.name, str) or not _PLAIN_DTYPE.fullmatch(self.name):
            raise _Refused(f"an array of {self.name!r}")
        dtype = np.dtype(self.name)
        return dtype.newbyteorder(">") if self.is_big_endian else dtype


class _Array:
    """Keeps what a pickled array says of itself, and then its numbers."""

    array: NDArray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, raw = state
        self.fill(raw, dtype, shape, "F" if is_fortran else "C")

    def fill(self, raw: Any, dtype: Any, shape: Any, order: Any) -> "_Array":
        """Takes the numbers from bytes."""
        if type(dtype) is not _Dtype or not isinstance(raw, bytes | bytearray):
            raise _Refused("an array of objects")
        numbers = np.frombuffer(raw, dtype.resolve())
        self.array = numbers.reshape(tuple(map(int, shape)), order=order)
        return self


def _new_array(*_: object) -> _Array:
    return _Array()


def _filled_array(raw: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    return _Array().fill(raw, dtype, shape, order)


def _latin1(text: Any, encoding: Any = "latin1") -> bytes:
    """Old protocols carry bytes as text; the only encoding they use is this one."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _Refused(f"the encoding {encoding!r}")
    return text.encode("latin1")


_STAND_INS = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _latin1,
    # numpy 2 renamed `core`.
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _new_array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _filled_array for core in ("core", "_core")},
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return _STAND_INS[module_name, global_name]
        except KeyError:
            raise _Refused(f"{module_name}.{global_name}") from None


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
