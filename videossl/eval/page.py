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

from videossl.eval.overlay import COLOURS
from videossl.eval.page_tables import (
    differences_table,
    mean_score,
    objects_table,
    percent,
    rows_table,
    sort_key,
)
from videossl.eval.page_template import asset, data_uri, definitions, jpeg_uri, render_page
from videossl.eval.score_plot import ScoreLine, score_plot
from videossl.leftovers import is_system_leftover
from videossl.picture_files import is_picture, opened_picture
from videossl.whole_file import write_text

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
    return [
        "<h2>Scores</h2>",
        rows_table(scored, main_row),
        f'<p class="muted">In percent, means over {len(objects)} objects.{note}</p>',
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
