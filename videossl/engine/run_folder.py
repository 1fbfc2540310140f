"""The folder of a run: made once, resumed when the config agrees, refused with the options spelled out when not.

What takes torch is imported where it is used, so that a folder can be refused before torch is loaded.
"""

import logging
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from videossl.config import Config, read_yaml, saved_config
from videossl.errors import UserError
from videossl.io.output_files import is_lock, is_unfinished, write_json, write_text, writing
from videossl.models.encoder_sources import checkpoints, step_of
from videossl.version import __version__

log = logging.getLogger("videossl")

# What may change between a run and its continuation without changing what is learned. `steps` is not among them: the
# learning rate depends on it. But a run that is finished may be extended, which changes nothing that has been learned.
FREE_KEYS = (
    ("out",),
    ("device",),
    ("decode", "backend"),
    ("decode", "device"),
    ("data", "num_workers"),
    ("data", "timeout_seconds"),
    ("data", "worker_memory_gib"),
    ("data", "max_bad_fraction"),
    ("train", "log_every"),
    ("train", "save_every"),
    ("train", "keep_checkpoints"),
    ("train", "best_metric"),
    ("train", "non_finite"),
    ("train", "watchdog_seconds"),
    ("train", "eval_every"),
    ("train", "eval_batches"),
    ("train", "threads_per_process"),
    ("monitor",),  # looks, and changes nothing
)
STEPS = ("train", "steps")
CONFIG_NAME = "config.yaml"
PACKAGES = ("torch", "torchvision", "torchcodec", "av", "decord", "pytorchvideo", "numpy")


def open_run_folder(config: Config, *, is_main: bool) -> None:
    """Makes the run's folder, or takes one whose config agrees; every rank must call it, the main one writes.

    A finished run that is extended, by a greater `train.steps` alone, has it in its config from then on.

    Raises UserError if the folder holds something else, saying which setting differs and what can be done.
    """
    from videossl.distributed import barrier

    check_run_folder(config)
    barrier()  # no rank looks at what the main one is making
    out = Path(config.out)
    if is_main:
        _make(out, config)
    barrier()  # no rank writes before the folder is there


def check_run_folder(config: Config) -> None:
    """Raises UserError where `open_run_folder` would; writes nothing."""
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"out={out} is a file: name a folder")
    existing = out / CONFIG_NAME
    if existing.exists():
        _refuse_other_config(out, config, saved_config(read_yaml(existing)))
    elif out.exists() and not all(is_unfinished(path) or is_lock(path) for path in out.iterdir()):
        raise UserError(f"out={out} is not empty and holds no run: name a new folder, or empty it")


def _make(out: Path, config: Config) -> None:
    """The config is the first to be there, whole: without it the folder is no run's, and is refused."""
    from videossl.engine.build import scheduled_lr
    from videossl.engine.checkpoint import drop_unfinished

    if not (out / CONFIG_NAME).exists():
        _write_config(out, config)
        write_json(out / "env.json", environment())
    elif (
        steps := _at(_with_new_settings(saved_config(read_yaml(out / CONFIG_NAME))), STEPS)
    ) != config.train.steps:
        log.info(
            "extending a finished run from %d to %d steps: from here on the learning rate is that of a run of %d steps, "
            "%.2g after %.2g",
            *(steps, config.train.steps, config.train.steps),
            scheduled_lr(config, steps),
            scheduled_lr(config, steps - 1, total_steps=steps),
        )
        _write_config(out, config)
    with writing(out):
        (out / "checkpoints").mkdir(exist_ok=True)
        drop_unfinished(out / "checkpoints")
        for left in filter(is_unfinished, out.iterdir()):
            left.unlink()


def _write_config(out: Path, config: Config) -> None:
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    write_text(out / CONFIG_NAME, text)


def _extends(out: Path, saved: int, asked: int) -> bool:
    """Whether a run of `saved` steps has come to its end and is to go on."""
    done = checkpoints(out / "checkpoints")
    return bool(done) and step_of(done[-1]) >= saved < asked


def _refuse_other_config(out: Path, config: Config, written: dict[str, Any]) -> None:
    current = config.model_dump(mode="json")
    saved = _with_new_settings(written)
    differing = [
        f"{'.'.join(path)} was {_at(saved, path)!r}, is {_at(current, path)!r}"
        for path in sorted({*_paths(saved), *_paths(current)})
        if not any(path[: len(free)] == free for free in FREE_KEYS)
        and _at(saved, path) != _at(current, path)
        and not (path == STEPS and _extends(out, _at(saved, path), config.train.steps))
    ]
    if differing:
        is_early = any(line.startswith("train.steps ") for line in differing)
        hint = "; train.steps alone can be raised once the run is finished" if is_early else ""
        shown = "; ".join(differing[:3]) + (
            f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
        )
        raise UserError(
            f"out={out} holds a run with another config ({shown}): name a new folder with out=..., or delete this one "
            "to start again, or take its config.yaml to resume it"
            f"{hint}"
        )


def _with_new_settings(written: dict[str, Any]) -> dict[str, Any]:
    """A run's config with the settings that came to the library after it began: it had what is now their default."""
    try:
        return Config.model_validate(written).model_dump(mode="json")
    except ValidationError:  # a setting went since: it will be named as one that differs
        return written


def _paths(values: dict[str, Any], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    paths = []
    for key, value in values.items():
        nested = isinstance(value, dict) and value
        paths.extend(_paths(value, (*prefix, key)) if nested else [(*prefix, key)])
    return paths


def _at(values: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def environment() -> dict[str, Any]:
    """Versions, machine and revision: what is needed to explain a number later."""
    import torch

    packages: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "videossl": __version__,
        "revision": _revision(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": platform.machine(),
        "gpus": gpus,
        "packages": packages,
    }


def _revision() -> str | None:
    """The git revision of a checkout, `-dirty` with changes that are not committed; None for an installed package."""
    folder = Path(__file__).parent
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:  # no git on this machine
        return None
    return result.stdout.strip() or None
