"""A folder of masks against the ground truth: per-object J and F, and the tables of the official evaluation.

As there: the first and the last frame of a sequence are not scored, void counts as background, and whole-set values are
plain means over all objects of all sequences. Unlike there, old result files are never read back.
"""

import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np

from videossl import progress
from videossl.errors import UserError
from videossl.eval.davis import DavisSequence
from videossl.eval.mask_files import IndexMask, read_result
from videossl.eval.metrics import (
    Statistics,
    bounding_window,
    region_and_contour,
    statistics,
    tolerance_pixels,
)
from videossl.text_files import csv_text
from videossl.version import __version__
from videossl.whole_file import write_text
from videossl.workers import ProcessPool

GLOBAL_COLUMNS = ("J&F-Mean", "J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay")
SEQUENCE_COLUMNS = ("Sequence", "J-Mean", "F-Mean")


@dataclass(frozen=True)
class ObjectScore:
    """J and F of one object in the scored frames of one sequence."""

    sequence: str
    object_id: int
    j_frames: tuple[float, ...]
    f_frames: tuple[float, ...]

    @property
    def name(self) -> str:
        """As the official tables have it: `<sequence>_<object>`."""
        return f"{self.sequence}_{self.object_id}"

    @property
    def j(self) -> Statistics:
        """Region similarity over the frames."""
        return statistics(self.j_frames)

    @property
    def f(self) -> Statistics:
        """Contour accuracy over the frames."""
        return statistics(self.f_frames)

    def as_dict(self) -> dict[str, object]:
        """Plain types for JSON, with the value of every frame."""
        return {
            "J": self.j.as_dict(),
            "F": self.f.as_dict(),
            "J_frames": list(self.j_frames),
            "F_frames": list(self.f_frames),
        }


def check_results(results: Path, sequences: Sequence[DavisSequence]) -> None:
    """Raises UserError that lists every sequence with missing masks, before any work is done."""
    if not results.is_dir():
        raise UserError(
            f"{results} is not a folder: give the folder that holds <sequence>/<frame>.png"
        )
    problems = []
    for sequence in sequences:
        names = sequence.frame_names[1:-1]
        if not names:
            problems.append(f"{sequence.name} has no frame between the first and the last")
            continue
        folder = results / sequence.name
        missing = [name for name in names if not (folder / f"{name}.png").is_file()]
        if missing:
            count = f"{len(missing)} of {len(names)}"
            problems.append(f"{sequence.name} lacks {count} (first: {missing[0]}.png)")
    if problems:
        raise UserError(f"{results}: masks are missing: {'; '.join(problems)}")


def score_sequence(results: Path, sequence: DavisSequence) -> list[ObjectScore]:
    """The scores of each object of one sequence from `results/<sequence>/<frame>.png`.

    Raises UserError for a missing or damaged mask, one of another size, and object ids the sequence does not have.
    """

    def read(index: int) -> IndexMask:
        path = results / sequence.name / f"{sequence.frame_names[index]}.png"
        return _read_result(path, sequence)

    return score_masks(sequence, read)


def score_results(
    results: Path, sequences: Sequence[DavisSequence], *, num_workers: int = 1
) -> list[ObjectScore]:
    """The scores of all objects, in the order of the sequences, with `num_workers` processes.

    Raises UserError that lists the problem of every sequence that cannot be scored.
    """
    # Longest first, so that no process is left alone with a long one.
    order = sorted(sequences, key=lambda sequence: -len(sequence.frame_names))
    score = partial(_scores_or_problem, results)
    with ProcessPool(num_workers) if num_workers > 1 else nullcontext() as pool:
        answers = map(score, order) if pool is None else pool.map(score, order)
        shown = progress.track(answers, description="score", total=len(order))
        answer_of = dict(zip((sequence.name for sequence in order), shown, strict=True))
    problems = [answer for answer in answer_of.values() if isinstance(answer, str)]
    if problems:
        raise UserError(
            f"{len(problems)} of {len(order)} sequences cannot be scored: {'; '.join(sorted(problems))}"
        )
    return [score for sequence in sequences for score in answer_of[sequence.name]]  # type: ignore[misc]


def _scores_or_problem(results: Path, sequence: DavisSequence) -> list[ObjectScore] | str:
    try:
        return score_sequence(results, sequence)
    except UserError as error:
        return str(error)


def score_masks(sequence: DavisSequence, mask_of: Callable[[int], IndexMask]) -> list[ObjectScore]:
    """The scores of each object from `mask_of(frame)`, (H, W) of object ids; the first and last frame are not asked for."""
    per_object: dict[int, list[tuple[float, float]]] = {
        number: [] for number in sequence.scored_ids
    }
    for index in range(1, len(sequence.frame_names) - 1):
        found, truth = mask_of(index), sequence.mask(index)
        check_size(found, truth, f"frame {sequence.frame_names[index]} of {sequence.name}")
        for number, score in score_frame(found, truth, sequence.scored_ids).items():
            per_object[number].append(score)
    return object_scores(sequence.name, per_object)


def object_scores(
    sequence: str, per_object: Mapping[int, Sequence[tuple[float, float]]]
) -> list[ObjectScore]:
    """The scores of the objects of a sequence from J and F of each frame, by object id."""
    return [
        ObjectScore(
            sequence=sequence,
            object_id=number,
            j_frames=tuple(j for j, _ in values),
            f_frames=tuple(f for _, f in values),
        )
        for number, values in per_object.items()
    ]


def score_frame(
    found: IndexMask, truth: IndexMask, object_ids: Sequence[int]
) -> dict[int, tuple[float, float]]:
    """J and F of each object in two (H, W) masks of ids."""
    radius = tolerance_pixels(*truth.shape)
    window = bounding_window(found, truth, margin=1)  # most of a frame is background in both
    found, truth = found[window], truth[window]
    return {
        number: region_and_contour(found == number, truth == number, radius=radius)
        for number in object_ids
    }


def _read_result(path: Path, sequence: DavisSequence) -> IndexMask:
    found = read_result(path, form=sequence.form)
    highest = max(sequence.object_ids)
    if int(found.max()) > highest:
        raise UserError(
            f"{path} has object id {found.max()}, but {sequence.name} has ids up to {highest}"
        )
    return found


def check_size(found: IndexMask, truth: IndexMask, what: str) -> None:
    """Raises UserError for a mask of another size than the ground truth."""
    if found.shape != truth.shape:
        sizes = [f"{mask.shape[1]}x{mask.shape[0]}" for mask in (found, truth)]
        raise UserError(f"{what} is {sizes[0]} but the ground truth is {sizes[1]}")


def global_scores(scores: Sequence[ObjectScore]) -> dict[str, float]:
    """The whole-set values in the official columns: plain means over objects."""
    j, f = [score.j for score in scores], [score.f for score in scores]
    means = {
        f"{measure}-{name.capitalize()}": float(np.mean([getattr(s, name) for s in stats]))
        for measure, stats in (("J", j), ("F", f))
        for name in ("mean", "recall", "decay")
    }
    return {"J&F-Mean": (means["J-Mean"] + means["F-Mean"]) / 2, **means}


def write_tables(folder: Path, set_name: str, scores: Sequence[ObjectScore]) -> None:
    """Writes `global_results-<set>.csv` and `per-sequence_results-<set>.csv` in the official form."""
    values = global_scores(scores)
    global_row = [f"{values[column]:.3f}" for column in GLOBAL_COLUMNS]
    rows = [(score.name, f"{score.j.mean:.3f}", f"{score.f.mean:.3f}") for score in scores]
    write_text(folder / f"global_results-{set_name}.csv", csv_text([GLOBAL_COLUMNS, global_row]))
    write_text(folder / f"per-sequence_results-{set_name}.csv", csv_text([SEQUENCE_COLUMNS, *rows]))


def scores_record(scores: Sequence[ObjectScore]) -> dict[str, object]:
    """Everything measured, at full precision, for `result.json`."""
    return {
        "global": global_scores(scores),
        "per_object": {score.name: score.as_dict() for score in scores},
    }


def versions() -> dict[str, str]:
    """What the numbers were computed with."""
    libraries = ("torch", "torchvision", "numpy", "pillow", "av")
    return {
        "videossl": __version__,
        "python": platform.python_version(),
        # Asked of the installation: scoring needs no torch, whose import takes longer than the scoring.
        **{name: metadata.version(name) for name in libraries},
    }


def format_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """One line per row, whole-set values in percent."""
    width = max(len("row"), *(len(name) for name in rows))
    lines = ["  ".join([f"{'row':<{width}}", *(f"{column:>8}" for column in GLOBAL_COLUMNS)])]
    for name, values in rows.items():
        cells = [f"{100 * values[column]:8.1f}" for column in GLOBAL_COLUMNS]
        lines.append("  ".join([f"{name:<{width}}", *cells]))
    return "\n".join(lines)


def format_objects(scores: Sequence[ObjectScore]) -> str:
    """One line per object: J and F with mean, recall and decay, in percent."""
    width = max(len("object"), *(len(score.name) for score in scores))
    columns = GLOBAL_COLUMNS[1:]
    lines = ["  ".join([f"{'object':<{width}}", *(f"{column:>8}" for column in columns)])]
    for score in scores:
        values = [v for s in (score.j, score.f) for v in (s.mean, s.recall, s.decay)]
        lines.append(
            "  ".join([f"{score.name:<{width}}", *(f"{100 * value:8.1f}" for value in values)])
        )
    return "\n".join(lines)
