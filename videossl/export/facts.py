"""The facts of an encoder's making: read from its checkpoint, its run's folder and its manifest; none is guessed.

Plain types that go into every exported file and from there into the model card. What is not known is None.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from videossl.data.table import read_manifest
from videossl.errors import UserError
from videossl.export.download import file_sha256, public_url
from videossl.export.loading import Loaded
from videossl.models.encoder_sources import checkpoints
from videossl.text_files import json_lines

log = logging.getLogger("videossl")

# Settings that name places on the machine of the run: the last part of each is published, the way there is not.
_PLACES = (
    ("out",),
    ("encoder", "init"),
    ("data", "manifest"),
    ("monitor", "knn", "manifest"),
    ("monitor", "tracking", "davis"),
)
# What a run measures, by its key in the lines of metrics.jsonl.
_MEASURED = {
    "heldout": "pretext tasks on videos held out from training",
    "knn": "nearest neighbours on labelled videos, while training",
    "tracking": "mask propagation on the first frames of sequences, while training",
}


MOST_DEPTH = 32  # of facts; chosen: far above any config, far below what JSON and YAML writers bear


def facts_of(loaded: Loaded) -> dict[str, Any]:
    """Those of a run's checkpoint; those that an exported file or imported weights carry already are handed on.

    Raises UserError for a file's facts that no version of this library has written.
    """
    if "facts" in loaded.contents:
        facts = dict(loaded.contents["facts"])
        _check(facts)
        return facts
    config, step = loaded.contents.get("config") or None, loaded.contents.get("step")
    run = _run_folder(loaded.path)
    return {
        "kind": "run",
        "checkpoint": loaded.path.name,
        "checkpoint_sha256": file_sha256(loaded.path),
        "step": step,
        "config": None if config is None else _published(config),
        "data": None if config is None else _data(config),
        "environment": _json(run / "env.json") if run else None,
        "measured": _measured(run / "metrics.jsonl", step) if run and step is not None else [],
    }


def _check(facts: Mapping[str, Any]) -> None:
    measured, licence = facts.get("measured") or [], facts.get("licence")
    if not isinstance(measured, list) or not all(isinstance(one, dict) for one in measured):
        raise UserError("the facts in the encoder's file are none: 'measured' is no list of tables")
    if not isinstance(licence, str | None):
        raise UserError("the facts in the encoder's file are none: 'licence' is no text")
    level: list[Any] = [facts]
    for _ in range(MOST_DEPTH):
        lists = [value for value in level if isinstance(value, list)]
        level = [v for value in level if isinstance(value, dict) for v in value.values()]
        level += [v for value in lists for v in value]
    if level:
        raise UserError(
            f"the facts in the encoder's file are none: nested more than {MOST_DEPTH} deep"
        )


def date_of(path: Path) -> str:
    """The day a file was last changed, in UTC."""
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%Y-%m-%d")


def _run_folder(checkpoint: Path) -> Path | None:
    folder = checkpoint.absolute().parent
    is_runs = folder.name == "checkpoints" and checkpoint in [
        *checkpoints(checkpoint.parent),
        checkpoint.parent / "best.pt",
    ]
    return folder.parent if is_runs and (folder.parent / "config.yaml").is_file() else None


def _published(config: Mapping[str, Any]) -> dict[str, Any]:
    copy: dict[str, Any] = _without_secrets(json.loads(json.dumps(config)))
    for *sections, key in _PLACES:
        section: Any = copy
        for name in sections:
            section = section.get(name) or {}
        if section.get(key) is not None:
            section[key] = Path(section[key]).name
    return copy


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_secrets(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_secrets(inner) for inner in value]
    return public_url(value) if isinstance(value, str) else value


def _data(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The manifest as it is today, if it is still where the run had it."""
    place = config["data"]["manifest"]
    if place is None:
        return None
    path = Path(place)
    found: dict[str, Any] = {"manifest": Path(public_url(place)).name, "videos": None}
    try:
        manifest = read_manifest(path)
        sound = [entry for entry in manifest if entry.is_ok]
    except UserError as error:
        log.info("the card cannot say how much data there was: %s", error)
        return found
    return {
        **found,
        "videos": len(sound),
        "sources": len({entry.group for entry in sound}),
        "hours": sum(entry.duration_seconds for entry in sound) / 3600,
        "as_of": date_of(path),
    }


def _measured(path: Path, step: int) -> list[dict[str, Any]]:
    """The last line of each kind that was measured of these weights or of earlier ones, with its step."""
    last: dict[str, dict[str, Any]] = {}
    for record in _json_lines(path):
        for name, what in _MEASURED.items():
            if name in record and record["step"] <= step:
                rows = record[name] if name == "heldout" else {name: record[name]}
                last[name] = {"kind": name, "what": f"{what}, step {record['step']}", "rows": rows}
    origin = {"source": path.name, "date": date_of(path) if last else None}
    return [{**found, **origin} for found in last.values()]


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    for record in json_lines(path):
        if isinstance(record.get("step"), int):
            yield record


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        log.info("%s cannot be read: %s", path, error)
        return None
