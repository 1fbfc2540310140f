"""Sequences in the DAVIS layout: a folder tree in, frame paths and first masks out, and masks back as palette PNGs.

Both published forms are read. 2016 (Perazzi et al., CVPR 2016): grey masks, 0 and 255, one object. 2017 (Pont-Tuset et
al., arXiv:1704.00675): palette masks of object ids, 255 = void. The form is decided by the first mask of a sequence
alone, so that later masks need not exist to track.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from videossl.errors import UserError
from videossl.io.index_masks import (
    FirstMask,
    Form,
    IndexMask,
    form_of,
    image_size,
    object_ids,
    open_first_mask,
    read_first_mask,
    read_mask,
)
from videossl.io.input_files import is_system_leftover, read_names
from videossl.io.pictures import is_picture, pictures_of


def check_entry_name(name: str, what: str) -> None:
    """Raises UserError unless the name, of such a thing as `what` says, can be that of one entry of a folder."""
    is_visible = bool(name) and not name.startswith(".")  # "." and ".." begin so
    if not is_visible or any(c in "/\\" or not c.isprintable() for c in name):
        raise UserError(
            f"{what} {name!r} may not be empty, begin with a dot or hold / or \\, for files are named after it"
        )


RESOLUTION = "480p"
YEARS = ("2016", "2017")

_log = logging.getLogger("videossl")


@dataclass(frozen=True)
class DavisSequence:
    """One sequence: its frames, the masks that exist, and the ids of its objects (those of the first mask)."""

    name: str
    frame_names: tuple[str, ...]  # file stems, in order
    frame_paths: tuple[Path, ...]  # empty when only masks were asked for
    mask_paths: tuple[Path, ...]  # as many as frames if complete, else the first only
    form: Form
    object_ids: tuple[int, ...]
    why_unscored: str | None = None  # what is lacking to score against

    @property
    def scored_ids(self) -> tuple[int, ...]:
        """The objects that are scored: as the official code has it, all from 1 to the highest of the first mask."""
        return tuple(range(1, max(self.object_ids) + 1))

    @property
    def is_annotated(self) -> bool:
        """Whether every frame has a mask to score against."""
        return len(self.mask_paths) == len(self.frame_names)

    def first_frames(self, count: int | None) -> "DavisSequence":
        """The sequence cut after `count` frames; None keeps all."""
        return replace(
            self,
            frame_names=self.frame_names[:count],
            frame_paths=self.frame_paths[:count],
            mask_paths=self.mask_paths[:count],
        )

    def mask(self, index: int) -> IndexMask:
        """The mask of one frame as (H, W) object ids; void counts as background."""
        if index == 0:
            return read_first_mask(self.mask_paths[0])
        return read_mask(self.mask_paths[index], form=self.form)


def read_tree(
    root: Path,
    *,
    split: str,
    only: Sequence[str] | None = None,
    need_frames: bool = True,
    need_masks: bool = False,
) -> list[DavisSequence]:
    """The sequences of a split, in its order, after the whole tree was checked.

    `only` keeps the sequences named. Frames are not looked for when `need_frames` is false (scoring needs masks alone),
    and masks after the first are asked for only when `need_masks`. Raises UserError that lists all problems at once.
    """
    annotations = root / "Annotations" / RESOLUTION
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: --davis takes the root of a DAVIS tree")
    if not annotations.is_dir():
        raise UserError(
            f"{root} has no Annotations/{RESOLUTION}: a DAVIS tree with masks is needed"
        )
    names = _names_of_split(root, split)
    if only is not None:
        unknown = [name for name in only if name not in names]
        if unknown:
            raise UserError(
                f"sequence {', '.join(unknown)} is not in split {split}; allowed: {', '.join(names)}"
            )
        names = [name for name in names if name in set(only)]
    sequences, problems = [], []
    for name in names:
        try:
            sequences.append(
                _read_sequence(root, name, need_frames=need_frames, need_masks=need_masks)
            )
        except UserError as error:
            problems.append(str(error))
    if problems:
        complete = ", ".join(sequence.name for sequence in sequences) or "none"
        raise UserError(
            f"{len(problems)} of {len(names)} sequences cannot be read: {'; '.join(problems)} "
            f"(complete: {complete}; choose with --sequences)"
        )
    for form in YEARS:
        members = [sequence.name for sequence in sequences if sequence.form == form]
        if members:
            _log.info("%s: %d sequences with masks in the DAVIS %s form", root, len(members), form)
    return sequences


def _names_of_split(root: Path, split: str) -> list[str]:
    lists = {path: path.stem for path in split_lists(root)}
    found = [path for path, name in lists.items() if name == split]
    if not found:
        allowed = ", ".join(sorted(set(lists.values()))) or f"none: {root}/ImageSets holds no list"
        raise UserError(f"split {split!r} is unknown; allowed: {allowed}")
    if len(found) > 1:
        # Both years list a "val": the one that fits the masks at hand is meant.
        masks = sorted((root / "Annotations" / RESOLUTION).glob("*/*"))
        first_masks = [path for path in masks if is_picture(path)][:1]
        year = form_of(first_masks[0]) if first_masks else "2017"
        found = [path for path in found if path.parent.name == year]
    _log.info("split %s: %s", split, found[0])
    return listed_sequences(found[0])


def split_lists(root: Path) -> list[Path]:
    """The lists of sequences in a tree, those of 2016 first."""
    found = [path for year in YEARS for path in sorted((root / "ImageSets" / year).glob("*.txt"))]
    return [path for path in found if not is_system_leftover(path.name)]


def listed_sequences(path: Path) -> list[str]:
    """The sequences that a list of ImageSets names, in its order."""
    # The first release of 2016 lists frames ("/JPEGImages/480p/bear/00000.jpg ..."), later ones list sequences.
    entries = read_names(path)
    names = [Path(e.split()[0]).parent.name if "/" in e else e for e in entries]
    return list(dict.fromkeys(names))


def _read_sequence(root: Path, name: str, *, need_frames: bool, need_masks: bool) -> DavisSequence:
    check_entry_name(name, "sequence name")
    frames = pictures_of(root / "JPEGImages" / RESOLUTION / name)
    masks = pictures_of(root / "Annotations" / RESOLUTION / name)
    if need_frames and not frames:
        raise UserError(f"{name}: no frames")
    if not masks:
        raise UserError(f"{name}: no masks")
    frame_names = [path.stem for path in (frames if need_frames else masks)]
    if masks[0].stem != frame_names[0]:
        raise UserError(f"{name}: no mask for the first frame {frame_names[0]}")
    first_mask = open_first_mask(masks[0])
    why_unscored = _why_unscored(frame_names, [path.stem for path in masks], first_mask)
    if need_masks and why_unscored:
        raise UserError(f"{name}: {why_unscored}")
    _check_images(name, frames if need_frames else [], masks, first_mask.ids.shape)
    ids = object_ids(first_mask.ids)
    if not ids:
        raise UserError(f"{name}: the first mask holds no object")
    return DavisSequence(
        name=name,
        frame_names=tuple(frame_names),
        frame_paths=tuple(frames) if need_frames else (),
        mask_paths=tuple(masks[:1] if why_unscored else masks),
        form=first_mask.form,
        object_ids=ids,
        why_unscored=why_unscored,
    )


def _why_unscored(
    frame_names: list[str], mask_names: list[str], first_mask: FirstMask
) -> str | None:
    """Why nothing can be scored in a sequence with these masks; None if it can."""
    if not first_mask.is_index:
        return f"{first_mask.kind}; only grey and palette PNGs with hard edges score"
    if mask_names != frame_names:
        if mask_names == frame_names[:1]:
            return "there are no masks after the first frame"
        missing = [name for name in frame_names if name not in set(mask_names)]
        if missing:
            return f"no masks for {len(missing)} frames (first: {missing[0]})"
        return "there are masks of frames that do not exist"
    if len(frame_names) < 3:
        return "it has no frame between the first and the last"
    return None


def _check_images(name: str, frames: list[Path], masks: list[Path], shape: tuple[int, ...]) -> None:
    """Raises UserError for frames and masks that cannot be read to their end, or of another size than the first mask."""
    size = (shape[1], shape[0])
    for path in (*frames, *masks):
        found = image_size(path, to_its_end=True)
        if found != size:
            what = f"{'mask' if path in masks else 'frame'} {path.stem}"
            raise UserError(
                f"{name}: {what} is {_times(found)} but the first mask is {_times(size)}"
            )


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
