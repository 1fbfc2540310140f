"""Labelled videos into train, validation and test, whole source groups on one side.

Clips cut from one recording look alike: with a group on both sides a probe recognises the recording, not the class (UCF101's
groups, Soomro et al. 2012).
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from torch import Tensor

from videossl.data.manifest import Manifest
from videossl.decode.source import file_path
from videossl.errors import UserError
from videossl.io.input_files import decoded_text, delimiter_of, table_rows, text_lines
from videossl.probe.embedding import VideoFeatures
from videossl.rng import fold

log = logging.getLogger("videossl")

TEST_FOLDS = 4  # one of them is the test part
VALIDATION_FOLDS = 5  # of the rest
PARTS = ("train", "validation", "test")
NAMES = {"val": "validation", "valid": "validation", "training": "train", "testing": "test"}
Rows = np.ndarray


@dataclass(frozen=True)
class LabelledSplit:
    """Rows of a manifest per part; `label` (rows of the manifest,) int64 class numbers, -1 where there is none."""

    train: Rows
    validation: Rows
    test: Rows
    label: np.ndarray
    group: np.ndarray  # (rows of the manifest,) names
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> list[int]:
        """All of them, ascending."""
        return sorted(np.concatenate([self.train, self.validation, self.test]).tolist())

    @property
    def fitted(self) -> Rows:
        """Train and validation: what a probe may learn from once its settings are chosen."""
        return np.sort(np.concatenate([self.train, self.validation]))

    def describe(self) -> dict[str, object]:
        """Counts for a record."""
        parts = {part: getattr(self, part) for part in PARTS}
        return {
            part: {"videos": len(rows), "groups": len(np.unique(self.group[rows]))}
            for part, rows in parts.items()
        } | {"classes": list(self.classes), "notes": list(self.notes)}


def split_labelled(
    manifest: Manifest, *, seed: int, split_file: Path | None = None
) -> LabelledSplit:
    """A quarter of the source groups for test, a fifth of the rest for validation, classes in equal shares.

    `split_file` is a CSV with the columns path (or file) and split (train, test, perhaps validation) that says it instead.
    Videos without a label and broken ones are left out. Raises UserError where a class or a part would be empty, and for a
    file that puts one source group on two sides.
    """
    names = np.asarray(manifest.strings("label"))
    group = np.asarray(manifest.strings("group"))
    usable = np.flatnonzero((names != "") & manifest.is_ok())
    classes = tuple(np.unique(names[usable]).tolist())
    if len(classes) < 2:
        raise UserError(
            f"{manifest.path or 'the manifest'} has {len(classes)} classes among {len(usable)} sound labelled videos; a "
            "probe needs two at least: scan with --labels folder, or --labels CSV"
        )
    label = np.full(len(names), -1, dtype=np.int64)
    label[usable] = np.searchsorted(np.asarray(classes), names[usable])
    if split_file is not None:
        parts = _parts_of_file(manifest, usable, split_file)
        _require_apart(parts, group, split_file)
    else:
        rest, test = _group_fold(usable, label, group, folds=TEST_FOLDS, seed=seed, why="test")
        parts = {"train": rest, "test": test}
    notes: list[str] = []
    if not len(parts.get("validation", ())):
        parts["train"], parts["validation"], said = _validation(parts["train"], label, group, seed)
        notes += said
    for part in PARTS:
        _require_all_classes(part, parts[part], label, classes)
    for note in notes:
        log.info("%s", note)
    return LabelledSplit(
        np.sort(parts["train"]),
        np.sort(parts["validation"]),
        np.sort(parts["test"]),
        label=label,
        group=group,
        classes=classes,
        notes=tuple(notes),
    )


def _group_fold(
    rows: Rows, label: np.ndarray, group: np.ndarray, *, folds: int, seed: int, why: str
) -> tuple[Rows, Rows]:
    """The rows without one fold, and that fold; no group on both sides."""
    num_groups = len(np.unique(group[rows]))
    if num_groups < 2:
        raise UserError(
            f"all {len(rows)} labelled videos are of one source group, so none can be kept for {why}: scan again with "
            "--group-regex that tells sources apart, or give --split-file"
        )
    least = min(len(np.unique(group[rows[label[rows] == one]])) for one in np.unique(label[rows]))
    splitter = StratifiedGroupKFold(
        max(2, min(folds, least)), shuffle=True, random_state=fold(seed, why) % 2**32
    )
    kept, held = next(splitter.split(rows, label[rows], group[rows]))
    return rows[kept], rows[held]


def _validation(
    train: Rows, label: np.ndarray, group: np.ndarray, seed: int
) -> tuple[Rows, Rows, list[str]]:
    """Train without validation, validation, and what must be said of it."""
    per_class = [np.unique(group[train[label[train] == one]]) for one in np.unique(label[train])]
    if min(map(len, per_class)) >= 2:
        kept, held = _group_fold(
            train, label, group, folds=VALIDATION_FOLDS, seed=seed, why="validation"
        )
        if len(np.unique(label[held])) == len(per_class):
            return kept, held, []
    counts = [int((label[train] == one).sum()) for one in np.unique(label[train])]
    if min(counts) < 2:
        raise UserError(
            "a class has a single training video: two are needed, one of them to choose settings by; add videos"
        )
    splitter = StratifiedKFold(
        min(VALIDATION_FOLDS, min(counts)),
        shuffle=True,
        random_state=fold(seed, "validation videos") % 2**32,
    )
    kept, held = next(splitter.split(train, label[train]))
    note = (
        "a class has a single source group to train on, so the validation part shares sources with it: settings are "
        "chosen by videos that are easier than the test's"
    )
    return train[kept], train[held], [note]


def _parts_of_file(manifest: Manifest, usable: Rows, path: Path) -> dict[str, Rows]:
    wanted = _read_split(path)
    by_name: dict[str, list[int]] = {part: [] for part in PARTS}
    taken: dict[str, str] = {}
    unknown = 0
    for row in usable.tolist():
        source = manifest[row].path
        name = _name_of(PurePosixPath(file_path(source)), wanted)
        if name is None:
            unknown += 1
            continue
        if name in taken:
            raise UserError(
                f"--split-file {path}: {name} may be {taken[name]} or {source}; write longer paths, as far as they differ"
            )
        taken[name] = source
        by_name[wanted[name]].append(row)
    if not by_name["train"] or not by_name["test"]:
        raise UserError(
            f"--split-file {path} names {len(by_name['train'])} training and {len(by_name['test'])} test videos of the "
            f"manifest ({unknown} of its videos are not in it): its paths must end as the manifest's do"
        )
    if unknown:
        log.info("%d labelled videos are not in %s and are left out", unknown, path)
    return {part: np.asarray(rows, dtype=np.int64) for part, rows in by_name.items()}


def _name_of(path: PurePosixPath, wanted: Mapping[str, str]) -> str | None:
    """The longest ending of the path that the file names."""
    parts = path.parts
    endings = ("/".join(parts[start:]).lstrip("/") for start in range(len(parts)))
    return next((ending for ending in endings if ending in wanted), None)


def _read_split(path: Path) -> dict[str, str]:
    """{path: part} of a CSV. Raises UserError naming the line that cannot be understood."""
    try:
        text = decoded_text(path.read_bytes(), errors="surrogateescape")
        names = next((line for line in text_lines(text) if line.strip()), "")
        delimiter = delimiter_of(names, ("path", "file", "split"), needed=("path", "file"))
        rows = list(table_rows(text, delimiter or ","))
    except (OSError, ValueError) as error:
        raise UserError(f"--split-file {path} cannot be read: {error}") from error
    found: dict[str, str] = {}
    for number, values in rows:
        row = {column: value.strip() for column, value in values.items()}
        name, part = row.get("path") or row.get("file"), row.get("split", "").lower()
        part = NAMES.get(part, part)
        if not name or part not in PARTS:
            raise UserError(
                f"--split-file {path}, line {number}: needs the columns path and split, split one of {', '.join(PARTS)}; "
                f"got {dict(row)}"
            )
        name = name.removeprefix("./").lstrip("/")
        if found.setdefault(name, part) != part:
            raise UserError(
                f"--split-file {path}, line {number}: {name} was {found[name]} before, is {part}"
            )
    return found


def _require_apart(parts: Mapping[str, Rows], group: np.ndarray, path: Path) -> None:
    trained = np.concatenate([parts["train"], parts["validation"]])
    both = np.intersect1d(group[trained], group[parts["test"]])
    if len(both):
        raise UserError(
            f"--split-file {path} puts {len(both)} source groups on both sides, the first being {both[0]!r}: leave it "
            "out, or scan with a --group-regex that tells these sources apart"
        )


def _require_all_classes(part: str, rows: Rows, label: np.ndarray, classes: Sequence[str]) -> None:
    missing = sorted(set(range(len(classes))) - set(label[rows].tolist()))
    if missing:
        raise UserError(
            f"class {classes[missing[0]]!r} has no video in the {part} part, since its source groups are too few: add "
            "videos of other sources, or give --split-file"
        )


@dataclass(frozen=True)
class Examples:
    """V videos: `features` (V, K, C), or (V, K, P, C) tokens; `labels` (V,) int64, `groups` and `rows` (V,)."""

    features: Tensor
    labels: Tensor
    groups: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def per_video(self) -> Tensor:
        """(V, C): the mean of the clips' features, each of unit length."""
        return torch.nn.functional.normalize(self.features, dim=-1).mean(1)

    @property
    def per_clip(self) -> tuple[Tensor, Tensor]:
        """(V * K, ...) features and (V * K,) labels."""
        num_clips = self.features.shape[1]
        return self.features.flatten(0, 1), self.labels.repeat_interleave(num_clips)

    def select(self, chosen: np.ndarray) -> "Examples":
        """The same of some videos, by position."""
        index = torch.from_numpy(chosen)
        return Examples(
            self.features[index], self.labels[index], self.groups[chosen], self.rows[chosen]
        )


def examples_of(
    rows: np.ndarray, split: LabelledSplit, features: Mapping[int, VideoFeatures], part: str
) -> Examples:
    """The videos among `rows` that have features; how many have none is said.

    Raises UserError where none has, and where a class of the train part has none left: its answers could not be learned.
    """
    kept = [row for row in rows.tolist() if features[row].clips is not None]
    lost = [row for row in rows.tolist() if features[row].clips is None]
    if not kept:
        raise UserError(
            f"not one of the {len(rows)} videos of the {part} part has features, the first because: "
            f"{features[int(rows[0])].reason}"
        )
    gone = set(split.label[rows].tolist()) - set(split.label[kept].tolist())
    if part == "train" and gone:
        raise UserError(
            f"no video of class {split.classes[min(gone)]!r} is left to learn from: {len(lost)} of the {part} part have no "
            f"features, the first because: {features[lost[0]].reason}"
        )
    if lost:
        log.warning(
            "%d of %d videos of the %s part are left out, the first because: %s",
            *(len(lost), len(rows), part, features[lost[0]].reason),
        )
    return Examples(
        torch.stack([features[row].clips for row in kept]),  # type: ignore[misc]
        torch.from_numpy(split.label[kept]),
        split.group[kept],
        np.asarray(kept),
    )
