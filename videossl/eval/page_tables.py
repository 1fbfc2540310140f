"""Scores as HTML tables that sort by a click, worst first. Every name is escaped here."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from videossl.eval.scoring import GLOBAL_COLUMNS

OBJECT_COLUMNS = ("J&F", "J mean", "J recall", "J decay", "F mean", "F recall", "F decay")


@dataclass(frozen=True)
class Cell:
    """What a table shows, what it sorts by, and a second line in small."""

    text: str
    value: float | str  # NaN for none
    note: str = ""
    link: str = ""


def rows_table(rows: Mapping[str, Mapping[str, Any]], main: str) -> str:
    """The whole-set scores, a line per row; `main` is the one that the page is about.

    A row's optional `intervals` give (low, high) per column, fractions like the scores.
    """
    lines = []
    for name, row in rows.items():
        intervals = row.get("intervals", {})
        cells = [_score(row["global"][c], intervals.get(c)) for c in GLOBAL_COLUMNS]
        lines.append(([Cell(name, name), *cells], name == main))
    heads = ("row", *(column.replace("-", " ") for column in GLOBAL_COLUMNS))
    return _table("scores of each row, in percent", heads, lines, sorted_column=None)


def objects_table(objects: Mapping[str, Mapping[str, Any]], links: Mapping[str, str]) -> str:
    """The scores of each object, worst J&F first; `links` are places on the page by object name."""
    lines = []
    for name in sorted(objects, key=lambda name: sort_key(mean_score(objects[name]))):
        record = objects[name]
        statistics = [record[m][s] for m in "JF" for s in ("mean", "recall", "decay")]
        cells = [_score(value, None) for value in (mean_score(record), *statistics)]
        lines.append(([Cell(name, name, link=links.get(name, "")), *cells], False))
    heads = ("object", *OBJECT_COLUMNS)
    return _table("scores of each object, in percent", heads, lines, sorted_column=1)


def differences_table(differences: Mapping[str, Mapping[str, Any]], main: str) -> str:
    """`main` minus each other row, a line per row, with the sequences that it won.

    Each entry has `difference` by column, `intervals` (low, high) where known, `sequences_won` and `num_sequences`.
    """
    lines = []
    for name, found in differences.items():
        intervals = found["intervals"]
        cells = [_change(found["difference"][c], intervals.get(c)) for c in GLOBAL_COLUMNS]
        won = Cell(f"{found['sequences_won']} of {found['num_sequences']}", found["sequences_won"])
        lines.append(([Cell(name, name), *cells, won], False))
    heads = (f"{main} minus", *(c.replace("-", " ") for c in GLOBAL_COLUMNS), "won")
    return _table("differences between rows, in points", heads, lines, sorted_column=None)


def mean_score(record: Mapping[str, Any]) -> float:
    """J&F of one object: the mean of its mean J and mean F."""
    return (_number(record["J"]["mean"]) + _number(record["F"]["mean"])) / 2


def sort_key(score: float) -> float:
    """Ascending, what has no score last."""
    return math.inf if math.isnan(score) else score


def percent(value: float) -> str:
    """In percent with one decimal; a dash where there is none."""
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def _score(value: object, interval: Sequence[float] | None) -> Cell:
    number = _number(value)
    note = "" if interval is None else " to ".join(percent(_number(end)) for end in interval)
    return Cell(percent(number), number, note)


def _change(value: float, interval: Sequence[float] | None) -> Cell:
    note = "" if interval is None else " to ".join(map(_points, interval))
    return Cell(_points(value), value, note)


def _points(value: float) -> str:
    return f"{round(100 * value, 1) + 0.0:+.1f}"  # with 0 added: no "-0.0"


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _table(
    label: str,
    heads: Sequence[str],
    lines: Sequence[tuple[Sequence[Cell], bool]],
    *,
    sorted_column: int | None,
) -> str:
    parts = []
    for column, head in enumerate(heads):
        kind = "text" if column == 0 else "number"
        state = ' aria-sort="ascending"' if column == sorted_column else ""
        button = f'<button type="button">{html.escape(head)}</button>'
        parts.append(f'<th scope="col" data-kind="{kind}"{state}>{button}</th>')
    body = "\n".join(_line(cells, is_main) for cells, is_main in lines)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(label)}">'
        f'<table class="sortable"><thead><tr>{"".join(parts)}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _line(cells: Sequence[Cell], is_main: bool) -> str:
    parts = []
    for column, cell in enumerate(cells):
        is_missing = isinstance(cell.value, float) and math.isnan(cell.value)
        value = "" if is_missing else html.escape(str(cell.value))
        text = html.escape(cell.text)
        if cell.link:
            text = f'<a href="{html.escape(cell.link)}">{text}</a>'
        if cell.note:
            text += f"<small>{html.escape(cell.note)}</small>"
        kind = ' class="name"' if column == 0 else ""
        parts.append(f'<td{kind} data-value="{value}">{text}</td>')
    state = ' class="main"' if is_main else ""
    return f"<tr{state}>{''.join(parts)}</tr>"
