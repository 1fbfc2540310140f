"""The results of a run for its report: probes, detection, pretext tasks on unseen videos, tracking with its videos."""

import html
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from videossl.eval.page_template import data_uri
from videossl.report.run_record import Result, RunRecord

NUM_VIDEOS = 6  # of each tracking result

Table = tuple[Sequence[str], Sequence[Sequence[str]]]  # head, rows


def result_sections(runs: Sequence[RunRecord], *, embed_bytes: int) -> Iterator[str]:
    """A section for each kind of result that some run has."""
    found = [(run, result) for run in runs for result in run.results]
    for kind, title, make in (
        ("probe", "Probes", _probes),
        ("detection", "Detection", _detection),
        ("pretext", "Pretext tasks on unseen videos", _pretext),
        ("tracking", "Tracking", _tracking),
    ):
        chosen = [(run, result) for run, result in found if result.kind == kind]
        if chosen:
            yield f"<h2>{title}</h2>"
            yield _table(make(chosen))
    yield from _pictures_of_probes(found)
    yield from _videos(found, embed_bytes)


def _table(table: Table) -> str:
    head, rows = table
    headings = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    lines = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0"><table class="plain"><thead><tr>{headings}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


Found = Sequence[tuple[RunRecord, Result]]


def _probes(found: Found) -> Table:
    rows: list[Sequence[str]] = []
    for run, result in found:
        record = result.record
        for name, numbers in record["rows"].items():
            rows.append((run.name, record["protocol"], name, *_probe_cells(numbers)))
        chance = record["chance"]
        first = chance.get("top1", chance.get("R@1"))
        rows.append((run.name, record["protocol"], "chance", _percent(first), "", ""))
    return ("run", "protocol", "row", "top-1 or R@1", "95 % interval", "first row's lead"), rows


def _probe_cells(numbers: Mapping[str, Any]) -> tuple[str, str, str]:
    lead = numbers.get("first_row_minus_this")
    said = (
        "" if lead is None else f"{100 * lead[0]:+.1f} [{100 * lead[1]:.1f}, {100 * lead[2]:.1f}]"
    )
    if "top1" in numbers:
        estimate, low, high = numbers["top1"]
        return _percent(estimate), f"{_percent(low)} to {_percent(high)}", said
    if "R@1" in numbers:
        return _percent(numbers["R@1"]), "", said
    shots = [f"{k} {100 * v['mean']:.1f}" for k, v in numbers.items() if k.endswith("-shot") and v]
    return ", ".join(shots), "", said


def _detection(found: Found) -> Table:
    keys = ("AP50", "AP75", "AP")
    rows = [
        (run.name, name, *(_percent(numbers.get(key)) for key in keys))
        for run, result in found
        for name, numbers in result.record["rows"].items()
    ]
    return ("run", "backbone", *keys), rows


def _pretext(found: Found) -> Table:
    rows = []
    for run, result in found:
        for name, task in result.record["tasks"].items():
            if "accuracy" not in task:
                continue
            estimate, low, high = task["accuracy"]
            guess = task.get("chance", task.get("majority"))
            rivals = ", ".join(
                f"{rule} {_percent(rival['accuracy'][0])}"
                for rule, rival in task.get("rivals", {}).items()
            )
            rows.append(
                (
                    run.name,
                    name,
                    _percent(estimate),
                    f"{_percent(low)} to {_percent(high)}",
                    _percent(guess),
                    rivals,
                )
            )
    return ("run", "task", "accuracy", "95 % interval", "chance", "rules without a network"), rows


def _tracking(found: Found) -> Table:
    keys = ("J&F-Mean", "J-Mean", "F-Mean")
    rows = []
    for run, result in found:
        record = result.record
        what = Path(
            str(record.get("davis") or record.get("youtube_vos") or record.get("video"))
        ).name
        what = f"{what} {record.get('split') or ''}".strip()
        for name, row in record["rows"].items():
            scores = row.get("global", {})
            rows.append((run.name, what, name, *(_percent(scores.get(key)) for key in keys)))
    return ("run", "videos", "row", "J&F", "J", "F"), rows


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _pictures_of_probes(found: Found) -> Iterator[str]:
    for run, result in found:
        if result.kind not in ("probe", "detection"):
            continue
        for name in ("confusion.png", "neighbours.png", "boxes.png"):
            path = result.folder / name
            if path.is_file():
                said = html.escape(f"{run.name}, {result.folder.name}: {path.stem}")
                yield (
                    f'<details><summary>{said}</summary><div class="wide"><img class="picture" '
                    f'src="{data_uri(path.read_bytes(), "image/png")}" alt="{said}" loading="lazy"></div></details>'
                )


def _videos(found: Found, embed_bytes: int) -> Iterator[str]:
    """The first videos of each tracking result, as long as there is room."""
    left = embed_bytes
    for run, result in found:
        if result.kind != "tracking":
            continue
        paths = sorted(result.folder.glob("comparison/*.mp4")) or sorted(
            result.folder.glob("overlay/*.mp4")
        )
        shown = []
        for path in paths[:NUM_VIDEOS]:
            size = path.stat().st_size
            if size > left:
                continue
            left -= size
            said = html.escape(f"{run.name}: {path.stem}")
            shown.append(
                f'<figure><video src="{data_uri(path.read_bytes(), "video/mp4")}" aria-label="{said}" muted loop '
                f'playsinline controls preload="metadata"></video><figcaption>{said}</figcaption></figure>'
            )
        if shown:
            yield f'<div class="videos">{"".join(shown)}</div>'
        if len(shown) < len(paths):
            yield (
                f'<p class="muted">{len(shown)} of {len(paths)} videos of {html.escape(run.name)} are shown; all are on the '
                f"page that track wrote, {html.escape(str(result.folder / 'index.html'))}.</p>"
            )
