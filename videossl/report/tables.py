"""The results of a run for its report: probes, detection, pretext tasks on unseen videos, tracking with its videos."""

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from videossl.eval.page_template import data_uri
from videossl.intervals import too_few
from videossl.leftovers import is_system_leftover
from videossl.report.results import (
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
from videossl.report.run_record import RunRecord

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
    rivals = [f"{rule} {_percent(rival.accuracy[0])}" for rule, rival in task.rivals.items()]
    few = too_few(task.num_videos)
    bounds = f"{low} to {high}" + (f" ({few})" if few else "")
    return estimate, bounds, _percent(guess), ", ".join(rivals)


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
