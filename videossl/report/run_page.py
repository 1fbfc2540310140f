"""Runs as one self-contained page: curves beside chance and baselines, pictures, probes, tracking, settings, hardware.

It opens from disk without a network: style, plots, pictures and, up to a size, the videos lie in it.
"""

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from videossl.io.html_page import asset, data_uri, definitions, render_page
from videossl.io.input_files import is_system_leftover
from videossl.report.run_record import Picture, RunRecord, differing_settings
from videossl.report.run_results import (
    Detection,
    Pretext,
    PretextTask,
    Probe,
    ProbeRow,
    Record,
    Result,
    Spread,
    Tracking,
)
from videossl.stats import too_few

NUM_VIDEOS = 6  # of each tracking result

Row = Sequence[str]
NOT_SCORED = ("not scored", "", "")  # no masks of these videos are known
Table = tuple[Row, Sequence[Row]]  # head, rows
Kind = TypeVar("Kind", bound=Record)


@dataclass(frozen=True)
class Found(Generic[Kind]):
    """A result of one kind: what the run's column says, the folder, the numbers."""

    label: str
    folder: Path
    record: Kind


def result_sections(runs: Sequence[RunRecord], *, embed_bytes: int) -> Iterator[str]:
    """A section for each kind of result that some run has."""
    found = [(_label(run, result), result) for run in runs for result in run.results]
    tracking = _of(Tracking, found)
    for title, (head, rows) in (
        ("Probes", _probes(_of(Probe, found))),
        ("Detection", _detection(_of(Detection, found))),
        ("Pretext tasks on unseen videos", _pretext(_of(Pretext, found))),
        ("Tracking", _tracking(tracking)),
    ):
        if rows:
            yield f"<h2>{title}</h2>"
            yield _table(head, rows)
    yield from _pictures_of_probes([*_of(Probe, found), *_of(Detection, found)])
    yield from _videos(tracking, embed_bytes)


def _label(run: RunRecord, result: Result) -> str:
    if result.encoder:
        return result.encoder
    return f"{run.name} ({result.mark})" if result.mark else run.name


def _of(kind: type[Kind], found: Sequence[tuple[str, Result]]) -> "list[Found[Kind]]":
    return [
        Found(label, result.folder, result.record)
        for label, result in found
        if isinstance(result.record, kind)
    ]


def _table(head: Row, rows: Sequence[Row]) -> str:
    headings = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    lines = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0"><table class="plain"><thead><tr>{headings}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _probes(found: Sequence[Found[Probe]]) -> Table:
    rows: list[Row] = []
    for one in found:
        protocol, chance = one.record.protocol, one.record.chance
        for name, numbers in one.record.rows.items():
            rows.append((one.label, protocol, name, *_probe_cells(numbers)))
        # Few shots are as many of each class, so that a guess is right as often as classes are many.
        guess = "balanced_accuracy" if protocol == "fewshot" else "top1"
        first = chance.get(guess, chance.get("R@1"))
        rows.append((one.label, protocol, "chance", _percent(first), "", ""))
    return ("run", "protocol", "row", "top-1 or R@1", "95 % interval", "first row's lead"), rows


def _probe_cells(row: ProbeRow) -> tuple[str, str, str]:
    said = ""
    if row.lead is not None:
        lead, low, high = (100 * value for value in row.lead)
        said = f"{lead:+.1f} [{low:.1f}, {high:.1f}]"
    if row.top1 is not None:
        estimate, low, high = row.top1
        return _percent(estimate), f"{_percent(low)} to {_percent(high)}", said
    if row.recall is not None:
        return _percent(row.recall), "", said
    return ", ".join(f"{name} {_spread(one)}" for name, one in row.shots.items()), "", said


def _spread(one: Spread | None) -> str:
    """As `probe`'s own table says it."""
    return "too few videos" if one is None else f"{100 * one.mean:.1f} ± {100 * one.std:.1f}"


def _detection(found: Sequence[Found[Detection]]) -> Table:
    rows = [
        (one.label, name, *map(_percent, (row.AP50, row.AP75, row.AP)))
        for one in found
        for name, row in one.record.rows.items()
    ]
    return ("run", "backbone", "AP50", "AP75", "AP"), rows


def _pretext(found: Sequence[Found[Pretext]]) -> Table:
    rows = [
        (one.label, name, *_task_cells(task, task.accuracy))
        for one in found
        for name, task in one.record.tasks.items()
        if task.accuracy is not None
    ]
    return ("run", "task", "accuracy", "95 % interval", "chance", "rules without a network"), rows


def _task_cells(task: PretextTask, accuracy: Sequence[float]) -> Row:
    estimate, low, high = map(_percent, accuracy)
    guess = task.majority if task.chance is None else task.chance
    baselines = [
        f"{rule} {_percent(baseline.accuracy[0])}" for rule, baseline in task.baselines.items()
    ]
    few = too_few(task.num_videos)
    bounds = f"{low} to {high}" + (f" ({few})" if few else "")
    return estimate, bounds, _percent(guess), ", ".join(baselines)


def _tracking(found: Sequence[Found[Tracking]]) -> Table:
    keys = ("J&F-Mean", "J-Mean", "F-Mean")
    rows: list[Row] = []
    for one in found:
        record = one.record
        what = Path(record.davis or record.youtube_vos or record.video or "").name
        what = f"{what} {record.split or ''}".strip()
        for name, row in record.rows.items():
            scores = [_percent(row.scores.get(key)) for key in keys] if row.scores else NOT_SCORED
            rows.append((one.label, what, name, *scores))
    return ("run", "videos", "row", "J&F", "J", "F"), rows


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _pictures_of_probes(found: Sequence[Found[Any]]) -> Iterator[str]:
    for one in found:
        for name in ("confusion.png", "neighbours.png", "boxes.png"):
            path = one.folder / name
            if path.is_file():
                said = html.escape(f"{one.label}, {one.folder.name}: {path.stem}")
                yield (
                    f'<details><summary>{said}</summary><div class="wide"><img class="picture" '
                    f'src="{data_uri(path.read_bytes(), "image/png")}" alt="{said}" loading="lazy"></div></details>'
                )


def _data_of(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in folder.glob(pattern) if not is_system_leftover(path.name))


def _videos(found: Sequence[Found[Tracking]], embed_bytes: int) -> Iterator[str]:
    """The first videos of each tracking result, as long as there is room."""
    left = embed_bytes
    for one in found:
        paths = _data_of(one.folder, "comparison/*.mp4") or _data_of(one.folder, "overlay/*.mp4")
        shown = []
        for path in paths[:NUM_VIDEOS]:
            size = path.stat().st_size
            if size > left:
                continue
            left -= size
            said = html.escape(f"{one.label}: {path.stem}")
            shown.append(
                f'<figure><video src="{data_uri(path.read_bytes(), "video/mp4")}" aria-label="{said}" muted loop '
                f'playsinline controls preload="metadata"></video><figcaption>{said}</figcaption></figure>'
            )
        if shown:
            yield f'<div class="videos">{"".join(shown)}</div>'
        if len(shown) < len(paths):
            yield (
                f'<p class="muted">{len(shown)} of {len(paths)} videos of {html.escape(one.label)} are shown; all are on '
                f"the page that track wrote, {html.escape(str(one.folder / 'index.html'))}.</p>"
            )


WIDTH, HEIGHT = 460, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 26, 36
NUM_COLOURS = 7
MOST_DRAWN = 1e300  # beyond it a distance between two values overflows; a loss that got there is as good as infinite
_FLAT = 1e-9  # of the greatest value: a smaller range is drawn as a level line
Style = Literal["solid", "faint", "dashed", "dotted"]
_STYLES: dict[Style, str] = {
    "solid": 'stroke-width="2" stroke-linejoin="round"',
    "faint": 'stroke-width="1.2" stroke-opacity="0.45"',
    "dashed": 'stroke-width="1.2" stroke-opacity="0.8" stroke-dasharray="6 4"',
    "dotted": 'stroke-width="1.4" stroke-opacity="0.9" stroke-dasharray="1.5 3.5"',
}


@dataclass(frozen=True)
class Curve:
    """Points (step, value) of one run; `colour` counts from 0."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: int
    style: Style = "solid"


def curve_plot(title: str, curves: Sequence[Curve]) -> str:
    """An `<svg>` element; the axes hold every point, names are escaped. A curve of one point is a dot.

    Values that are not finite, or beyond MOST_DRAWN, are left out.
    """
    points = [p for curve in curves for p in curve.points if abs(p[1]) <= MOST_DRAWN]
    if not points:
        return ""
    steps = nice_ticks(0, max(step for step, _ in points))
    values = nice_ticks(min(value for _, value in points), max(value for _, value in points))
    frame = _Frame(steps[0], steps[-1], values[0], values[-1])
    name = html.escape(title)
    parts = [
        f'<svg class="plot" role="img" viewBox="0 0 {WIDTH} {HEIGHT}" xmlns="http://www.w3.org/2000/svg" '
        'font-size="11" font-family="system-ui, sans-serif">',
        f"<title>{name}</title>",
        f'<text x="{_LEFT}" y="15" font-size="13" font-weight="600" fill="currentColor">{name}</text>',
        *_axes(frame, steps, values),
    ]
    order = ("faint", "dotted", "dashed", "solid")
    for curve in sorted(curves, key=lambda curve: order.index(curve.style)):
        parts += _draw(curve, frame)
    return "\n".join([*parts, "</svg>"])


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers at equal distances, the first not above `low`, the last not below `high`."""
    greatest = max(abs(low), abs(high))
    if high - low <= max(_FLAT * greatest, 1e-300):
        half = max(0.5, 1e-6 * greatest)
        low, high = low - half, high + half
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


@dataclass(frozen=True)
class _Frame:
    first: float
    last: float
    low: float
    high: float

    def x(self, step: float) -> float:
        share = (step - self.first) / (self.last - self.first)
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)


def _axes(frame: _Frame, steps: Sequence[float], values: Sequence[float]) -> list[str]:
    parts = []
    for value in values:
        y = frame.y(value)
        opacity = 0.5 if value == values[0] else 0.14
        parts.append(
            f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" '
            f'stroke-opacity="{opacity}"/>'
        )
        parts.append(_text(_LEFT - 6, y + 4, f"{value:g}", "end"))
    for step in steps:
        parts.append(_text(frame.x(step), HEIGHT - _BOTTOM + 16, f"{step:g}", "middle"))
    return [*parts, _text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 4, "step", "middle")]


def _draw(curve: Curve, frame: _Frame) -> list[str]:
    colour = f"var(--object-{curve.colour % NUM_COLOURS + 1}, #555)"
    places = [
        f"{frame.x(step):.1f},{frame.y(value):.1f}"
        for step, value in curve.points
        if abs(value) <= MOST_DRAWN
    ]
    title = f"<title>{html.escape(curve.label)}</title>"
    if len(places) == 1:
        x, y = places[0].split(",")
        return [f'<g>{title}<circle cx="{x}" cy="{y}" r="2.5" style="fill:{colour}"/></g>']
    line = f'<polyline points="{" ".join(places)}" fill="none" style="stroke:{colour}" {_STYLES[curve.style]}/>'
    return [f"<g>{title}{line}</g>"]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor" fill-opacity="0.75">{text}</text>'


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
        "<span>dashed: chance</span><span>dotted: shortcut baseline</span></p>"
    )


def _task_curves(runs: Sequence[RunRecord], task: str, what: str) -> Iterator[Curve]:
    for index, run in enumerate(runs):
        for part, style in (("tasks", "faint"), ("val", "solid")):
            points = _series(run, (part, task, what))
            label = f"{run.name}, {'training' if part == 'tasks' else 'held out'}"
            yield Curve(label, points, index, style)  # type: ignore[arg-type]
        if what != "accuracy":
            continue
        for bar, style in (("chance", "dashed"), ("shortcut_baseline", "dotted")):
            known = _series(run, ("val", task, bar)) or _series(run, ("tasks", task, bar))
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
