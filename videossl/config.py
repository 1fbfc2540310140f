"""Every knob on one page: strict models, YAML files and key.path=value overrides.

Unknown keys are errors that name the path and the nearest key; a task's own settings are checked by the task's Config.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from videossl.errors import UserError

FOLDER = (
    Path(__file__).parent / "configs"
)  # those that come with the package, and go by their names


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EncoderSection(Section):
    name: Literal[
        "tiny", "small", "slow_r50", "x3d_s", "csn_r101", "r3d_18", "r2plus1d_18", "s3d"
    ] = "tiny"
    keep_time: bool = Field(
        True, description="temporal stride 1 everywhere: features for each frame"
    )
    max_stride: Literal[4, 8, 16, 32] | None = Field(
        None, description="pixels per cell at most; null: as published"
    )
    frame_wise: bool = Field(
        False, description="temporal kernels 1 frame deep: the architecture's 2D form"
    )
    normalization: Literal["batch", "none"] = Field(
        "batch", description="none: convolutions have a bias instead; for networks of a few layers"
    )
    init: str | None = Field(
        None,
        description="encoder file, checkpoint or run whose weights a new run begins with; null: random",
    )
    colours: Literal["rgb_pytorchvideo", "rgb_torchvision"] | None = Field(
        None, description="that the weights of init read; null: Lab, as all that was trained here"
    )


class DecodeSection(Section):
    backend: Literal["auto", "torchcodec", "pyav", "decord"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: on the GPU where there is one and it is measured to be quicker"
    )


class SamplingRules(Section):
    """Which seconds clips are taken from: clear of the traces of codecs and editors, more often where it moves."""

    skip_ends: bool = Field(True, description="never the first frame, nor the last second or tenth")
    avoid_key_frames: bool = Field(True, description="no clip starts on a key frame")
    avoid_cuts: bool = Field(True, description="no window holds a cut (known after `scan --deep`)")
    weight_motion: bool = Field(True, description="windows where more moves are likelier")


class DataSection(Section):
    manifest: str | None = Field(None, description="written by `videossl scan`")
    short_side: int = Field(144, ge=16, description="pixels: frames are decoded at this size")
    videos_per_step: int = Field(
        8, ge=1, description="global batch: over all processes, before accumulation"
    )
    num_workers: int = Field(
        2, ge=0, description="decoding processes (threads with decode.device=cuda) per rank"
    )
    sampling: SamplingRules = SamplingRules()
    crop_letterbox: bool = Field(
        True, description="leave out black bars (known after `scan --deep`)"
    )
    val_fraction: float = Field(
        0.15, ge=0, lt=1, description="share of source groups never trained on"
    )
    max_bad_fraction: float = Field(
        0.1, ge=0, le=1, description="of samples that had to be replaced before the run stops"
    )
    timeout_seconds: float = Field(
        30,
        gt=0,
        description="for one video before it is replaced, with the process that decodes it",
    )
    worker_memory_gib: float = Field(
        4, gt=0, description="that one video may take of a worker process before it is replaced"
    )


class Augmentation(Section):
    """How strongly clips are varied in training. Shares are of the frame's side, jitters are half ranges."""

    border: float = Field(
        0.04,
        ge=0,
        lt=0.4,
        description="cut on every side, always: letterboxes, overlays and codec padding live there",
    )
    min_scale: float = Field(0.6, gt=0, le=1, description="smallest side of the crop")
    flip: bool = True
    clip_jitter: float = Field(
        0.05, ge=0, lt=0.5, description="of each clip of a video, independently"
    )
    brightness: float = Field(8.0, ge=0, description="in units of L")
    contrast: float = Field(0.2, ge=0, lt=1)
    saturation: float = Field(0.2, ge=0, lt=1)
    hue_degrees: float = Field(8.0, ge=0, le=180)


class OptimSection(Section):
    lr: float = Field(1e-3, gt=0, description="peak; not scaled by the batch")
    weight_decay: float = Field(1e-4, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = Field(50, ge=0)
    final_lr_share: float = Field(
        0.0, ge=0, le=1, description="of the peak, at the end of the cosine"
    )
    clip_norm: float = Field(5.0, gt=0)


class TrainSection(Section):
    steps: int = Field(300, ge=1)
    accumulate: int = Field(1, ge=1, description="batches per optimiser step")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 on GPUs, fp32 on CPUs"
    )
    task_weights: Literal["fixed", "learned"] = Field(
        "fixed",
        description="learned: each task's weight times its learned certainty (Kendall 2018)",
    )
    channels_last: bool | None = Field(
        None, description="memory order of the encoder; null: channels_last_3d on GPUs"
    )
    compile: bool = Field(False, description="torch.compile of the encoder")
    sync_batchnorm: bool = Field(False, description="share batch statistics over processes")
    log_every: int = Field(10, ge=1)
    save_every: int = Field(100, ge=1)
    keep_checkpoints: int = Field(2, ge=1, description="the newest ones; the best is kept beside")
    best_metric: str | None = Field(
        None,
        description="whose best checkpoint is kept: val/arrow_of_time/accuracy, knn/accuracy, tracking/J&F-Mean",
    )
    non_finite: Literal["skip", "abort"] = Field(
        "skip", description="what to do with a step whose loss or gradient is not finite"
    )
    eval_every: int = Field(100, ge=1)
    eval_batches: int = Field(8, ge=1, description="of videos_per_step held-out clips each")
    watchdog_seconds: float = Field(
        300,
        gt=0,
        description="without progress before a run names the rank that stands still and ends",
    )
    threads_per_process: int | None = Field(
        None, ge=1, description="of torch on CPUs; null: cores / processes"
    )


class KnnSection(Section):
    manifest: str | None = Field(None, description="with labels; null: no kNN while training")
    every: int = Field(500, ge=1, description="steps")
    num_frames: int = Field(8, ge=1)
    seconds_between_frames: float = Field(2 / 15, gt=0)
    neighbours: int = Field(20, ge=1)
    temperature: float = Field(0.07, gt=0)


class TrackingSection(Section):
    davis: str | None = Field(None, description="root of a DAVIS tree; null: no tracking")
    every: int = Field(500, ge=1, description="steps")
    split: str = "val"
    sequences: tuple[str, ...] | None = Field(None, description="only these of the split")
    max_frames: int | None = Field(25, ge=3, description="of each sequence; null: all")


class MonitorSection(Section):
    gradients_every: int = Field(
        100, ge=0, description="steps between measurements of each task's gradient; 0: never"
    )
    pictures: bool = Field(True, description="what tasks see and answer, in TensorBoard")
    knn: KnnSection = KnnSection()
    tracking: TrackingSection = TrackingSection()


class Config(Section):
    out: str = Field(description="folder of the run")
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    encoder: EncoderSection = EncoderSection()
    decode: DecodeSection = DecodeSection()
    data: DataSection = DataSection()
    augment: Augmentation = Augmentation()
    tasks: dict[str, dict[str, Any]] = Field(
        min_length=1, description="task name: its own settings"
    )
    optim: OptimSection = OptimSection()
    train: TrainSection = TrainSection()
    monitor: MonitorSection = MonitorSection()


MAX_DEPTH = 50  # of a config's sections and lists; chosen

Model = TypeVar("Model", bound=BaseModel)

# Settings that had another name when runs were begun that may still go on; `*` is any task.
RENAMED = {
    "data.holdout_fraction": "val_fraction",
    "data.cut_bars": "crop_letterbox",
    "augment.clip_shift": "clip_jitter",
    "train.evaluate_every": "eval_every",
    "train.evaluate_batches": "eval_batches",
    "tasks.*.frame_shift": "frame_jitter",
    "tasks.*.crop_shift": "clip_jitter",
    "tasks.*.hidden": "hidden_dim",
    "tasks.*.embedding": "embed_dim",
    "tasks.*.queue": "queue_size",
}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """A config, by its file or the name of one that comes with the package, with `key.path=value` overrides applied.

    Raises UserError naming path, value and remedy.
    """
    return validate(Config, with_overrides(read_yaml(config_file(path)), overrides))


def config_file(given: str | Path) -> Path:
    """The file as given, or the one of the package for a name such as `real_small`. Raises UserError if neither is there."""
    path = Path(given)
    packaged = FOLDER / f"{given}.yaml"
    if path.is_file() or path.parent != Path() or path.suffix:
        return path
    if packaged.is_file():
        return packaged
    names = sorted(file.stem for file in FOLDER.glob("*.yaml"))
    near = difflib.get_close_matches(str(given), names, n=1)
    hint = f"did you mean {near[0]!r}? There are" if near else "give a file, or one of"
    raise UserError(f"no config {str(given)!r}; {hint} {', '.join(names)}")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping of a YAML file; raises UserError if it is missing or is none."""
    try:
        values = _parsed(Path(path).read_bytes())  # which heeds a byte-order mark
    except OSError as error:
        raise UserError(f"config {path} cannot be read: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeError) as error:
        raise UserError(f"config {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(
            f"config {path} must hold sections such as `tasks:`, got {type(values).__name__}"
        )
    return values


def _parsed(text: str | bytes) -> Any:
    """The value of a YAML text. Raises YAMLError, also for one that is nested beyond MAX_DEPTH."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:  # Python would run out of its stack
            raise yaml.YAMLError(f"it is nested more than {MAX_DEPTH} deep")
    return yaml.safe_load(text)


def with_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `values` with each `key.path=value` set, values read as YAML (`tasks.x=null` removes the task x)."""
    result: dict[str, Any] = yaml.safe_load(yaml.safe_dump(dict(values)))
    for override in overrides:
        path, separator, text = override.partition("=")
        if not separator or not path:
            raise UserError(
                f"override {override!r} must be key.path=value, for example train.steps=100"
            )
        *parents, leaf = _keys(path, result)
        section = result
        for parent in parents:
            if section.get(parent) is None:
                section[parent] = {}
            section = section[parent]
            if not isinstance(section, dict):
                raise UserError(f"override {override!r}: {parent} is a value, not a section")
        try:
            value = _parsed(text)
        except yaml.YAMLError as error:
            cause = " ".join(str(error).split())
            raise UserError(
                f"override {override!r} has a value that is not YAML: {cause}"
            ) from None
        if parents == ["tasks"] and value is None:
            section.pop(leaf, None)
        else:
            section[leaf] = value
    return result


def _keys(path: str, values: Mapping[str, Any]) -> list[str]:
    """The parts of a path; the dotted name of a task that is there already is one of them."""
    section, _, rest = path.partition(".")
    tasks = values.get("tasks")
    if section == "tasks" and isinstance(tasks, dict):
        for name in filter(lambda name: "." in str(name), tasks):
            if rest == name or rest.startswith(f"{name}."):
                return [section, name, *filter(None, rest.removeprefix(name).split("."))]
    return path.split(".")


def validate(model: type[Model], values: Mapping[str, Any], path: str = "") -> Model:
    """`model` of these values; raises a UserError of one line that names the first bad path.to.key, what was got, what is
    allowed, and for an unknown key the nearest one."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(model, error, path)) from error


def _explain(model: type[BaseModel], error: ValidationError, path: str) -> str:
    details = error.errors()
    first = details[0]
    location = [str(part) for part in first["loc"]]
    key = ".".join([path, *location] if path else location)
    if first["type"] == "extra_forbidden":
        text = f"{key} is not a setting; {_hint(model, location, path)}"
    elif first["type"] == "missing":
        text = f"{key} is not set and has no default; pass {key}=... or write it into the config"
    else:
        text = f"{key}: got {first['input']!r}; {first['msg'][:1].lower()}{first['msg'][1:]}"
    return text + (f" (and {len(details) - 1} more)" if len(details) > 1 else "")


def saved_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """The config that an earlier run has written down, with the names that its settings have now."""
    return {
        section: _with_new_names(section, value) if isinstance(value, Mapping) else value
        for section, value in values.items()
    }


def _with_new_names(path: str, values: Mapping[str, Any]) -> dict[str, Any]:
    result = {}
    for key, value in values.items():
        name = _new_name(f"{path}.{key}") or key
        is_task = path == "tasks" and isinstance(value, Mapping)
        result[name] = _with_new_names(f"{path}.{key}", value) if is_task else value
    if path == "train" and str(result.get("best_metric")).startswith("heldout/"):
        result["best_metric"] = str(result["best_metric"]).replace("heldout/", "val/", 1)
    return result


def _new_name(key: str) -> str | None:
    section, _, name = key.rpartition(".")
    is_of_task = section.startswith("tasks.")
    return RENAMED.get(f"tasks.*.{name}" if is_of_task else key)


def _hint(model: type[BaseModel], location: Sequence[str], path: str) -> str:
    """The setting that a wrong key was meant to be: of its own section, or of the same name in another one."""
    section = _section_at(model, location[:-1])
    prefix = [path] * bool(path) + list(location[:-1])
    keys = {name: ".".join([*prefix, name]) for name in section.model_fields}
    near = difflib.get_close_matches(location[-1], keys, n=1)
    elsewhere = [key for key in _dotted(model, path) if key.rpartition(".")[2] == location[-1]]
    if new := _new_name(".".join([*prefix, location[-1]])):
        return f"it is called {'.'.join([*prefix, new])}"
    if elsewhere:
        return f"did you mean {' or '.join(elsewhere)}?"
    return f"did you mean {keys[near[0]]}?" if near else f"allowed: {', '.join(sorted(keys))}"


def _dotted(model: type[BaseModel], path: str) -> list[str]:
    """The keys of all settings, sections within sections too."""
    keys = []
    for name, field in model.model_fields.items():
        key = f"{path}.{name}" if path else name
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            keys += _dotted(section, key)
        else:
            keys.append(key)
    return keys


def _section_at(model: type[BaseModel], location: Sequence[str]) -> type[BaseModel]:
    for part in location:
        annotation = model.model_fields[part].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return model


def setting_lines(model: type[BaseModel], prefix: str = "") -> list[str]:
    """A line for each key: how it is written on the command line, its default, its meaning and what it may be."""
    rows = list(_rows(model, prefix))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return [
        f"{key:{widths[0]}}  {default:{widths[1]}}  {meaning}".rstrip()
        for key, default, meaning in rows
    ]


def _rows(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in model.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield from _rows(section, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _default(field), _meaning(field)


def _default(field: FieldInfo) -> str:
    """As YAML writes it."""
    if field.is_required():
        return "(required)"
    value = field.get_default(call_default_factory=True)
    plain: Any = list(value) if isinstance(value, tuple) else value
    if isinstance(plain, BaseModel):
        plain = plain.model_dump(mode="json")
    text = yaml.safe_dump(plain, default_flow_style=True, width=1000)
    return text.removesuffix("\n").removesuffix("\n...")


def _meaning(field: FieldInfo) -> str:
    choices = _choices(field.annotation)
    shown = f"one of {', '.join(map(str, choices))}" if choices else ""
    return "; ".join(part for part in (field.description, shown) if part)


def _choices(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(choice for part in get_args(annotation) for choice in _choices(part))
