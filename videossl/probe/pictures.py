"""What a probe got right and wrong, to look at: the confusion matrix, and videos beside their nearest neighbours."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay
from torch import Tensor

from videossl.data.table import Manifest
from videossl.decode.source import as_text, file_path
from videossl.drawing import Rgb, Strip, as_array, contact_sheet, write_png
from videossl.embedding.clip_reader import ClipReader
from videossl.export.clip_form import ClipForm
from videossl.probe.examples import Examples
from videossl.probe.neighbours import similarities

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
