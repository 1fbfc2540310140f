"""The record of a probe, and its table for people."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay
from torch import Tensor

from videossl.data.manifest import Manifest
from videossl.decode.source import as_text, file_path
from videossl.export.video_encoder import ClipForm
from videossl.io.drawing import Rgb, Strip, as_array, contact_sheet, write_png
from videossl.io.input_files import csv_text
from videossl.io.output_files import write_text
from videossl.probe.classifiers import RECALLS, SHOTS, similarities
from videossl.probe.embedding import ClipReader
from videossl.probe.labelled_split import Examples
from videossl.probe.protocols import Judged, difference
from videossl.stats import ENOUGH_VIDEOS, too_few

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


NUM_QUERIES, NUM_NEAREST = 4, 5
NUM_DRAWN_FRAMES = 6
HEIGHT = 72  # pixels of a frame
MOST_NAMED, MOST_COUNTED = 60, 30  # classes whose names, and whose counts, are legible


class Found(NamedTuple):
    """A query of the test part and its nearest videos of the gallery, with cosines; all rows of the manifest."""

    query: int
    nearest: tuple[int, ...]
    cosines: tuple[float, ...]


def draw_confusion(path: Path, confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
    """Counts of videos: rows are the true class, columns the answer."""
    counts = np.asarray(confusion)
    named = len(classes) <= MOST_NAMED
    side = min(max(3.6, 1.6 + 0.42 * len(classes)), 24)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    # A dollar sign would begin a formula.
    labels = [name.replace("$", r"\$") for name in classes] if named else None
    display = ConfusionMatrixDisplay(counts, display_labels=labels)
    display.plot(
        ax=axes,
        cmap="Blues",
        xticks_rotation="vertical" if len(classes) > 4 else "horizontal",
        include_values=len(classes) <= MOST_COUNTED,
        colorbar=False,
    )
    if not named:
        axes.set_xticks([])
        axes.set_yticks([])
    axes.set_xlabel("answer")
    axes.set_ylabel("class")
    right, total = int(np.trace(counts)), int(counts.sum())
    axes.set_title(f"{right} of {total} videos right", fontsize=10)
    figure.savefig(path, dpi=120)


def nearest(test: Examples, gallery: Examples) -> list[Found]:
    """The nearest neighbours of a few queries, as many classes as possible among them."""
    similarity = similarities(test.per_video, gallery.per_video)
    found = []
    for position in _spread(test.labels, NUM_QUERIES):
        cosines, index = similarity[position].topk(min(NUM_NEAREST, len(gallery)))
        rows = tuple(gallery.rows[index.numpy()].tolist())
        found.append(Found(int(test.rows[position]), rows, tuple(cosines.tolist())))
    return found


def _spread(labels: Tensor, count: int) -> list[int]:
    """Positions, one class after the other."""
    rank = torch.zeros(len(labels), dtype=torch.int64)
    for one in labels.unique():
        members = labels == one
        rank[members] = torch.arange(int(members.sum()))
    order = sorted(range(len(labels)), key=lambda i: (int(rank[i]), int(labels[i])))
    return order[:count]


def draw_neighbours(path: Path, found: Sequence[Found], manifest: Manifest, clip: ClipForm) -> None:
    """A film strip of the middle clip of each query, and below it those of its neighbours, right or wrong."""
    reader = ClipReader(manifest, clip, num_clips=1)
    strips = []
    for query, neighbours, cosines in found:
        label = manifest[query].label
        strips.append(Strip(f"QUERY  {_name(manifest, query)}  {label}", _film(reader, query)))
        for rank, (row, cosine) in enumerate(zip(neighbours, cosines, strict=True), start=1):
            other = manifest[row].label
            verdict = "same class" if other == label else "OTHER CLASS"
            title = f"   {rank}.  {other}  ({verdict}, cosine {cosine:.3f})  {_name(manifest, row)}"
            strips.append(Strip(title, _film(reader, row)))
    write_png(path, contact_sheet(strips, height=HEIGHT))


def _film(reader: ClipReader, row: int) -> list[Rgb]:
    frames = reader.read(row)[0]  # (T, 3, H, W)
    shown = torch.linspace(0, len(frames) - 1, min(NUM_DRAWN_FRAMES, len(frames))).round().long()
    return [as_array(frame) for frame in frames[shown]]


def _name(manifest: Manifest, row: int) -> str:
    path = PurePosixPath(as_text(file_path(manifest[row].path)))
    return f"{path.parent.name}/{path.name}"
