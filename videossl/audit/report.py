"""An audit as people and programs read it: a table, and JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from videossl.audit.battery import Audit
from videossl.audit.findings import Cheat, TaskAudit, is_above
from videossl.stats import Interval

HEADER = ("task", "probe", "cheat", "clips", "accuracy [95 %]", "chance", "verdict")


def audit_record(audit: Audit, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Everything, in plain types; numbers that are not known are null."""
    tasks = {
        task.task: {
            "chance": task.chance,
            "cheats": [asdict(cheat) for cheat in task.cheats],
            "checks": [asdict(check) for check in task.checks],
            "least_accuracy_found": task.least_found,
            "best_cheap_cheat": asdict(task.best_cheat) if task.best_cheat else None,
            "leaks": task.leaks,
            "model": _model_record(task),
        }
        for task in audit.tasks
    }
    record = {
        **facts,
        "control": [asdict(cheat) for cheat in audit.control],
        "checks": [asdict(check) for check in audit.checks],
        "tasks": tasks,
        "leaks": audit.leaks,
        "not_audited": audit.unknown,
    }
    known: dict[str, Any] = _without_nan(record)
    return known


def audit_text(audit: Audit) -> str:
    """The tables and sentences, in Markdown that reads well on a terminal too."""
    parts = []
    leaks, unknown = audit.leaks, audit.unknown
    if leaks:
        parts.append("Leaks:\n\n" + "\n".join(f"- {leak}" for leak in leaks))
    if audit.control:
        parts.append("Control set, the same forward and backward by construction:")
        parts.append(_table([_row("control", cheat) for cheat in audit.control]))
    rows = [_row(task.task, cheat) for task in audit.tasks for cheat in task.cheats]
    if rows:
        parts.append(_table(rows))
    for task in audit.tasks:
        parts.append("\n".join(f"- {line}" for line in task_lines(task)))
    general = [f"- {c.says}" for c in audit.checks]
    if general:
        parts.append("\n".join(general))
    if unknown:
        parts.append("Not looked at:\n\n" + "\n".join(f"- {what}" for what in unknown))
    tried = [task for task in audit.tasks if task.num_videos]
    if tried:
        parts.append(_what_could_be_found(tried))
    where = " in what was looked at" if unknown else ""
    if not leaks and any(task.least_found for task in tried):
        parts.append(f"No leak as large as that was found{where}. Smaller ones may be there.")
    elif not leaks and tried:
        parts.append("Whether there are leaks cannot be told of so few videos.")
    elif not leaks:
        parts.append(f"No leak was found{where}. No cheat was tried.")
    return "\n\n".join(parts)


def _what_could_be_found(tasks: Sequence[TaskAudit]) -> str:
    """How far a cheat must get on each task to be told from luck."""
    lines = []
    for task in tasks:
        least = task.least_found
        if least is None:
            said = f"{task.num_videos} held-out videos: only a cheat that wins nine of nine could be named"
        else:
            said = (
                f"a cheat that answers {least:.2f} of the questions would have been named "
                f"(chance {task.chance:.2f}, {task.num_videos} held-out videos)"
            )
        lines.append(f"- {task.task}: {said}")
    return "How small a leak could be seen:\n\n" + "\n".join(lines)


def task_lines(task: TaskAudit) -> list[str]:
    """What is to be said of a task: its best cheat, its model, its checks."""
    best = task.best_cheat
    lines = []
    if best is not None:
        lines.append(
            f"{task.task}: best cheap cheat {best.accuracy.estimate:.3f} ({best.probe} {best.name}), "
            f"chance {task.chance:.3f}"
        )
    if task.model is not None:
        lines.append(
            f"{task.task}: the run's model scores {_interval(task.model)}: {_placed(task)}"
        )
    return lines + [f"{task.task}: {check.probe} {check.says}" for check in task.checks]


def _placed(task: TaskAudit) -> str:
    assert task.model is not None
    best = task.best_cheat
    if math.isnan(task.model.low):
        return "no interval is known, the task gives tallies alone"
    if math.isnan(task.chance):
        return "its chance is not known"
    if task.model.low <= task.chance:
        return "not above chance by more than its interval"
    if best is None:
        return "above chance; no cheat was tried"
    if not is_above(task.model, best.accuracy):
        return "above chance, but not above the best cheat by more than the intervals"
    return "above chance and above the best cheat"


def _model_record(task: TaskAudit) -> dict[str, Any] | None:
    if task.model is None:
        return None
    best = task.best_cheat
    return {
        "accuracy": task.model,
        "is_above_chance": None if math.isnan(task.chance) else bool(task.model.low > task.chance),
        "is_above_best_cheat": None if best is None else bool(is_above(task.model, best.accuracy)),
    }


def _row(task: str, cheat: Cheat) -> tuple[str, ...]:
    accuracy = _interval(cheat.accuracy)
    return (
        task,
        cheat.probe,
        cheat.name,
        cheat.form,
        accuracy,
        f"{cheat.chance:.3f}",
        cheat.verdict,
    )


def _interval(interval: Interval) -> str:
    if math.isnan(interval.low):
        return f"{interval.estimate:.3f}"
    return str(interval)


def _table(rows: Sequence[Sequence[str]]) -> str:
    columns = [max(map(len, column)) for column in zip(HEADER, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (cell.ljust(width) for cell, width in zip(cells, columns, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = "|" + "|".join("-" * (width + 2) for width in columns) + "|"
    return "\n".join([line(HEADER), rule, *map(line, rows)])


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
