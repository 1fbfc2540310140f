"""The result of an audit, and how people and programs read it: sentences and a table, JSON, and a picture."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from videossl.audit.shortcut_baselines import (
    LEAK_ERRORS,
    MIN_VIDEOS,
    Check,
    ShortcutBaseline,
    is_above,
    standard_error,
)
from videossl.stats import Interval

# The probes that answer the task's own questions: P5 and P6 ask others, P7 asks again, P9 trains a head for long.
CHEAP = ("P2", "P3", "P4")
HEADER = ("task", "probe", "shortcut baseline", "clips", "accuracy [95 %]", "chance", "verdict")
COLORS = {
    "at chance": "#9aa5b1",
    "unclear": "#e0a030",
    "too few videos": "#d5dae0",
    "leaks": "#c0392b",
    "baseline to beat": "#4a7fb5",
}
MODEL_COLOR = "#2e8b57"
BAR_INCHES = 0.21


@dataclass(frozen=True)
class TaskAudit:
    """Holds what was found on one task, and the accuracy of the run's checkpoint on held-out videos, where one was given."""

    task: str
    chance: float
    baselines: Sequence[ShortcutBaseline]
    checks: Sequence[Check]
    model: Interval | None = None

    @property
    def best_baseline(self) -> ShortcutBaseline | None:
        """The most accurate one, leak or not, of the cheap ones that answer what the model is asked."""
        known = [b for b in self._cheap if not np.isnan(b.accuracy.estimate)]
        return max(known, key=lambda baseline: baseline.accuracy.estimate, default=None)

    @property
    def num_videos(self) -> int:
        """Counts the held-out videos that the cheap baselines were judged on."""
        return max((baseline.num_videos for baseline in self._cheap), default=0)

    @property
    def least_found(self) -> float | None:
        """The accuracy from which on a cheap baseline would have been called a leak; None where the videos are too few."""
        if self.num_videos < MIN_VIDEOS:
            return None
        widest = np.nanmax([standard_error(baseline.accuracy) for baseline in self._cheap])
        return float(min(1.0, self.chance + LEAK_ERRORS * widest))

    @property
    def _cheap(self) -> list[ShortcutBaseline]:
        own = [b for b in self.baselines if b.form == "evaluation" and b.asks_the_same]
        return [baseline for baseline in own if baseline.probe in CHEAP]

    @property
    def leaks(self) -> list[str]:
        """Lists what gives answers away: the names of baselines and what the checks say."""
        leaking = [b for b in self.baselines if b.verdict == "leaks"]
        said = [check.says for check in self.checks if check.is_clean is False]
        return [f"{b.probe} {b.name} ({b.form})" for b in leaking] + said


@dataclass(frozen=True)
class Audit:
    """Holds what was found on the control set, on the split, and on each task."""

    control: Sequence[ShortcutBaseline]
    checks: Sequence[Check]
    tasks: Sequence[TaskAudit]

    @property
    def leaks(self) -> list[str]:
        """Lists everything that is not as it should be, in words."""
        leaking = [b for b in self.control if b.verdict == "leaks" and not b.is_demonstration]
        general = [f"control set: {b.probe} {b.name}" for b in leaking]
        general += [check.says for check in self.checks if check.is_clean is False]
        return general + [f"{task.task}: {leak}" for task in self.tasks for leak in task.leaks]

    @property
    def unknown(self) -> list[str]:
        """Lists what could not be tested, in words: neither leaks nor their absence are known there."""
        checks = [("", check) for check in self.checks]
        checks += [(f"{task.task}: ", check) for task in self.tasks for check in task.checks]
        return [f"{prefix}{check.says}" for prefix, check in checks if check.is_clean is None]


def audit_record(audit: Audit, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Everything, in plain types; numbers that are not known are null."""
    tasks = {
        task.task: {
            "chance": task.chance,
            "shortcut baselines": [asdict(baseline) for baseline in task.baselines],
            "checks": [asdict(check) for check in task.checks],
            "least_accuracy_found": task.least_found,
            "best_cheap_cheat": asdict(task.best_baseline) if task.best_baseline else None,
            "leaks": task.leaks,
            "model": _model_record(task),
        }
        for task in audit.tasks
    }
    record = {
        **facts,
        "control": [asdict(baseline) for baseline in audit.control],
        "checks": [asdict(check) for check in audit.checks],
        "tasks": tasks,
        "leaks": audit.leaks,
        "not_audited": audit.unknown,
    }
    known: dict[str, Any] = _without_nan(record)
    return known


def _model_record(task: TaskAudit) -> dict[str, Any] | None:
    if task.model is None:
        return None
    best = task.best_baseline
    return {
        "accuracy": task.model,
        "is_above_chance": None if math.isnan(task.chance) else bool(task.model.low > task.chance),
        "is_above_best_cheat": None if best is None else bool(is_above(task.model, best.accuracy)),
    }


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def audit_text(audit: Audit) -> str:
    """The tables and sentences, in Markdown that reads well on a terminal too."""
    parts = []
    leaks, unknown = audit.leaks, audit.unknown
    if leaks:
        parts.append("Leaks:\n\n" + _list(leaks))
    if audit.control:
        parts.append("Control set, the same forward and backward by construction:")
        parts.append(_table([_row("control", baseline) for baseline in audit.control]))
    rows = [_row(task.task, baseline) for task in audit.tasks for baseline in task.baselines]
    if rows:
        parts.append(_table(rows))
    parts += [_list(task_lines(task)) for task in audit.tasks]
    if audit.checks:
        parts.append(_list([check.says for check in audit.checks]))
    if unknown:
        parts.append("Not looked at:\n\n" + _list(unknown))
    tried = [task for task in audit.tasks if task.num_videos]
    if tried:
        parts.append("How small a leak could be seen:\n\n" + _list([_power(t) for t in tried]))
    where = " in what was looked at" if unknown else ""
    if not leaks and any(task.least_found for task in tried):
        parts.append(f"No leak as large as that was found{where}. Smaller ones may be there.")
    elif not leaks and tried:
        parts.append("Whether there are leaks cannot be told from so few videos.")
    elif not leaks:
        parts.append(f"No leak was found{where}. No shortcut baseline was tried.")
    return "\n\n".join(parts)


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _power(task: TaskAudit) -> str:
    """Says how accurate a baseline must be on a task to be told from luck."""
    least, videos = task.least_found, f"{task.num_videos} held-out videos"
    if least is None:
        return f"{task.task}: {videos}: only a baseline that wins nine of nine could be named"
    seen = f"a baseline that answers {least:.2f} of the questions would have been named"
    return f"{task.task}: {seen} (chance {task.chance:.2f}, {videos})"


def task_lines(task: TaskAudit) -> list[str]:
    """The sentences about a task: its best baseline, its model, its checks."""
    best = task.best_baseline
    lines = []
    if best is not None:
        named = f"{best.accuracy.estimate:.3f} ({best.probe} {best.name})"
        lines.append(f"best cheap shortcut baseline {named}, chance {task.chance:.3f}")
    if task.model is not None:
        lines.append(f"the run's model scores {_interval(task.model)}: {_placed(task, task.model)}")
    lines += [f"{check.probe} {check.says}" for check in task.checks]
    return [f"{task.task}: {line}" for line in lines]


def _placed(task: TaskAudit, model: Interval) -> str:
    """Says how the model's accuracy compares with chance and the best baseline."""
    best = task.best_baseline
    if math.isnan(model.low):
        return "no interval is known, the task gives metric_sums alone"
    if math.isnan(task.chance):
        return "its chance is not known"
    if model.low <= task.chance:
        return "not above chance by more than its interval"
    if best is None:
        return "above chance; no shortcut baseline was tried"
    if not is_above(model, best.accuracy):
        return "above chance, but not above the best shortcut baseline by more than the intervals"
    return "above chance and above the best shortcut baseline"


def _row(task: str, baseline: ShortcutBaseline) -> tuple[str, ...]:
    numbers = _interval(baseline.accuracy), f"{baseline.chance:.3f}"
    return (task, baseline.probe, baseline.name, baseline.form, *numbers, baseline.verdict)


def _interval(interval: Interval) -> str:
    return f"{interval.estimate:.3f}" if math.isnan(interval.low) else str(interval)


def _table(rows: Sequence[Sequence[str]]) -> str:
    columns = [max(map(len, column)) for column in zip(HEADER, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (cell.ljust(width) for cell, width in zip(cells, columns, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = "|" + "|".join("-" * (width + 2) for width in columns) + "|"
    return "\n".join([line(HEADER), rule, *map(line, rows)])


def draw_audit(audit: Audit, path: Path) -> None:
    """Writes a PNG with a panel for the control set and one for each task: chance, baselines, and the model beside them."""
    panels: list[tuple[str, Sequence[ShortcutBaseline], Interval | None]] = []
    if audit.control:
        panels.append(("control set: no arrow of time", audit.control, None))
    panels += [(task.task, task.baselines, task.model) for task in audit.tasks]
    heights = [max(2, len(baselines) + 1) for _, baselines, _ in panels]
    inches = BAR_INCHES * sum(heights) + 0.65 * len(panels) + 0.5
    with mpl.rc_context({"font.size": 8}):
        figure = Figure(figsize=(9.5, inches), layout="constrained")
        axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axis, panel in zip(axes, panels, strict=True):
            _draw_panel(axis, *panel)
        axes[-1].set_xlabel("accuracy on held-out videos, 95 % interval over videos")
        handles = [mpl.patches.Patch(color=color, label=name) for name, color in COLORS.items()]
        where = "outside upper center"
        figure.legend(handles=handles, loc=where, ncols=len(COLORS), frameon=False)
        figure.savefig(path, dpi=130)


def _draw_panel(
    axis: Axes, title: str, baselines: Sequence[ShortcutBaseline], model: Interval | None
) -> None:
    names = []
    for row, b in enumerate(baselines):
        axis.barh(row, b.accuracy.estimate, color=COLORS[b.verdict], height=0.7)
        if not np.isnan(b.accuracy.low):
            axis.plot([b.accuracy.low, b.accuracy.high], [row, row], color="#303030", lw=1)
        # Each bar has its own chance: cells that moved have another than all cells.
        axis.plot([b.chance] * 2, [row - 0.45, row + 0.45], color="black", lw=1.4)
        form = "" if b.form in ("evaluation", "control") else f" ({b.form})"
        names.append(f"{b.probe} {b.name}{form}")
    axis.set_yticks(range(len(baselines)), names)
    axis.set_ylim(len(baselines) - 0.4, -0.6)
    axis.set_xlim(0, 1)
    beside = "" if model is None else f"; green: the run's model, {model.estimate:.3f}"
    # Flush right: over the names there is room for what is longer than the bars.
    axis.set_title(f"{title} (black: chance{beside})", loc="right", fontweight="bold")
    axis.spines[["top", "right"]].set_visible(False)
    if model is not None:
        if not np.isnan(model.low):
            axis.axvspan(model.low, model.high, color=MODEL_COLOR, alpha=0.15, lw=0)
        axis.axvline(model.estimate, color=MODEL_COLOR, lw=1.6)
