"""The result of `videossl pretext-eval`: a record, a table for people, and a picture per task."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from videossl.io.pictures import as_array
from videossl.stats import ENOUGH_VIDEOS, Interval, too_few

Rows = list[tuple[str, str, Interval]]  # what, of which questions, how much


def rows_of(task: Mapping[str, Any]) -> Rows:
    """Every figure of a task that has an interval, the model's before its rivals'."""
    if "accuracy" not in task:
        return []
    rows: Rows = []
    parts = {"all": task, **task.get("subsets", {})}
    for part, judged in parts.items():
        if not judged["num_questions"]:
            continue
        rows.append(("accuracy", part, Interval(*judged["accuracy"])))
        if "balanced_accuracy" in judged:
            rows.append(("balanced accuracy", part, Interval(*judged["balanced_accuracy"])))
        if "auc" in judged:
            rows.append(("AUC", part, Interval(*judged["auc"])))
        guess = ("chance", "chance") if "chance" in judged else ("best constant answer", "majority")
        rows.append((guess[0], part, Interval(*[judged[guess[1]]] * 3)))
        for name, rival in judged["rivals"].items():
            rows.append((f"rule: {name}", part, Interval(*rival["accuracy"])))
            if "balanced_accuracy" in rival:
                balanced = Interval(*rival["balanced_accuracy"])
                rows.append((f"rule: {name}, balanced", part, balanced))
            rows.append((f"model less {name}", part, Interval(*rival["model_minus_rival"])))
        rows += [(name, part, Interval(*value)) for name, value in judged["numbers"].items()]
    return rows


def format_table(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """A table for a terminal and for Markdown; tasks that are judged by their means alone have one line each mean."""
    lines = ["| task | measure | questions | estimate | 95 % interval |", "|---|---|---|---|---|"]
    for name, task in tasks.items():
        rows = rows_of(task)
        for what, part, (estimate, low, high) in rows:
            bounds = "" if low == high == estimate else f"{low:.3f} to {high:.3f}"
            lines.append(f"| {name} | {what} | {part} | {estimate:.3f} | {bounds} |")
        if not rows:
            lines += [
                f"| {name} | {what} | all | {value:.3f} | |"
                for what, value in task["means"].items()
            ]
    return "\n".join([*lines, *notes(tasks)])


def notes(tasks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a reader must know of the numbers: how few videos they are of, and what chance is."""
    few = {name: too_few(task.get("num_videos", ENOUGH_VIDEOS)) for name, task in tasks.items()}
    lines = [f"{name}: {text}." for name, text in few.items() if text]
    if any("chance" in task for task in tasks.values()):
        lines.append("Chance: one of the candidates in the batch, on average.")
    return ["", *lines] if lines else []


def draw_task(path: Path, name: str, task: Mapping[str, Any]) -> None:
    """Bars of every share with its interval, and the confusion matrix where it can be read."""
    shares = [row for row in rows_of(task) if not row[0].startswith("model less")]
    shares = [row for row in shares if 0 <= row[2].estimate <= 1]
    matrix = np.array(task["confusion"]) if "confusion" in task else None
    columns = 1 if matrix is None else 2
    figure = Figure(figsize=(6.5 * columns, 1.2 + 0.32 * max(len(shares), 9)))
    axes = figure.subplots(1, columns, squeeze=False)
    bars = axes[0][0]
    places = np.arange(len(shares))
    values = np.array([interval.estimate for *_, interval in shares])
    errors = np.abs(np.array([[i.low, i.high] for *_, i in shares]).T - values)
    colours = [_colour(what) for what, *_ in shares]
    bars.barh(places, values, xerr=errors, color=colours, height=0.7, ecolor="0.3", capsize=2)
    bars.set_yticks(places, [f"{what} ({part})" for what, part, _ in shares], fontsize=8)
    bars.invert_yaxis()
    bars.set_xlim(0, 1)
    bars.grid(axis="x", alpha=0.3)
    bars.set_title(
        f"{name}: {task['num_questions']} questions on {task['num_videos']} videos", fontsize=10
    )
    if matrix is not None:
        _draw_confusion(axes[0][1], matrix)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _colour(what: str) -> str:
    if what.startswith("rule") or what in ("best constant answer", "chance"):
        return "0.65"
    return "tab:blue" if what in ("accuracy", "balanced accuracy", "AUC") else "tab:cyan"


def _draw_confusion(axes: Any, matrix: np.ndarray) -> None:
    """Each row's shares: what is said where this is right."""
    totals = matrix.sum(1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros_like(matrix), where=totals > 0)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("said")
    axes.set_ylabel("right")
    axes.set_title("what is said where this is right, share of each row", fontsize=10)
    if len(matrix) <= 12:
        axes.set_xticks(range(len(matrix)))
        axes.set_yticks(range(len(matrix)))
        for (row, column), share in np.ndenumerate(shares):
            colour = "white" if share > 0.6 else "black"
            axes.text(
                column, row, f"{share:.2f}", ha="center", va="center", color=colour, fontsize=8
            )


def write_pictures(folder: Path, pictures: Mapping[str, Tensor]) -> list[Path]:
    """What the tasks saw and answered, a PNG each: `task/name` becomes task_name.png."""
    paths = []
    for title, image in pictures.items():
        path = folder / f"{title.replace('/', '_').replace(' ', '_')}.png"
        Image.fromarray(as_array(image.cpu())).save(path)
        paths.append(path)
    return paths
