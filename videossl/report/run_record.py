"""What a run's folder tells: config, environment, numbers over steps, the latest pictures, and results found beside them."""

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from videossl.config import read_yaml
from videossl.errors import UserError
from videossl.report.results import Result, checked, read_json, read_results, result_paths
from videossl.text_files import json_lines

log = logging.getLogger("videossl")

MOST_STEPS = 10**15  # chosen: no run gets there, and each is a number that a plot can hold


@dataclass(frozen=True)
class Picture:
    """The latest picture of a name: PNG bytes, and the step it shows."""

    tag: str
    step: int
    png: bytes


class Environment(BaseModel):
    """Of env.json, what the page's first table shows; the rest stands below it as it is."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    gpus: list[str] = []
    processor: str | None = None
    packages: dict[str, str | None] = {}
    videossl: str | None = None
    revision: str | None = None


class _Sections(BaseModel):
    """Of a config, what the page looks into."""

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
