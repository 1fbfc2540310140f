"""The record of a probe, and its table for people."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from videossl.data.table import Manifest
from videossl.intervals import ENOUGH_VIDEOS, too_few
from videossl.probe.few_shot import SHOTS
from videossl.probe.judgement import difference
from videossl.probe.neighbours import RECALLS
from videossl.probe.protocols import Judged
from videossl.text_files import csv_text
from videossl.whole_file import write_text

Rows = Mapping[str, Judged]


def records(rows: Rows) -> dict[str, dict[str, Any]]:
    """Each row's numbers, how much the first row is above it on the same videos, and the digests of frozen weights."""
    first = next(iter(rows.values()))
    found: dict[str, dict[str, Any]] = {}
    for name, row in rows.items():
        numbers = dict(row.numbers)
        if row is not first and list(row.test.rows) == list(first.test.rows):
            numbers["first_row_minus_this"] = list(
                difference(first.right, row.right, first.test.groups)
            )
        if row.frozen:
            numbers["frozen"] = row.frozen
        found[name] = numbers
    return found


def write_predictions(path: Path, row: Judged, classes: Sequence[str], manifest: Manifest) -> None:
    """A CSV of path, class, answer and its probability, a line per test video."""
    assert row.probabilities is not None
    best = row.probabilities.max(1)
    lines: list[list[object]] = [["path", "label", "answer", "probability"]]
    for place, number in enumerate(row.test.rows.tolist()):
        entry = manifest[number]
        answer = classes[int(best.indices[place])]
        lines.append([entry.source, entry.label, answer, f"{float(best.values[place]):.4f}"])
    write_text(path, csv_text(lines))


def format_table(
    protocol: str, rows: Mapping[str, Mapping[str, Any]], chance: Mapping[str, float]
) -> str:
    """Percent, in a table that a terminal and Markdown show; the first row's lead with its 95 % interval."""
    head, cells = _COLUMNS[protocol]
    lines = [f"| row | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(cells(numbers))} |" for name, numbers in rows.items()]
    lines.append(f"| chance | {' | '.join(_chance(protocol, head, chance))} |")
    return "\n".join([*lines, *_notes(protocol, next(iter(rows.values())))])


def _notes(protocol: str, numbers: Mapping[str, Any]) -> list[str]:
    """What chance is where it is not one class of so many, and that so few videos tell little."""
    known = {"retrieval": "the gallery in random order", "fewshot": ""}
    chance = known.get(protocol, "always the commonest class")
    few = too_few(
        numbers.get("num_videos", numbers.get("num_queries", ENOUGH_VIDEOS)), "test videos"
    )
    lines = [f"Chance: {chance}." if chance else "", f"{few}." if few else ""]
    return ["", *filter(None, lines)] if any(lines) else []


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _interval(value: list[float]) -> str:
    estimate, low, high = (100 * v for v in value)
    return f"{estimate:.1f} [{low:.1f}, {high:.1f}]"


def _lead(numbers: Mapping[str, Any]) -> str:
    lead = numbers.get("first_row_minus_this")
    return "" if lead is None else f"+{_interval(lead)}".replace("+-", "-")


def _class_cells(numbers: Mapping[str, Any]) -> list[str]:
    return [
        _interval(numbers["top1"]),
        _percent(numbers["balanced_accuracy"]),
        _percent(numbers["top5"]) if "top5" in numbers else "",
        _lead(numbers),
    ]


def _retrieval_cells(numbers: Mapping[str, Any]) -> list[str]:
    return [*(_percent(numbers[f"R@{k}"]) for k in RECALLS), _lead(numbers)]


def _few_shot_cells(numbers: Mapping[str, Any]) -> list[str]:
    if "top1" in numbers:  # of all labels: the same under each number of shots
        return [_percent(numbers["top1"][0])] * len(SHOTS)
    shots = [value for name, value in numbers.items() if name.endswith("-shot")]
    return [
        "too few videos" if one is None else f"{100 * one['mean']:.1f} ± {100 * one['std']:.1f}"
        for one in shots
    ]


def _chance(protocol: str, head: list[str], chance: Mapping[str, float]) -> list[str]:
    if protocol == "fewshot":
        return [_percent(chance["balanced_accuracy"])] * len(head)
    known = {"top-1": "top1", "balanced": "balanced_accuracy"}
    values = [chance.get(known.get(name, name)) for name in head]
    return ["" if value is None else _percent(value) for value in values]


_CLASS = (["top-1", "balanced", "top-5", "first row's lead in top-1"], _class_cells)
_COLUMNS = {
    "linear": _CLASS,
    "attentive": _CLASS,
    "knn": _CLASS,
    "finetune": _CLASS,
    "retrieval": (
        [*(f"R@{k}" for k in RECALLS), "first row's lead in R@1"],
        _retrieval_cells,
    ),
    "fewshot": ([f"{shots}-shot" for shots in SHOTS], _few_shot_cells),
}
