"""What `videossl track` makes of finished masks: scores with their statistics, tables, videos and contact sheets."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from videossl.io import progress
from videossl.io.output_files import write_text
from videossl.stats import ENOUGH_VIDEOS
from videossl.tracking.davis import DavisSequence
from videossl.tracking.overlay import write_footage_pictures
from videossl.tracking.scoring import (
    GLOBAL_COLUMNS,
    LEVEL,
    NUM_RESAMPLES,
    SEED,
    Difference,
    Interval,
    ObjectScore,
    bootstrap_intervals,
    format_differences,
    format_objects,
    format_table,
    global_scores,
    paired_difference,
    score_sequence,
    write_tables,
)
from videossl.tracking.sequence import Footage

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Scores = Mapping[str, Sequence[ObjectScore]]

log = logging.getLogger("videossl")


@dataclass(frozen=True)
class RowStatistics:
    """Intervals of each row, and the row under test minus each baseline; `untrained (mean of N)` is one of them."""

    num_sequences: int
    intervals: Mapping[str, Mapping[str, Interval]]  # by row, then column; no row for one sequence
    differences: Mapping[str, Difference]

    def record(self) -> dict[str, object]:
        """What result.json says besides the rows."""
        return {
            "bootstrap": {
                "over": "sequences",
                "num_sequences": self.num_sequences,
                "num_resamples": NUM_RESAMPLES,
                "level": LEVEL,
                "seed": SEED,
            },
            "differences": {name: found.as_dict() for name, found in self.differences.items()},
        }


def score_rows(
    out: Path,
    split: str,
    sequences: Sequence[DavisSequence],
    row_names: Sequence[str],
    *,
    pool: Executor | None,
) -> dict[str, list[ObjectScore]]:
    """Scores per row, and their official tables, of the sequences that have what is needed; which have not is said."""
    scored = [sequence for sequence in sequences if sequence.why_unscored is None]
    for sequence in sequences:
        if sequence.why_unscored is not None:
            log.info("%s is not scored: %s", sequence.name, sequence.why_unscored)
    if not scored:
        return {}
    scores = {}
    for name in row_names:
        answers = answers_of(partial(score_sequence, out / name), scored, f"score {name}", pool)
        scores[name] = [score for answer in answers for score in answer]
        write_tables(out / name, split, scores[name])
    return scores


def draw_footages(
    out: Path,
    footages: Sequence[Footage],
    sequences: Sequence[DavisSequence],
    row_names: Sequence[str],
    main: str,
    *,
    pool: Executor | None,
) -> None:
    """Writes per footage `overlay/<name>.mp4` and `.png` and `comparison/<name>.mp4`, with the truth where it is known."""
    truths = {sequence.name: sequence for sequence in sequences if sequence.is_annotated}
    pairs = [(footage, truths.get(footage.name)) for footage in footages]
    answers_of(partial(_draw, out, tuple(row_names), main), pairs, "draw", pool)


def _draw(
    out: Path,
    row_names: Sequence[str],
    main: str,
    pair: tuple[Footage, DavisSequence | None],
) -> None:
    footage, truth = pair
    write_footage_pictures(out, footage, truth, row_names=row_names, main=main)


def answers_of(
    function: Callable[[Item], Answer],
    items: Sequence[Item],
    description: str,
    pool: Executor | None,
) -> list[Answer]:
    """The answers in the order of the items, side by side with a pool."""
    answers: Iterable[Answer] = map(function, items) if pool is None else pool.map(function, items)
    return list(progress.track(answers, description=description, total=len(items)))


def row_statistics(scores: Scores, main: str) -> RowStatistics:
    """Intervals and paired differences of all rows, over the same draws of sequences."""
    groups = {name: [row] for name, row in scores.items()}
    seeds = _untrained_rows(scores)
    if len(seeds) > 1:
        groups[_mean_name(seeds)] = seeds
    found = {name: bootstrap_intervals(*rows) for name, rows in groups.items()}
    return RowStatistics(
        num_sequences=len({score.sequence for score in scores[main]}),
        intervals={name: intervals for name, intervals in found.items() if intervals},
        differences={
            name: paired_difference(scores[main], rows)
            for name, rows in groups.items()
            if name != main
        },
    )


def write_report(path: Path, scores: Scores, main: str) -> RowStatistics:
    """Prints the tables of objects, rows and differences, writes them to `path`, and returns the statistics."""
    statistics = row_statistics(scores, main)
    table = {name: global_scores(row) for name, row in scores.items() if name != main}
    seeds = _untrained_rows(scores)
    if len(seeds) > 1:
        values = [global_scores(row) for row in seeds]
        table[_mean_name(seeds)] = {
            column: float(np.mean([value[column] for value in values])) for column in GLOBAL_COLUMNS
        }
    table[main] = global_scores(scores[main])
    means = {name: values["J&F-Mean"] for name, values in table.items()}
    text = "\n\n".join(
        [
            format_objects(scores[main]),
            format_table(table),
            _title(statistics.num_sequences),
            format_differences(main, means, statistics.intervals, statistics.differences),
        ]
    )
    write_text(path, text + "\n")
    print(text)
    return statistics


def _title(num_sequences: int) -> str:
    if num_sequences < 2:
        return "One sequence: no interval can be given."
    caution = "" if num_sequences >= ENOUGH_VIDEOS else ", so few that they are too narrow"
    return f"With {LEVEL:.0%} bootstrap intervals over {num_sequences} sequences{caution}:"


def _untrained_rows(scores: Scores) -> list[Sequence[ObjectScore]]:
    return [row for name, row in scores.items() if name.startswith("untrained_seed")]


def _mean_name(seeds: Sequence[object]) -> str:
    return f"untrained (mean of {len(seeds)})"
