"""The result.json files of probe, detect, pretext-eval and track, each held to its form when it is read."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from videossl.errors import UserError
from videossl.io.input_files import is_system_leftover
from videossl.stats import ENOUGH_VIDEOS

log = logging.getLogger("videossl")

RESULT_DEPTH = 3  # folders below a run that are searched for results

Triple = Annotated[list[float], Field(min_length=3, max_length=3)]  # estimate, low, high
Form = TypeVar("Form", bound=BaseModel)


class Record(BaseModel):
    """What any result may say: which checkpoint it is of. What a report does not show is not looked at."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    checkpoint: str | None = None
    checkpoint_sha256: str | None = None


class Spread(Record):
    """Over the seeds of a few-shot row."""

    mean: float
    std: float


class ProbeRow(Record):
    """One representation under a protocol; `shots` are the fields named `<k>-shot`, None for too few videos."""

    top1: Triple | None = None
    recall: float | None = Field(None, alias="R@1")
    lead: Triple | None = Field(None, alias="first_row_minus_this")
    shots: dict[str, Spread | None] = {}

    @model_validator(mode="before")
    @classmethod
    def _gather_shots(cls, row: Any) -> Any:
        if not isinstance(row, dict):
            return row
        return {**row, "shots": {key: row[key] for key in row if str(key).endswith("-shot")}}


class Probe(Record):
    """A result of `videossl probe`."""

    protocol: str
    chance: dict[str, float]
    rows: dict[str, ProbeRow]


class DetectionRow(Record):
    """Average precision of one detector."""

    AP: float | None = None
    AP50: float | None = None
    AP75: float | None = None


class Detection(Record):
    """A result of `videossl detect`."""

    rows: dict[str, DetectionRow]


class TaskBaseline(Record):
    """A rule without a network."""

    accuracy: Triple


class PretextTask(Record):
    """One task on unseen videos; a task without answers has no accuracy."""

    accuracy: Triple | None = None
    chance: float | None = None
    majority: float | None = None
    num_videos: int = ENOUGH_VIDEOS
    baselines: dict[str, TaskBaseline] = {}


class Pretext(Record):
    """A result of `videossl pretext-eval`."""

    tasks: dict[str, PretextTask]


class TrackingRow(Record):
    """Means over all objects, where masks are known."""

    scores: dict[str, float | None] = Field({}, alias="global")


class Tracking(Record):
    """A result of `videossl track` or `score`."""

    features: str | None = None  # given in place of a checkpoint
    main_row: str | None = None  # what the encoder under test is called

    davis: str | None = None
    youtube_vos: str | None = None
    video: str | None = None
    split: str | None = None
    rows: dict[str, TrackingRow]


@dataclass(frozen=True)
class Result:
    """One result.json and the folder it lies in; `mark` says of which checkpoint it is where that is not the run's.

    `encoder` is the name of one that is no run's: the shipped one, or features from elsewhere.
    """

    folder: Path
    record: Record
    mark: str = ""
    encoder: str = ""


def result_paths(folder: Path) -> list[Path]:
    """Every result.json in the folder and RESULT_DEPTH levels below, sorted."""
    return sorted(
        path
        for depth in range(RESULT_DEPTH + 1)
        for path in folder.glob("*/" * depth + "result.json")
        if not any(map(is_system_leftover, path.relative_to(folder).parts))
    )


def read_results(paths: Sequence[Path]) -> list[Result]:
    """Those that can be read; what is wrong with another is said once, and it is left out."""
    records = [(path, read_json(path, _form)) for path in paths]
    return [Result(path.parent, record) for path, record in records if record is not None]


def read_json(path: Path, form: Callable[[dict[str, Any]], Form]) -> Form | None:
    """A JSON file held to a form; None for one that is missing, and, said once, for one that is damaged or has another."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise UserError(f"it holds no record but a {type(values).__name__}")
        return form(values)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        log.warning("%s is left out: %s", path, error)
        return None


def checked(form: type[Form], values: Mapping[str, Any]) -> Form:
    """The values in this form. Raises UserError that names the first that does not fit."""
    try:
        return form.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{place} does not fit: {first['msg']}") from error


def _form(values: dict[str, Any]) -> Record:
    keys = values.keys()
    form: type[Record] = Record
    if {"protocol", "chance"} <= keys:
        form = Probe
    elif {"rows", "voc"} <= keys:
        form = Detection
    elif "rows" in keys and keys & {"davis", "video", "youtube_vos"}:
        form = Tracking
    elif "tasks" in keys:
        form = Pretext
    return checked(form, values)
