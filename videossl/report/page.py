"""Runs as one self-contained page: curves beside chance and cheats, pictures, probes, tracking, settings, hardware.

It opens from disk without a network: style, plots, pictures and, up to a size, the videos lie in it.
"""

import html
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from videossl.eval.page_template import asset, data_uri, definitions, render_page
from videossl.report.comparison import differing_settings
from videossl.report.curves import MOST_DRAWN, NUM_COLOURS, Curve, curve_plot
from videossl.report.run_record import Picture, RunRecord
from videossl.report.tables import result_sections

EMBED_BYTES = 48 * 2**20  # of videos in the page; chosen: a browser opens it within a second or two

_STEP_NUMBERS = (
    ("clips per second", ("clips_per_second",)),
    ("effective rank of features", ("features", "effective_rank")),
    ("learning rate", ("lr",)),
)
Points = list[tuple[float, float]]


def report_page(
    runs: Sequence[RunRecord], *, date: datetime, embed_bytes: int = EMBED_BYTES
) -> str:
    """The text of the page. The first run's results come first; videos past `embed_bytes` are named and left out."""
    names = ", ".join(run.name for run in runs)
    title = f"{names}: report" if len(runs) == 1 else f"{len(runs)} runs: {names}"
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="muted">{date:%Y-%m-%d %H:%M}</p>',
        _overview(runs),
        *_curves(runs),
        *(section for run in runs for section in _pictures(run)),
        *result_sections(runs, embed_bytes=embed_bytes),
        *_settings(runs),
        *(_details(run) for run in runs),
    ]
    styles = [asset("page.css"), asset("report.css", "videossl.report")]
    return render_page(title=title, body="\n".join(body), scripts=[], styles=styles)


def _overview(runs: Sequence[RunRecord]) -> str:
    """A row for each run: how far, how long, on what."""
    head = ("run", "steps", "training time", "hardware", "torch", "videossl")
    rows = []
    for index, run in enumerate(runs):
        environment = run.environment
        hardware = ", ".join(environment.gpus) or environment.processor
        total = run.config.get("train", {}).get("steps", "?")
        cells = [
            f"{run.last_step} of {total}",
            _duration(run.training_seconds),
            hardware or "unknown",
            environment.packages.get("torch") or "unknown",
            f"{environment.videossl or 'unknown'} {(environment.revision or '')[:10]}",
        ]
        texts = "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells)
        rows.append(
            f'<tr><td class="name">{_swatch(index)}{html.escape(run.name)}</td>{texts}</tr>'
        )
    headings = "".join(f"<th>{name}</th>" for name in head)
    return (
        '<div class="scroll" tabindex="0"><table><thead><tr>'
        f"{headings}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    minutes = round(seconds / 60)
    return (
        f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{seconds / 60:.1f} min"
    )


def _swatch(index: int) -> str:
    return f'<i class="swatch" style="background:var(--object-{index % NUM_COLOURS + 1})"></i>'


def _curves(runs: Sequence[RunRecord]) -> Iterator[str]:
    tasks = sorted({task for run in runs for task in run.config.get("tasks", {})})
    plots = [
        plot
        for task in tasks
        for what in ("accuracy", "loss")
        if (plot := curve_plot(f"{task}: {what}", list(_task_curves(runs, task, what))))
    ]
    plots += [
        plot
        for title, path in _STEP_NUMBERS
        if (
            plot := curve_plot(
                title, [Curve(r.name, _series(r, path), i) for i, r in enumerate(runs)]
            )
        )
    ]
    plots += [
        plot
        for name, path in _monitors(runs)
        if (
            plot := curve_plot(
                name, [Curve(r.name, _series(r, path), i) for i, r in enumerate(runs)]
            )
        )
    ]
    yield "<h2>Curves</h2>"
    if not plots:
        yield '<p class="muted">Nothing was logged yet.</p>'
        return
    yield f'<div class="plots">{"".join(f"<div>{plot}</div>" for plot in plots)}</div>'
    runs_named = "".join(
        f"<span>{_swatch(i)}{html.escape(r.name)}</span>" for i, r in enumerate(runs)
    )
    yield (
        f'<p class="legend muted">{runs_named}<span>solid: held-out videos</span><span>faint: training</span>'
        "<span>dashed: chance</span><span>dotted: the cheapest known cheat</span></p>"
    )


def _task_curves(runs: Sequence[RunRecord], task: str, what: str) -> Iterator[Curve]:
    for index, run in enumerate(runs):
        for part, style in (("tasks", "faint"), ("heldout", "solid")):
            points = _series(run, (part, task, what))
            label = f"{run.name}, {'training' if part == 'tasks' else 'held out'}"
            yield Curve(label, points, index, style)  # type: ignore[arg-type]
        if what != "accuracy":
            continue
        for bar, style in (("chance", "dashed"), ("cheat", "dotted")):
            known = _series(run, ("heldout", task, bar)) or _series(run, ("tasks", task, bar))
            level = [(step, known[-1][1]) for step in (0.0, float(run.last_step)) if known]
            yield Curve(f"{run.name}, {bar}", level, index, style)  # type: ignore[arg-type]


def _monitors(runs: Sequence[RunRecord]) -> list[tuple[str, tuple[str, ...]]]:
    """What was measured beside the tasks: nearest neighbours and tracking."""
    known = {"knn": ("accuracy",), "tracking": ("J&F-Mean",)}
    seen = {key for run in runs for line in run.metrics for key in line}
    return [(f"{name}: {path[0]}", (name, *path)) for name, path in known.items() if name in seen]


def _series(run: RunRecord, path: Sequence[str]) -> Points:
    points: Points = []
    for line in run.metrics:
        value: Any = line
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, int | float) and abs(value) <= MOST_DRAWN:
            points.append((line["step"], float(value)))
    return points


def _pictures(run: RunRecord) -> Iterator[str]:
    if not run.pictures:
        return
    yield f"<h2>What {html.escape(run.name)} saw and answered</h2>"
    yield from map(_figure, run.pictures)


def _figure(picture: Picture) -> str:
    caption = html.escape(f"{picture.tag}, step {picture.step}")
    return (
        f'<figure><div class="wide"><img class="picture" src="{data_uri(picture.png, "image/png")}" alt="{caption}" '
        f'loading="lazy"></div><figcaption>{caption}</figcaption></figure>'
    )


def _settings(runs: Sequence[RunRecord]) -> Iterator[str]:
    if len(runs) < 2:
        return
    yield "<h2>Settings that differ</h2>"
    rows = differing_settings([run.config for run in runs])
    if not rows:
        yield '<p class="muted">None: the configs are the same.</p>'
        return
    head = "".join(f"<th>{_swatch(i)}{html.escape(run.name)}</th>" for i, run in enumerate(runs))
    lines = []
    for key, values in rows.items():
        cells = "".join(f"<td>{html.escape(value)}</td>" for value in values)
        lines.append(f'<tr><td class="name">{html.escape(key)}</td>{cells}</tr>')
    body = "".join(lines)
    yield (
        '<div class="scroll" tabindex="0"><table><thead><tr><th>setting</th>'
        f"{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _details(run: RunRecord) -> str:
    name = html.escape(run.name)
    inside = definitions(run.config) + definitions(run.environment.model_dump(exclude_unset=True))
    return f"<details><summary>Settings and environment of {name}</summary>{inside}</details>"
