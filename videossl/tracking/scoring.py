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
from numpy.typing import NDArray

from videossl.errors import UserError
from videossl.io import progress
from videossl.io.index_masks import IndexMask, read_result
from videossl.io.input_files import csv_text
from videossl.io.output_files import write_text
from videossl.tracking.davis import DavisSequence
from videossl.tracking.region_contour import (
    Statistics,
    bounding_window,
    region_and_contour,
    statistics,
    tolerance_pixels,
)
from videossl.version import __version__
from videossl.workers.pool import ProcessPool

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


NUM_RESAMPLES = 10_000
LEVEL = 0.95
SEED = 0

Values = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Difference:
    """One row minus another, by column of the official table, as fractions."""

    difference: Mapping[str, float]
    intervals: Mapping[str, Interval]  # empty for one sequence
    sequences_won: int  # with the higher mean J&F over their objects; a tie is not won
    num_sequences: int

    def as_dict(self) -> dict[str, object]:
        """Plain types for JSON."""
        return {
            "difference": dict(self.difference),
            "intervals": {column: list(ends) for column, ends in self.intervals.items()},
            "sequences_won": self.sequences_won,
            "num_sequences": self.num_sequences,
        }


def bootstrap_intervals(
    *rows: Sequence[ObjectScore], num_resamples: int = NUM_RESAMPLES, seed: int = SEED
) -> dict[str, Interval]:
    """The 95 % interval (low, high) of each column of the official table; none for fewer than two sequences.

    Of several rows (one per untrained seed) it is that of their mean. Rows over the same sequences are resampled alike.
    Raises ValueError if the rows score different objects.
    """
    _check_same_objects(rows)
    return _intervals(_mean_values(rows), _sequence_of(rows[0]), num_resamples, seed)


def paired_difference(
    main: Sequence[ObjectScore],
    others: Sequence[Sequence[ObjectScore]],
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = SEED,
) -> Difference:
    """`main` minus the mean of `others` (one row, or one per untrained seed), both on the same draws of sequences.

    Raises ValueError if a row has other objects than `main`.
    """
    _check_same_objects([main, *others])
    values = _object_values(main) - _mean_values(others)
    sequence_of = _sequence_of(main)
    per_sequence = np.bincount(sequence_of, values[:, 0])  # sums have the sign of means
    return Difference(
        difference=dict(zip(GLOBAL_COLUMNS, values.mean(0).tolist(), strict=True)),
        intervals=_intervals(values, sequence_of, num_resamples, seed),
        # Equal scores differ by rounding when several seeds are averaged.
        sequences_won=int((per_sequence > 1e-12).sum()),
        num_sequences=len(per_sequence),
    )


def resampled_means(
    values: Values, sequence_of: NDArray[np.intp], *, num_resamples: int, seed: int
) -> Values:
    """The mean over objects, (num_resamples, C), in each draw of as many sequences as there are, with replacement.

    `values` are (O, C), `sequence_of` (O,) numbers each object's sequence from 0 on.
    """
    num_objects = np.bincount(sequence_of)
    num_sequences = len(num_objects)
    sums = np.stack([np.bincount(sequence_of, column) for column in values.T], 1)  # (S, C)
    # How often each was drawn is all that the mean over a draw needs.
    share = np.full(num_sequences, 1 / num_sequences)
    counts = np.random.default_rng(seed).multinomial(num_sequences, share, size=num_resamples)
    return (counts @ sums) / (counts @ num_objects)[:, None]


def _intervals(
    values: Values, sequence_of: NDArray[np.intp], num_resamples: int, seed: int
) -> dict[str, Interval]:
    if not len(sequence_of) or not sequence_of.max():
        return {}  # one sequence drawn again and again is no spread, and not certainty either
    means = resampled_means(values, sequence_of, num_resamples=num_resamples, seed=seed)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return dict(zip(GLOBAL_COLUMNS, zip(low.tolist(), high.tolist(), strict=True), strict=True))


def _check_same_objects(rows: Sequence[Sequence[ObjectScore]]) -> None:
    names = [[score.name for score in row] for row in rows]
    if any(others != names[0] for others in names):
        raise ValueError("only rows that score the same objects can be compared")


def _mean_values(rows: Sequence[Sequence[ObjectScore]]) -> Values:
    return np.mean([_object_values(row) for row in rows], axis=0)


def _object_values(scores: Sequence[ObjectScore]) -> Values:
    """(O, C) values whose means over objects are the official table."""
    rows = []
    for score in scores:
        j, f = score.j, score.f
        mean = (j.mean + f.mean) / 2
        rows.append([mean, j.mean, j.recall, j.decay, f.mean, f.recall, f.decay])
    return np.array(rows).reshape(-1, len(GLOBAL_COLUMNS))


def _sequence_of(scores: Sequence[ObjectScore]) -> NDArray[np.intp]:
    numbers = {name: index for index, name in enumerate(dict.fromkeys(s.sequence for s in scores))}
    return np.array([numbers[score.sequence] for score in scores], np.intp)


def format_differences(
    main: str,
    means: Mapping[str, float],
    intervals: Mapping[str, Mapping[str, Interval]],
    differences: Mapping[str, Difference],
) -> str:
    """Per row J&F-Mean and `main` minus it, each with its interval in percent, and how many sequences `main` won.

    `means` are J&F-Mean by row; `intervals` as in `bootstrap_intervals` and `differences` by row where they are known.
    """
    head = ("row", "J&F-Mean", f"{main} minus row", "sequences won")
    lines = [head]
    for name, mean in means.items():
        found = differences.get(name)
        lines.append(
            (
                name,
                _with_interval(mean, intervals.get(name, {}), "5.1f"),
                "" if found is None else _of_difference(found),
                "" if found is None else f"{found.sequences_won} of {found.num_sequences}",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    aligned = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join(aligned)


def _of_difference(found: Difference) -> str:
    return _with_interval(found.difference["J&F-Mean"], found.intervals, "+5.1f")


def _with_interval(value: float, intervals: Mapping[str, Interval], form: str) -> str:
    ends = intervals.get("J&F-Mean", ())
    # Rounded first, and with 0 added: no "-0.0".
    text, *numbers = (format(round(100 * number, 1) + 0.0, form) for number in (value, *ends))
    return f"{text} [{', '.join(number.strip() for number in numbers)}]" if ends else text
