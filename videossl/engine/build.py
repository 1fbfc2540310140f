"""From a Config to modules and data: the one place where names become objects."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from videossl.config import Config, validate
from videossl.data.dataset import ClipDataset
from videossl.data.manifest_file import given_manifest
from videossl.data.sampling import SamplingRules
from videossl.data.table import Manifest, read_manifest
from videossl.data.transforms import Augmentation
from videossl.distributed import World
from videossl.engine.decode_device import resolve_decode_device, videos_per_second
from videossl.engine.multitask import MultiTask
from videossl.engine.split import Split, split_of_run
from videossl.errors import UserError
from videossl.models.encoder import STAGES, Encoder, EncoderSpec
from videossl.pretext import load
from videossl.pretext.task import PretextTask, TaskConfig


def task_configs(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, TaskConfig]:
    """Each task's settings checked by its own Config; raises UserError naming tasks.<name>.<key>."""
    return {
        name: validate(load(name).Config, settings or {}, f"tasks.{name}")
        for name, settings in tasks.items()
    }


def build_model(config: Config) -> MultiTask:
    """The encoder, up to the deepest stage that a task reads, and the tasks; torch's global seed must be set before."""
    configs = task_configs(config.tasks)
    deepest = max((c.stage for c in configs.values()), key=STAGES.index)
    section = config.encoder
    spec = EncoderSpec(
        section.name,
        deepest,
        keep_time=section.keep_time,
        max_stride=section.max_stride,
        colours=section.colours or "lab",
        frame_wise=section.frame_wise,
        normalization=section.normalization,
    )
    tracking = [configs[name].stage for name in configs if load(name).wants_tracking]
    encoder = Encoder(spec, track_stage=tracking[0] if tracking else None)
    tasks: dict[str, PretextTask] = {}
    for name, task_config in configs.items():
        try:
            tasks[name] = load(name)(task_config, encoder.stages)
        except ValueError as error:
            raise UserError(f"tasks.{name}: {error}") from error
    try:
        return MultiTask(
            encoder,
            tasks,
            {name: c.weight for name, c in configs.items()},
            learn_weights=config.train.task_weights == "learned",
        )
    except ValueError as error:
        raise UserError(f"tasks: {error}") from error


def clip_dataset(
    config: Config,
    model: MultiTask,
    manifest: Manifest,
    rows: np.ndarray,
    *,
    shuffle: bool,
    device: str = "cpu",
) -> ClipDataset:
    """What the model's tasks want of some rows of a manifest, as the config decodes it."""
    return ClipDataset(
        manifest,
        [task.clip_spec for _, task in model.named_tasks()],
        seed=config.seed,
        short_side=config.data.short_side,
        rows=rows,
        rules=SamplingRules(**config.data.sampling.model_dump()),
        cut_bars=config.data.cut_bars,
        backend=config.decode.backend,
        device=device,
        shuffle=shuffle,
    )


def build_datasets(
    config: Config,
    model: MultiTask,
    world: World,
    *,
    run: Path | None,
    may_change: bool = False,
) -> tuple[ClipDataset, ClipDataset | None, Split]:
    """The training and the held-out dataset (None without holdout) of the config's manifest, and which rows they are of.

    The split is that of the run in folder `run`, where it has one: see `split_of_run`.
    """
    manifest = read_manifest(given_manifest(config.data.manifest))
    split = split_of_run(
        manifest, config.data.holdout_fraction, config.seed, run=run, may_change=may_change
    )
    if config.data.holdout_fraction > 0 and not len(split.heldout):
        raise UserError(
            f"data.holdout_fraction {config.data.holdout_fraction:g} holds out no whole source group of "
            f"{config.data.manifest}: add videos, raise it, or set it to 0 to go without held-out metrics"
        )
    dataset = functools.partial(clip_dataset, config, model, manifest)

    def measure(device: str) -> float:
        return videos_per_second(
            dataset(split.train, shuffle=True, device=device),
            num_workers=config.data.num_workers,
            timeout_seconds=config.data.timeout_seconds,
        )

    device = resolve_decode_device(config.decode.device, world, measure)
    train = dataset(split.train, shuffle=True, device=device)
    if not len(split.heldout):
        return train, None, split
    return train, dataset(split.heldout, shuffle=False, device=device), split


def build_augmentation(config: Config) -> Augmentation:
    """The augment section as the transforms want it."""
    return Augmentation(**config.augment.model_dump())


def autocast(config: Config, device: torch.device) -> torch.autocast:
    """The precision of forward passes: bfloat16 where `train.precision` says so, on GPUs by default."""
    precision = config.train.precision
    enabled = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)
