"""Masks of YouTube-VOS videos against the masks that are known: J and F per object, and by category group.

Scored are the annotated frames after the one in which the object is given, up to and including the last; where the object
is in neither mask, J and F are 1, as for DAVIS. The server of the data set scores masks that are not public. Its figure is
the mean of J and F over seen and over unseen categories, four numbers; without a list of unseen categories ours is the
mean over all objects, so the two are never to be mixed.
"""

import logging
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np

from videossl.errors import UserError
from videossl.eval.mask_files import read_mask
from videossl.eval.scoring import ObjectScore, check_size, object_scores, score_frame
from videossl.eval.youtube_vos import YoutubeVosSequence
from videossl.text_files import read_names

_log = logging.getLogger("videossl")


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
