"""What a run's folder tells: config, environment, numbers over steps, the latest pictures, and results found beside them."""

import json
import logging
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from videossl.config import read_yaml
from videossl.errors import UserError

log = logging.getLogger("videossl")

RESULT_DEPTH = 3  # folders below a run that are searched for results


@dataclass(frozen=True)
class Picture:
    """The latest picture of a name: PNG bytes, and the step it shows."""

    tag: str
    step: int
    png: bytes


@dataclass(frozen=True)
class Result:
    """One result.json, and the folder it lies in."""

    folder: Path
    record: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """probe, detection, tracking, pretext, or other."""
        keys = self.record.keys()
        if "protocol" in keys and "chance" in keys:
            return "probe"
        if "rows" in keys and "voc" in keys:
            return "detection"
        if "rows" in keys and keys & {"davis", "video", "youtube_vos"}:
            return "tracking"
        return "pretext" if "tasks" in keys else "other"


@dataclass(frozen=True)
class RunRecord:
    """A run as far as it got."""

    name: str
    folder: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    metrics: list[dict[str, Any]]
    pictures: list[Picture] = field(default_factory=list)
    training_seconds: float | None = None
    results: list[Result] = field(default_factory=list)

    @property
    def last_step(self) -> int:
        """0 where nothing was logged."""
        return max((int(line["step"]) for line in self.metrics), default=0)


def read_run(folder: Path) -> RunRecord:
    """A run's folder. Raises UserError if it holds no run; what is missing or damaged in it is said once and left out."""
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"{folder} holds no run: it has no config.yaml; give folders that `train` wrote"
        )
    pictures, seconds = _read_events(folder / "tb")
    return RunRecord(
        name=folder.resolve().name,
        folder=folder,
        config=read_yaml(folder / "config.yaml"),
        environment=_read_json(folder / "env.json") or {},
        metrics=list(_read_lines(folder / "metrics.jsonl")),
        pictures=pictures,
        training_seconds=seconds,
        results=find_results(folder),
    )


def find_results(folder: Path) -> list[Result]:
    """Every result.json in the folder and RESULT_DEPTH levels below, sorted by path."""
    paths = sorted(
        path
        for depth in range(RESULT_DEPTH + 1)
        for path in folder.glob("*/" * depth + "result.json")
    )
    records = ((path, _read_json(path)) for path in paths)
    return [Result(path.parent, record) for path, record in records if isinstance(record, dict)]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("%s is left out: %s", path, error)
        return None


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a metrics file; the last may be cut off by a kill."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        log.warning("%s cannot be read: %s", path, error.strerror)
        return
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            yield record


def _read_events(folder: Path) -> tuple[list[Picture], float | None]:
    """The latest picture of each tag, and the seconds between the first and the last event of each file, added up."""
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    latest: dict[str, Picture] = {}
    seconds = 0.0
    for path in sorted(folder.glob("events.out.tfevents.*")):
        times = []
        try:
            for record in _records(path.read_bytes()):
                event = Event.FromString(record)
                times.append(event.wall_time)
                for value in event.summary.value:
                    if value.WhichOneof("value") == "image":
                        png = value.image.encoded_image_string
                        latest[value.tag] = Picture(value.tag, event.step, png)
        except (OSError, DecodeError) as error:
            log.warning("%s is read as far as it goes: %s", path, error)
        seconds += max(times, default=0) - min(times, default=0)
    return [latest[tag] for tag in sorted(latest)], seconds or None


def _records(data: bytes) -> Iterator[bytes]:
    """TFRecord framing: length, its checksum, the record, its checksum; a cut last record ends it."""
    place = 0
    while place + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        if place + 16 + length > len(data):
            return
        yield data[place + 12 : place + 12 + length]
        place += 16 + length
