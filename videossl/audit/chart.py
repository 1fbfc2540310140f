"""An audit as a picture: for each task its chance, its cheats with their intervals, and the model beside them."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from videossl.audit.battery import Audit
from videossl.audit.findings import Cheat, TaskAudit
from videossl.stats import Interval

COLOURS = {
    "at chance": "#9aa5b1",
    "unclear": "#e0a030",
    "too few videos": "#d5dae0",
    "leaks": "#c0392b",
    "baseline to beat": "#4a7fb5",
}
BAR_INCHES = 0.21


def draw_audit(audit: Audit, path: Path) -> None:
    """Writes a PNG with a panel for the control set and one for each task."""
    panels: list[tuple[str, Sequence[Cheat], TaskAudit | None]] = []
    if audit.control:
        panels.append(("control set: no arrow of time", audit.control, None))
    panels += [(task.task, task.cheats, task) for task in audit.tasks]
    heights = [max(2, len(cheats) + 1) for _, cheats, _ in panels]
    with mpl.rc_context({"font.size": 8}):
        figure = Figure(
            figsize=(9.5, BAR_INCHES * sum(heights) + 0.65 * len(panels) + 0.5),
            layout="constrained",
        )
        axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axis, (title, cheats, task) in zip(axes, panels, strict=True):
            _draw_panel(axis, title, cheats, task)
        axes[-1].set_xlabel("accuracy on held-out videos, 95 % interval over videos")
        handles = [mpl.patches.Patch(color=colour, label=name) for name, colour in COLOURS.items()]
        figure.legend(
            handles=handles, loc="outside upper center", ncols=len(COLOURS), frameon=False
        )
        figure.savefig(path, dpi=130)


def _draw_panel(axis: Axes, title: str, cheats: Sequence[Cheat], task: TaskAudit | None) -> None:
    for row, cheat in enumerate(cheats):
        axis.barh(row, cheat.accuracy.estimate, color=COLOURS[cheat.verdict], height=0.7)
        _whisker(axis, row, cheat.accuracy)
        # Each bar has its own chance: cells that moved have another than all cells.
        axis.plot([cheat.chance] * 2, [row - 0.45, row + 0.45], color="black", lw=1.4)
    names = [
        f"{c.probe} {c.name}" + (f" ({c.form})" if c.form not in ("evaluation", "control") else "")
        for c in cheats
    ]
    axis.set_yticks(range(len(cheats)), names)
    axis.set_ylim(len(cheats) - 0.4, -0.6)
    axis.set_xlim(0, 1)
    # Flush right: over the names there is room for what is longer than the bars.
    axis.set_title(f"{title} (black: chance{_model_words(task)})", loc="right", fontweight="bold")
    axis.spines[["top", "right"]].set_visible(False)
    if task is not None and task.model is not None:
        if not np.isnan(task.model.low):
            axis.axvspan(task.model.low, task.model.high, color="#2e8b57", alpha=0.15, lw=0)
        axis.axvline(task.model.estimate, color="#2e8b57", lw=1.6)


def _model_words(task: TaskAudit | None) -> str:
    if task is None or task.model is None:
        return ""
    return f"; green: the run's model, {task.model.estimate:.3f}"


def _whisker(axis: Axes, row: int, interval: Interval) -> None:
    if not np.isnan(interval.low):
        axis.plot([interval.low, interval.high], [row, row], color="#303030", lw=1)
