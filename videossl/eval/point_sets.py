"""Videos with queries and true places: the record of one, and the readers of two trees of joints, checked as a whole.

BADJA: Biggs et al., ACCV 2018, arXiv:1811.05804 (joints of animals in DAVIS). JHMDB: Jhuang et al., ICCV 2013. Places
are as in `videossl.eval.points`: the centre of a pixel is at halves. TAP-Vid is read in `videossl.eval.tapvid`.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import io as matlab

from videossl.errors import UserError
from videossl.eval.entry_names import check_entry_name
from videossl.eval.frame_order import pictures_of
from videossl.eval.frames import FrameSource, ImageFrames
from videossl.eval.mask_files import read_mask
from videossl.eval.points import Flags, Places, Queries
from videossl.leftovers import is_system_leftover
from videossl.picture_files import UNREADABLE, picture_size
from videossl.text_files import read_names

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
