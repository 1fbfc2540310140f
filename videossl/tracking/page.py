"""A tracking run as one page: the folder that `videossl track` wrote in, a self-contained index.html out.

It opens from disk without a network: style, script, plots, pictures and, up to a size, the videos lie in it.
"""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from videossl.io.html_page import asset, data_uri, definitions, jpeg_uri, render_page
from videossl.io.input_files import is_system_leftover
from videossl.io.output_files import write_text
from videossl.io.pictures import is_picture, opened_picture
from videossl.tracking.overlay import COLOURS
from videossl.tracking.scoring import GLOBAL_COLUMNS

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


WIDTH, HEIGHT = 460, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 8, 24, 34  # margins around the axes
_FRAME_STEPS = (1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1000)
_MOST_TICKS = 7


@dataclass(frozen=True)
class ScoreLine:
    """The score of one object over the scored frames; NaN where a frame has none."""

    label: str
    values: Sequence[float]  # in [0, 1]
    object_id: int  # its colour, as in the overlay
    faint: bool = False  # a baseline


def score_plot(title: str, lines: Sequence[ScoreLine], *, first_frame: int = 1) -> str:
    """An `<svg>` element of the lines over frames, from `first_frame` on: 0 to 1 upwards, every name escaped.

    Faint lines are drawn first and dashed. A line of a single value is a dot.
    """
    last_frame = first_frame + max((len(line.values) for line in lines), default=1) - 1
    name = html.escape(title)
    parts = [
        f'<svg class="plot" role="img" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'xmlns="http://www.w3.org/2000/svg" font-size="11" font-family="system-ui, sans-serif">',
        f"<title>{name}</title>",
        f'<text x="{_LEFT}" y="14" font-size="13" font-weight="600" fill="currentColor">{name}</text>',
        *_axes(first_frame, last_frame),
    ]
    for line in sorted(lines, key=lambda line: not line.faint):
        parts += _draw_line(line, first_frame, last_frame)
    return "\n".join([*parts, "</svg>"])


def frame_ticks(first_frame: int, last_frame: int) -> list[int]:
    """Round frame numbers within both ends, seven at most."""
    span = last_frame - first_frame
    step = next((s for s in _FRAME_STEPS if span / s < _MOST_TICKS), math.ceil(span / _MOST_TICKS))
    return [t for t in range(0, last_frame + 1, max(1, step)) if t >= first_frame] or [first_frame]


def _axes(first_frame: int, last_frame: int) -> list[str]:
    parts = []
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _y(value)
        opacity = 0.5 if value == 0 else 0.14
        parts.append(
            f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
            f'stroke="currentColor" stroke-opacity="{opacity}"/>'
        )
        if value in (0, 0.5, 1):
            parts.append(_text(_LEFT - 6, y + 4, f"{value:g}", anchor="end"))
    for frame in frame_ticks(first_frame, last_frame):
        x = _x(frame, first_frame, last_frame)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_y(0):.1f}" y2="{_y(0) + 4:.1f}" '
            'stroke="currentColor" stroke-opacity="0.5"/>'
        )
        parts.append(_text(x, _y(0) + 16, str(frame), anchor="middle"))
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    return [*parts, _text(middle, HEIGHT - 4, "frame", anchor="middle")]


def _draw_line(line: ScoreLine, first_frame: int, last_frame: int) -> list[str]:
    index = (line.object_id - 1) % len(COLOURS)
    red, green, blue = COLOURS[index]
    colour = f"var(--object-{index + 1}, #{red:02x}{green:02x}{blue:02x})"
    style = (
        'stroke-width="1.2" stroke-opacity="0.45" stroke-dasharray="4 3"'
        if line.faint
        else 'stroke-width="2" stroke-linejoin="round" stroke-linecap="round"'
    )
    parts = [f"<g><title>{html.escape(line.label)}</title>"]
    for run in _runs(line.values):
        points = [
            f"{_x(first_frame + place, first_frame, last_frame):.1f},{_y(line.values[place]):.1f}"
            for place in run
        ]
        if len(points) == 1:
            x, y = points[0].split(",")
            parts.append(f'<circle cx="{x}" cy="{y}" r="2.5" style="fill:{colour}"/>')
        else:
            parts.append(
                f'<polyline points="{" ".join(points)}" fill="none" style="stroke:{colour}" {style}/>'
            )
    return [*parts, "</g>"]


def _runs(values: Sequence[float]) -> list[list[int]]:
    """Places of values in a row, cut where one is missing."""
    runs: list[list[int]] = [[]]
    for place, value in enumerate(values):
        if math.isnan(value):
            runs.append([])
        else:
            runs[-1].append(place)
    return [run for run in runs if run]


def _text(x: float, y: float, text: str, *, anchor: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor" '
        f'fill-opacity="0.75">{text}</text>'
    )


def _x(frame: int, first_frame: int, last_frame: int) -> float:
    share = (frame - first_frame) / max(1, last_frame - first_frame)
    return _LEFT + share * (WIDTH - _LEFT - _RIGHT)


def _y(value: float) -> float:
    return HEIGHT - _BOTTOM - min(1.0, max(0.0, value)) * (HEIGHT - _TOP - _BOTTOM)


PAGE = "index.html"
EMBED_BYTES = 64 * 2**20  # of videos; chosen: a browser opens such a page within a second or two
_PICTURE_WIDTH = 1800  # pixels at most


@dataclass(frozen=True)
class _Sequence:
    """One section of the page: the files that were found, and the scores of the main row by object id."""

    name: str
    anchor: str
    video: Path | None
    sheet: Path | None
    attention: tuple[Path, ...]
    objects: Mapping[int, Mapping[str, Any]]

    @property
    def score(self) -> float:
        """The mean J&F of its objects, NaN without scores."""
        scores = [mean_score(record) for record in self.objects.values()]
        return sum(scores) / len(scores) if scores else math.nan


def write_page(
    out: Path,
    record: Mapping[str, Any],
    *,
    embed_bytes: int = EMBED_BYTES,
    date: datetime | None = None,
) -> Path:
    """Writes `out/index.html` about a finished run and returns its path.

    `record` is what stands in result.json. Of each sequence are shown, where they exist: `comparison/<name>.mp4`, else
    `overlay/<name>.mp4`; `overlay/<name>.png`; `attention/<name>/*.png`; and the scores of its `main_row`, those of the
    other rows faint behind. Videos of more than `embed_bytes` together stay outside, referred to by relative paths.
    `date` is that of the page, now by default.
    """
    rows, main_row = record.get("rows", {}), record["main_row"]
    scored = {name: row for name, row in rows.items() if "per_object" in row}
    sequences = _sequences(out, scored.get(main_row, {}).get("per_object", {}))
    videos = [sequence.video for sequence in sequences if sequence.video is not None]
    differences = record.get("differences", {})
    num_bytes = sum(video.stat().st_size for video in videos)
    is_embedded = num_bytes <= embed_bytes
    body = [
        _header(record, rows.get(main_row, {}), date or datetime.now()),
        *(_score_tables(scored, main_row, sequences, differences) if main_row in scored else []),
        "<h2>Sequences</h2>",
        *([] if is_embedded else [_outside_note(num_bytes)]),
        *(_section(sequence, scored, main_row, out, is_embedded) for sequence in sequences),
    ]
    text = render_page(
        title=_title(record),
        body="\n".join(body),
        scripts=[asset("page.js")],
        styles=[asset("page.css")],
    )
    write_text(out / PAGE, text)
    return out / PAGE


def _sequences(out: Path, per_object: Mapping[str, Mapping[str, Any]]) -> list[_Sequence]:
    """Worst first; without scores by name."""
    objects: dict[str, dict[int, Mapping[str, Any]]] = {}
    for path in sorted(out.glob("overlay/*.mp4")):
        if not is_system_leftover(path.name):
            objects[path.stem] = {}
    for name, record in per_object.items():
        sequence, _, number = name.rpartition("_")
        objects.setdefault(sequence, {})[int(number)] = record
    found = []
    for index, (name, records) in enumerate(objects.items()):
        videos = [out / folder / f"{name}.mp4" for folder in ("comparison", "overlay")]
        sheet = out / "overlay" / f"{name}.png"
        found.append(
            _Sequence(
                name=name,
                anchor=f"sequence-{index}",  # a name may hold anything
                video=next((video for video in videos if video.is_file()), None),
                sheet=sheet if sheet.is_file() else None,
                attention=tuple(
                    filter(is_picture, sorted((out / "attention" / name).glob("*.png")))
                ),
                objects=records,
            )
        )
    return sorted(found, key=lambda sequence: sort_key(sequence.score))


def _title(record: Mapping[str, Any]) -> str:
    checkpoint = Path(str(record.get("checkpoint") or record.get("features") or "masks")).name
    if record.get("video"):
        return f"Tracking with {checkpoint}: {Path(str(record['video'])).name}"
    root = Path(str(record.get("davis") or record.get("youtube_vos"))).name
    return f"Tracking with {checkpoint}: {root} {record.get('split') or ''}".strip()


def _header(record: Mapping[str, Any], main: Mapping[str, Any], date: datetime) -> str:
    shown_elsewhere = ("rows", "differences", "complete")
    run = {key: value for key, value in record.items() if key not in shown_elsewhere}
    settings = {key: value for key, value in main.items() if key in ("protocol", "features")}
    if "seconds_per_frame" in main:
        settings["seconds per frame"] = f"{main['seconds_per_frame']:.3f}"
    words = [f"{date:%Y-%m-%d %H:%M}"]
    if "preset" in record:
        words.append(f"preset {record['preset']}")
    if "features" in main and isinstance(main["features"], Mapping):
        words += [f"{key} {value}" for key, value in main["features"].items()]
    words += [f"{name} {number}" for name, number in record.get("versions", {}).items()]
    if not record.get("complete", True):
        words.append("not complete")
    parts = [
        f"<h1>{html.escape(_title(record))}</h1>",
        f'<p class="muted">{html.escape(" · ".join(words))}</p>',
    ]
    if "global" in main:
        shown = (("J&F-Mean", "J&F"), ("J-Mean", "J, region"), ("F-Mean", "F, contour"))
        stats = "".join(
            f"<div><b>{percent(main['global'][key])}</b><span>{html.escape(name)}</span></div>"
            for key, name in shown
        )
        parts.append(f'<div class="headline">{stats}</div>')
    details = definitions({**run, **settings})
    return "\n".join([*parts, f"<details><summary>What was run</summary>{details}</details>"])


def _score_tables(
    scored: Mapping[str, Mapping[str, Any]],
    main_row: str,
    sequences: Sequence[_Sequence],
    differences: Mapping[str, Mapping[str, Any]],
) -> list[str]:
    links = {
        f"{sequence.name}_{number}": f"#{sequence.anchor}"
        for sequence in sequences
        for number in sequence.objects
    }
    objects = scored[main_row]["per_object"]
    has_intervals = any("intervals" in row for row in scored.values())
    note = " Under each score its bootstrap interval over sequences." if has_intervals else ""
    count = "1 object" if len(objects) == 1 else f"{len(objects)} objects"
    return [
        "<h2>Scores</h2>",
        rows_table(scored, main_row),
        f'<p class="muted">In percent, means over {count}.{note}</p>',
        *(_differences(differences, main_row) if differences else []),
        "<h2>Objects, worst first</h2>",
        objects_table(objects, links),
    ]


def _differences(differences: Mapping[str, Mapping[str, Any]], main_row: str) -> list[str]:
    note = "In points; won is the number of sequences in which the J&amp;F is higher."
    return [
        "<h2>Differences</h2>",
        differences_table(differences, main_row),
        f'<p class="muted">{note}</p>',
    ]


def _outside_note(num_bytes: int) -> str:
    return (
        f'<p class="muted">The videos take {num_bytes / 2**20:.0f} MB and are not part of this file: '
        "they play as long as it stays in its folder.</p>"
    )


def _section(
    sequence: _Sequence,
    scored: Mapping[str, Mapping[str, Any]],
    main_row: str,
    out: Path,
    is_embedded: bool,
) -> str:
    name = html.escape(sequence.name)
    score = f"J&amp;F {percent(sequence.score)}" if sequence.objects else ""
    parts = [
        f'<section class="sequence" id="{sequence.anchor}">',
        f'<header><h3>{name}</h3><span class="muted">{score}</span></header>',
    ]
    if sequence.video is not None:
        source = (
            data_uri(sequence.video.read_bytes(), "video/mp4")
            if is_embedded
            else html.escape(quote(sequence.video.relative_to(out).as_posix()))
        )
        parts.append(
            f'<div class="wide"><video src="{source}" aria-label="{name}" autoplay muted loop '
            'playsinline controls preload="metadata"></video></div>'
        )
    if sequence.objects:
        parts.append(_plots(sequence, scored, main_row))
    if sequence.sheet is not None:
        parts.append(_figure(sequence.sheet, "A few frames of each row", name))
    parts += [_figure(path, f"Attention: {path.stem}", name) for path in sequence.attention]
    return "\n".join([*parts, "</section>"])


def _plots(sequence: _Sequence, scored: Mapping[str, Mapping[str, Any]], main_row: str) -> str:
    # One untrained row stands for all: each would add a line per object.
    rows = [name for name in scored if not name.startswith("untrained") or name.endswith("seed0")]
    plots = []
    for measure, title in (("J_frames", "Region similarity J"), ("F_frames", "Contour accuracy F")):
        lines = [
            ScoreLine(
                label=f"{row}, object {number}",
                values=[math.nan if v is None else v for v in record[measure]],
                object_id=number,
                faint=row != main_row,
            )
            for row in rows
            for number in sequence.objects
            if (record := scored[row]["per_object"].get(f"{sequence.name}_{number}"))
        ]
        plots.append(f"<div>{score_plot(title, lines)}</div>")
    objects = "".join(
        f'<span><i style="background:var(--object-{(number - 1) % len(COLOURS) + 1})"></i>'
        f"object {number}: {percent(mean_score(record))}</span>"
        for number, record in sequence.objects.items()
    )
    others = ", ".join(html.escape(row) for row in rows if row != main_row)
    dashed = f"<span>dashed: {others}</span>" if others else ""
    return f'<div class="plots">{"".join(plots)}</div><p class="legend muted">{objects}{dashed}</p>'


def _figure(path: Path, caption: str, name: str) -> str:
    with opened_picture(path) as image:
        picture = image.convert("RGB")
    picture.thumbnail((_PICTURE_WIDTH, _PICTURE_WIDTH * 4))
    source = jpeg_uri(picture)
    text = html.escape(caption)
    return (
        f'<figure><div class="wide"><img src="{source}" width="{picture.width}" '
        f'height="{picture.height}" loading="lazy" alt="{text} of {name}"></div>'
        f"<figcaption>{text}</figcaption></figure>"
    )
