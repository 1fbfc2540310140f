"""Sequences in the YouTube-VOS layout: a folder tree in, frames and the first mask of each object out.

Xu et al., ECCV 2018, arXiv:1809.03327. Unlike DAVIS, objects appear when they appear, only some frames have masks, frame
numbers leave gaps and there is no folder of a resolution: ROOT/JPEGImages/<video>/*.jpg, ROOT/Annotations/<video>/*.png,
ROOT/meta.json if there is one. Any tree of this shape can be read, so a user's own as well.
"""

import json
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from videossl.errors import UserError
from videossl.io import progress
from videossl.io.index_masks import Form, IndexMask, form_of, image_size, object_ids, read_mask
from videossl.io.input_files import is_system_leftover, read_names
from videossl.io.pictures import in_frame_order, pictures_of
from videossl.tracking.davis import check_entry_name
from videossl.tracking.scoring import ObjectScore, check_size, object_scores, score_frame
from videossl.tracking.sequence import Footage, ImageFrames

FRAME_NUMBERS_PER_SECOND = 30  # section 3 of the paper; every fifth frame has masks

_log = logging.getLogger("videossl")
_Objects = Mapping[str, Mapping[str, Any]]  # of one video in meta.json, by object id


@dataclass(frozen=True)
class YoutubeVosSequence:
    """One video: its frames, the masks that exist, and where each object is seen first."""

    name: str
    frame_names: tuple[str, ...]  # file stems, in order
    frame_paths: tuple[Path, ...]
    mask_paths: Mapping[int, Path]  # by frame index
    form: Form
    appearances: Mapping[int, int]  # object id to the frame index of its first mask, ids ascending
    categories: Mapping[int, str]  # of the objects that meta.json gives one

    @property
    def object_ids(self) -> tuple[int, ...]:
        """All objects of the video, ascending."""
        return tuple(self.appearances)

    @property
    def is_annotated(self) -> bool:
        """Whether there are masks to score against: others than those in which an object is new."""
        return not set(self.mask_paths) <= set(self.appearances.values())

    @property
    def first_mask(self) -> IndexMask:
        """The objects of the first frame, (H, W); all background if none is there yet."""
        return self._new_objects(0)

    @property
    def later_masks(self) -> dict[int, IndexMask]:
        """By frame index, masks (H, W) of only those objects that are new there."""
        return {start: self._new_objects(start) for start in self._starts if start > 0}

    def mask(self, index: int) -> IndexMask:
        """The mask of an annotated frame, (H, W) object ids, to score against; void counts as background."""
        return read_mask(self.mask_paths[index], form=self.form)

    @property
    def _starts(self) -> list[int]:
        return sorted(set(self.appearances.values()))

    def _new_objects(self, index: int) -> IndexMask:
        new = [number for number, start in self.appearances.items() if start == index]
        mask = self.mask(index if new else self._starts[0])
        return np.where(np.isin(mask, new), mask, np.uint8(0))


def read_youtube_vos(root: Path, only: Sequence[str] | None = None) -> list[YoutubeVosSequence]:
    """The videos of a tree, by name, after the whole tree was checked; `only` keeps those named.

    An object's first frame is that of meta.json, which also says which objects there are; without it all masks are read,
    and an object begins where its id is met first. Raises UserError that lists all problems at once.
    """
    for folder in ("JPEGImages", "Annotations"):
        if not (root / folder).is_dir():
            raise UserError(
                f"{root} has no {folder}: the YouTube-VOS layout is JPEGImages/<video>/*.jpg beside "
                "Annotations/<video>/*.png (of the data set, give its folder train or valid)"
            )
    meta = _read_meta(root / "meta.json")
    names = _video_names(root, meta, only)
    sequences, problems = [], []
    # Without meta.json every mask is opened, which takes a while.
    for name in names if meta is not None else progress.track(names, description="masks"):
        try:
            objects = None if meta is None else _checked_objects(name, meta[name])
            sequences.append(_read_sequence(root, name, objects))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError(
            f"{len(problems)} of {len(names)} videos cannot be read: {'; '.join(problems)}"
        )
    return sequences


def youtube_footage(sequence: YoutubeVosSequence) -> Footage:
    """A video with the first mask of each object and no other."""
    return Footage(
        name=sequence.name,
        source=ImageFrames(sequence.frame_paths),
        frame_names=sequence.frame_names,
        first_mask=sequence.first_mask,
        object_ids=sequence.object_ids,
        frames_per_second=_frames_per_second(sequence.frame_names),
        later_masks=sequence.later_masks,
    )


def _frames_per_second(frame_names: Sequence[str]) -> float:
    """By the usual gap between frame numbers; one apart if they are not numbers."""
    if len(frame_names) < 2 or not all(name.isdecimal() for name in frame_names):
        return float(FRAME_NUMBERS_PER_SECOND)
    gaps = np.diff([int(name) for name in frame_names])
    return FRAME_NUMBERS_PER_SECOND / max(1.0, float(np.median(gaps)))


def _read_meta(path: Path) -> dict[str, object] | None:
    """What stands for objects, by video, not checked yet; None without the file."""
    if not path.is_file():
        return None
    try:
        videos = json.loads(path.read_bytes())["videos"]
        return {name: video["objects"] for name, video in videos.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f'{path} is not of the form {{"videos": {{NAME: {{"objects": {{ID: ...}}}}}}}} '
            f"({type(error).__name__}: {error})"
        ) from None


def _video_names(
    root: Path, meta: Mapping[str, object] | None, only: Sequence[str] | None
) -> list[str]:
    folders = sorted(_folders_in(root / "Annotations"))
    names = folders if meta is None else sorted(meta)
    if not names:
        raise UserError(f"{root}/{'Annotations' if meta is None else 'meta.json'} holds no video")
    bare = [name for name in _folders_in(root / "JPEGImages") if name not in names]
    if bare:
        _log.info("%s: %d videos without masks are left out", root, len(bare))
    if only is None:
        return names
    unknown = [name for name in only if name not in names]
    if unknown:
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise UserError(f"video {', '.join(unknown)} is not in {root}; there are: {shown}")
    return [name for name in names if name in set(only)]


def _folders_in(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.is_dir() and not is_system_leftover(p.name)]


def _read_sequence(root: Path, name: str, objects: _Objects | None) -> YoutubeVosSequence:
    check_entry_name(name, "video name")
    frames = pictures_of(root / "JPEGImages" / name)
    masks = pictures_of(root / "Annotations" / name)
    if not frames:
        raise UserError(f"{name}: no frames")
    if not masks:
        raise UserError(f"{name}: no masks")
    index_of = {path.stem: index for index, path in enumerate(frames)}
    strange = [path.stem for path in masks if path.stem not in index_of]
    if strange:
        raise UserError(f"{name}: {len(strange)} masks are of no frame (first: {strange[0]}.png)")
    mask_paths = {index_of[path.stem]: path for path in masks}
    form = form_of(masks[0])
    if objects is None:
        appearances = _first_met(mask_paths, form)
    else:
        appearances = _by_meta(name, objects, index_of)
        _check_first_masks(name, appearances, mask_paths, form)
    if not appearances:
        raise UserError(f"{name}: the masks hold no object")
    _check_sizes(name, frames, mask_paths, appearances)
    return YoutubeVosSequence(
        name=name,
        frame_names=tuple(index_of),
        frame_paths=tuple(frames),
        mask_paths=mask_paths,
        form=form,
        appearances=dict(sorted(appearances.items())),
        categories={
            int(key): str(value["category"])
            for key, value in (objects or {}).items()
            if "category" in value
        },
    )


def _checked_objects(name: str, objects: object) -> _Objects:
    """What meta.json says of a video; raises UserError unless it is records by id, with frames as a list of names."""
    records = objects.values() if isinstance(objects, dict) else [None]
    for record in records:
        frames = record.get("frames") or [] if isinstance(record, dict) else None
        if not isinstance(frames, list) or not all(isinstance(frame, str) for frame in frames):
            raise UserError(
                f'{name}: meta.json must give objects as {{ID: {{"frames": ["00000", ...]}}}}, got {str(objects)[:80]}'
            )
    return cast("_Objects", objects)


def _first_met(mask_paths: Mapping[int, Path], form: Form) -> dict[int, int]:
    found: dict[int, int] = {}
    for index, path in mask_paths.items():
        for number in object_ids(read_mask(path, form=form)):
            found.setdefault(number, index)
    return found


def _by_meta(name: str, objects: _Objects, index_of: Mapping[str, int]) -> dict[int, int]:
    found = {}
    for key, value in objects.items():
        frames = [path.name for path in in_frame_order(map(Path, value.get("frames") or []))]
        if not key.isdecimal() or not 1 <= int(key) <= 254:
            raise UserError(f"{name}: meta.json has object {key!r}; ids are numbers from 1 to 254")
        if not frames:
            raise UserError(f"{name}: meta.json has no frames for object {key}")
        if frames[0] not in index_of:
            raise UserError(f"{name}: object {key} begins at frame {frames[0]}, which is not there")
        found[int(key)] = index_of[frames[0]]
    return found


def _check_first_masks(
    name: str, appearances: Mapping[int, int], mask_paths: Mapping[int, Path], form: Form
) -> None:
    """Raises UserError for all objects that are not in the mask in which meta.json has them begin."""
    without = sorted(number for number, start in appearances.items() if start not in mask_paths)
    for start in set(appearances.values()) & mask_paths.keys():
        there = object_ids(read_mask(mask_paths[start], form=form))
        without += [n for n, s in appearances.items() if s == start and n not in there]
    if without:
        raise UserError(
            f"{name}: object {', '.join(map(str, without))} has no mask in the frame where meta.json has it begin"
        )


def _check_sizes(
    name: str,
    frames: Sequence[Path],
    mask_paths: Mapping[int, Path],
    appearances: Mapping[int, int],
) -> None:
    for index in sorted(set(appearances.values())):
        frame, mask = image_size(frames[index]), image_size(mask_paths[index])
        if frame != mask:
            raise UserError(
                f"{name}: frame {frames[index].stem} is {frame[0]}x{frame[1]} but its mask is {mask[0]}x{mask[1]}"
            )


def score_youtube_sequence(results: Path, sequence: YoutubeVosSequence) -> list[ObjectScore]:
    """The scores of each object of one video; objects without a frame to score are left out, and said.

    Raises UserError for a missing or damaged mask and one of another size.
    """
    per_object: dict[int, list[tuple[float, float]]] = {n: [] for n in sequence.object_ids}
    for index in _scored_frames(sequence):
        given = [n for n, start in sequence.appearances.items() if start < index]
        found = read_mask(results / sequence.name / f"{sequence.frame_names[index]}.png")
        truth = sequence.mask(index)
        check_size(found, truth, f"frame {sequence.frame_names[index]} of {sequence.name}")
        for number, score in score_frame(found, truth, given).items():
            per_object[number].append(score)
    bare = [str(number) for number, values in per_object.items() if not values]
    if bare:
        _log.info("%s: object %s has no frame to score", sequence.name, ", ".join(bare))
    return object_scores(sequence.name, {n: values for n, values in per_object.items() if values})


def read_unseen_categories(path: Path) -> frozenset[str]:
    """The categories that the training split does not have, one a line. Raises UserError for an empty or missing file."""
    try:
        names = frozenset(read_names(path))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    if not names:
        raise UserError(f"{path} names no category: give one a line")
    return names


def check_categories(
    sequences: Iterable[YoutubeVosSequence], unseen: Collection[str]
) -> dict[tuple[str, int], str]:
    """The group, `seen` or `unseen`, of each (video, object).

    Raises UserError where an object has no category or a group has no object.
    """
    groups = {}
    for sequence in sequences:
        for number in sequence.object_ids:
            if number not in sequence.categories:
                raise UserError(
                    f"meta.json has no category for object {number} of {sequence.name}: seen and unseen categories "
                    "cannot be told apart"
                )
            is_unseen = sequence.categories[number] in unseen
            groups[sequence.name, number] = "unseen" if is_unseen else "seen"
    for name in ("seen", "unseen"):
        if name not in groups.values():
            raise UserError(f"no object is of {name} categories: is the list the one of this data?")
    return groups


def group_scores(
    scores: Iterable[ObjectScore],
    sequences: Iterable[YoutubeVosSequence],
    unseen: Collection[str],
) -> dict[str, float]:
    """`J-seen`, `F-seen`, `J-unseen`, `F-unseen`, each a mean over objects, and `G`, the mean of the four.

    Raises UserError as `check_categories`.
    """
    group_of = check_categories(sequences, unseen)
    groups: dict[str, list[ObjectScore]] = {"seen": [], "unseen": []}
    for score in scores:
        groups[group_of[score.sequence, score.object_id]].append(score)
    values = {
        f"{measure.upper()}-{name}": float(np.mean([getattr(s, measure).mean for s in members]))
        for name, members in groups.items()
        for measure in ("j", "f")
    }
    return {**values, "G": float(np.mean(list(values.values())))}


def _scored_frames(sequence: YoutubeVosSequence) -> list[int]:
    """Annotated frames after the first in which an object was given."""
    first = min(sequence.appearances.values())
    return sorted(index for index in sequence.mask_paths if index > first)
