"""How far scores can be trusted: bootstrap intervals over sequences, and paired differences between rows.

Sequences are drawn, not frames or objects, which resemble one another within a sequence; each draw recomputes the official
means over the objects of the sequences drawn. Intervals are of percentiles (Efron, Tibshirani, 1993, section 13.3).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from videossl.eval.scoring import GLOBAL_COLUMNS, ObjectScore

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
