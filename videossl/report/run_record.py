"""What a run's folder tells: config, environment, numbers over steps, the latest pictures, and results found beside them."""

import hashlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from videossl.config import read_yaml
from videossl.errors import UserError
from videossl.io.input_files import json_lines
from videossl.models.encoder_sources import SHIPPED
from videossl.report.run_results import (
    Result,
    Tracking,
    checked,
    read_json,
    read_results,
    result_paths,
)

log = logging.getLogger("videossl")

MOST_STEPS = 10**15  # chosen: no run gets there, and each is a number that a plot can hold


@dataclass(frozen=True)
class Picture:
    """The latest picture of a name: PNG bytes, and the step it shows."""

    tag: str
    step: int
    png: bytes


class Environment(BaseModel):
    """What the page's first table shows of env.json; the rest stands below it as it is."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    gpus: list[str] = []
    processor: str | None = None
    packages: dict[str, str | None] = {}
    videossl: str | None = None
    revision: str | None = None


class _Sections(BaseModel):
    """The part of a config that the page looks into."""

    model_config = ConfigDict(strict=True, extra="allow")

    tasks: dict[str, Any] = {}
    train: dict[str, Any] = {}


@dataclass(frozen=True)
class RunRecord:
    """A run as far as it got."""

    name: str
    folder: Path
    config: Mapping[str, Any]
    environment: Environment
    metrics: list[dict[str, Any]]
    pictures: list[Picture] = field(default_factory=list)
    training_seconds: float | None = None
    results: list[Result] = field(default_factory=list)

    @property
    def last_step(self) -> int:
        """0 where nothing was logged."""
        return max((int(line["step"]) for line in self.metrics), default=0)


def read_run(folder: Path) -> RunRecord:
    """A run's folder, with the results below it. Raises UserError if it holds no run.

    What is missing or damaged in it is said once and left out.
    """
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"{folder} holds no run: it has no config.yaml; give folders that `train` wrote"
        )
    pictures, seconds = _read_events(folder / "tb")
    return RunRecord(
        name=folder.resolve().name,
        folder=folder,
        config=_read_config(folder / "config.yaml"),
        environment=read_json(folder / "env.json", partial(checked, Environment)) or Environment(),
        metrics=list(_read_lines(folder / "metrics.jsonl")),
        pictures=pictures,
        training_seconds=seconds,
        results=read_results(result_paths(folder)),
    )


def _read_config(path: Path) -> dict[str, Any]:
    """The config, {} for one whose sections are none: the page then shows no settings."""
    values = read_yaml(path)
    try:
        checked(_Sections, values)
    except UserError as error:
        log.warning("%s is left out: %s", path, error)
        return {}
    return values


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a metrics file; the last may be cut off by a kill."""
    try:
        for record in json_lines(path):
            step = record.get("step")
            if isinstance(step, int) and 0 <= step <= MOST_STEPS:
                yield record
    except OSError as error:
        log.warning("%s cannot be read: %s", path, error.strerror)


def _read_events(folder: Path) -> tuple[list[Picture], float | None]:
    """The latest picture of each tag, and the seconds between the first and the last event of each file, added up."""
    from google.protobuf.message import DecodeError
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    latest: dict[str, Picture] = {}
    seconds = 0.0
    for path in sorted(folder.glob("events.out.tfevents.*")):
        times = []
        try:
            # Up to the first record that is cut off or whose checksum is wrong.
            for record in RawEventFileLoader(str(path)).Load():
                event = Event.FromString(record)
                if math.isfinite(event.wall_time):
                    times.append(event.wall_time)
                for value in event.summary.value:
                    if value.WhichOneof("value") == "image":
                        png = value.image.encoded_image_string
                        latest[value.tag] = Picture(value.tag, event.step, png)
        except (OSError, DecodeError) as error:
            log.warning("%s is read as far as it goes: %s", path, error)
        seconds += max(times, default=0) - min(times, default=0)
    return [latest[tag] for tag in sorted(latest)], seconds or None


EXPORTED = ".safetensors"  # an encoder's own file may lie anywhere, and says nothing of its run


def own_results(run: RunRecord, runs: Sequence[RunRecord]) -> list[Result]:
    """The results found below one of the runs, without those that are of another run, which are said once."""
    kept = []
    for result in run.results:
        if other := _other_run(result, run, runs):
            path = result.folder / "result.json"
            log.warning(
                "%s is left out: it lies in the run %s but is of %s", path, run.folder, other
            )
        else:
            kept.append(result)
    return kept


def owner_of(result: Result, runs: Sequence[RunRecord]) -> tuple[RunRecord, Result]:
    """The run that a result from elsewhere is of, and the result, marked with its checkpoint where that is not certain.

    One of an encoder that can be no run's is shown beside the first run, under its own name.
    Raises UserError if it is of none of the runs, or if its run cannot be told and there are several.
    """
    named = result.record.checkpoint
    for run in runs:
        if _is_of_checkpoint(result, run) or run.folder.resolve() in _runs_named(result):
            return run, result
    if encoder := _named_encoder(result):
        return runs[0], replace(result, encoder=encoder)
    if named is not None and (_runs_named(result) or not named.endswith(EXPORTED)):
        raise UserError(
            f"{result.folder} is of {named}, which is none of the runs: give that run too"
        )
    if len(runs) > 1:
        raise UserError(
            f"{result.folder} is of {named or 'a checkpoint that it does not name'}, and of which run that is cannot be "
            "told: report it with its run alone"
        )
    return runs[0], replace(result, mark=Path(named).name if named else "checkpoint not named")


def _named_encoder(result: Result) -> str:
    """The shipped encoder that a result is of, or the features that were given for it; else empty."""
    record = result.record
    if record.checkpoint in SHIPPED:
        return str(record.checkpoint)
    if isinstance(record, Tracking) and record.checkpoint is None and record.features is not None:
        return record.main_row or record.features
    return ""


def _other_run(result: Result, run: RunRecord, runs: Sequence[RunRecord]) -> Path | None:
    named = _runs_named(result)
    if run.folder.resolve() in named or _is_of_checkpoint(result, run):
        return None
    proved = [one.folder for one in runs if _is_of_checkpoint(result, one)]
    return next(iter(proved + named), None)


def _is_of_checkpoint(result: Result, run: RunRecord) -> bool:
    digest = result.record.checkpoint_sha256
    paths = sorted(run.folder.glob("checkpoints/*.pt")) if digest else []
    return any(_sha256(path.resolve()) == digest for path in paths)


@cache
def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        log.warning("%s cannot be read, so that no result is known by it: %s", path, error.strerror)
        return ""


def _runs_named(result: Result) -> list[Path]:
    """The folders of runs that the checkpoint's path leads into, from the working folder and from all above the result."""
    named = result.record.checkpoint
    folder = result.folder.resolve()
    bases = [Path.cwd(), folder, *folder.parents] if named else []
    found = [run for base in bases if (run := _run_of(base / str(named)))]
    return list(dict.fromkeys(found))


def _run_of(checkpoint: Path) -> Path | None:
    """The run that a checkpoint lies in; it may be one that the run has dropped since."""
    try:
        path = checkpoint.resolve()
        is_there = path.exists() or (path.parent.name == "checkpoints" and path.parent.is_dir())
    except (OSError, ValueError):  # a name that can be none of a file
        return None
    inside = (path, *path.parents) if is_there else ()
    return next((above for above in inside if _is_run(above)), None)


def _is_run(folder: Path) -> bool:
    """A config.yaml alone may be one to train with, in a folder of the user's."""
    has_run = (folder / "checkpoints").is_dir() or (folder / "env.json").is_file()
    return has_run and (folder / "config.yaml").is_file()


ABSENT = "not set"


def differing_settings(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """{dotted key: value of each config, as text}, sorted; keys of one value everywhere are left out."""
    flat = [dict(_flatten(config, "")) for config in configs]
    keys = sorted(set().union(*flat))
    rows = {key: [one.get(key, ABSENT) for one in flat] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def _flatten(value: Any, path: str) -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        return [
            pair
            for key, inner in value.items()
            for pair in _flatten(inner, f"{path}.{key}" if path else str(key))
        ]
    return [(path, str(value))]
