"""From a Config to modules and data: the one place where names become objects."""

import contextlib
import functools
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from videossl.config import Config, validate
from videossl.data.dataset import ClipDataset
from videossl.data.loader import StepPositions, frame_batches
from videossl.data.manifest import Manifest, read_manifest
from videossl.data.manifest_path import given_manifest
from videossl.distributed import World
from videossl.engine.checkpoint import restore_encoder
from videossl.engine.multitask import MultiTask
from videossl.engine.split import Split, split_of_run
from videossl.errors import UserError
from videossl.models.encoder import STAGES, Encoder, EncoderSpec
from videossl.pretext import load
from videossl.pretext.task import PretextTask, TaskConfig


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weights decay; biases and normalisation parameters, which have one axis, do not."""
    decayed = [p for p in module.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in module.parameters() if p.requires_grad and p.ndim <= 1]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def build_optimizer(
    module: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter, ICLR 2019), fused on GPUs."""
    fused = next(module.parameters()).device.type == "cuda"
    return torch.optim.AdamW(
        parameter_groups(module, weight_decay), lr=lr, betas=betas, fused=fused
    )


def scheduled_lr(config: Config, step: int, *, total_steps: int | None = None) -> float:
    """The learning rate of a step of a run, or as it was when the run had `total_steps`."""
    return lr_at(
        step,
        peak=config.optim.lr,
        warmup_steps=config.optim.warmup_steps,
        total_steps=config.train.steps if total_steps is None else total_steps,
        final_share=config.optim.final_lr_share,
    )


def lr_at(
    step: int, *, peak: float, warmup_steps: int, total_steps: int, final_share: float
) -> float:
    """Linear warm-up to `peak`, then a cosine to `final_share` of it at `total_steps`."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    cosine = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
    return peak * (final_share + (1 - final_share) * cosine)


class SyncBatchNorm(_BatchNorm):
    """Drop-in for BatchNorm1d/2d/3d whose batch is that of all ranks; every rank must hold equally many rows."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected (N, C, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized():
            return super().forward(input)
        axes = [axis for axis in range(input.dim()) if axis != 1]
        count = input.numel() // input.shape[1] * dist.get_world_size()
        mean = all_reduce(input.sum(axes)) / count
        centred = input - _per_channel(mean, input)
        variance = all_reduce(centred.square().sum(axes)) / count
        self._track(mean.detach(), variance.detach() * (count / max(count - 1, 1)))
        normalised = centred * _per_channel(torch.rsqrt(variance + self.eps), input)
        if self.affine:
            normalised = normalised * _per_channel(self.weight, input) + _per_channel(
                self.bias, input
            )
        return normalised

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.momentum is None:
            return
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(unbiased, self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (like.dim() - 2))


def synchronize_batchnorm(module: nn.Module) -> nn.Module:
    """Replaces every batch normalisation inside `module`, sharing its parameters and buffers; returns the module."""
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm) and not isinstance(child, SyncBatchNorm):
            synced = SyncBatchNorm(
                child.num_features,
                child.eps,
                child.momentum,
                child.affine,
                child.track_running_stats,
            )
            synced._parameters, synced._buffers = child._parameters, child._buffers
            synced.training = child.training
            setattr(module, name, synced)
        else:
            synchronize_batchnorm(child)
    return module


def place(model: MultiTask, config: Config, world: World) -> None:
    """Moves the model to the device, in the memory order and the compiled form that the config asks for."""
    train, is_gpu = config.train, world.device.type == "cuda"
    model.to(world.device)
    if is_gpu if train.channels_last is None else train.channels_last:
        for encoder in (model.encoder, model.slow_encoder):
            if encoder is not None:
                encoder.to(memory_format=torch.channels_last_3d)
    if train.compile:
        # The graph is used once more where the gradient of each task is measured.
        torch._functorch.config.donated_buffer = False
        model.encoder.compile()


def distribute(
    model: MultiTask, config: Config, world: World
) -> MultiTask | DistributedDataParallel:
    """The model itself in a world of one, else as DistributedDataParallel sees it."""
    if world.size == 1:
        return model
    is_gpu = world.device.type == "cuda"
    if config.train.sync_batchnorm:
        if is_gpu:
            torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
        else:
            synchronize_batchnorm(model)
    return DistributedDataParallel(model, device_ids=[world.local_rank] if is_gpu else None)


def share_buffers(model: MultiTask) -> None:
    """Gives every rank the main one's running statistics, as DDP does before each training step and a checkpoint does.

    Each rank has else those of its own last batch, and what is measured with them is not what a resumed run measures.
    """
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def no_sync(
    model: MultiTask | DistributedDataParallel,
) -> contextlib.AbstractContextManager[None]:
    """Inside, gradients are added up and not yet exchanged."""
    return (
        model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext()
    )


log = logging.getLogger("videossl")


def begin_with(model: MultiTask, init: str | None) -> None:
    """Copies the weights of a run folder, checkpoint or encoder file into the model's encoder and its slow copy.

    None leaves both as they are. Stages behind the model's deepest are not read, and strides may differ, which changes no
    weight. Raises UserError if the weights are not of the same encoder.
    """
    if init is None:
        return
    source = restore_encoder(init)
    _check(source, model.encoder, init)
    weights = source.state_dict()
    for encoder in (model.encoder, model.slow_encoder):
        if encoder is not None:
            encoder.load_state_dict({name: weights[name] for name in encoder.state_dict()})
    log.info("the encoder begins with the weights of %s", init)
    if (colours := model.encoder.spec.colours) != "lab":
        log.info(
            "these weights read %s, and tasks show Lab: each clip is turned back into RGB in front of the first "
            "convolution, colours outside of sRGB are clipped",
            colours,
        )


def _check(source: Encoder, encoder: Encoder, init: str) -> None:
    given, wanted = source.spec, encoder.spec
    if given.name != wanted.name:
        raise UserError(
            f"encoder.init {init} is of {given.name!r}, the run's encoder is {wanted.name!r}: set encoder.name={given.name}"
        )
    if given.colours != wanted.colours:
        value = "null" if given.colours == "lab" else given.colours
        raise UserError(
            f"encoder.init {init} reads {given.colours}, the run's encoder {wanted.colours}: set encoder.colours={value}"
        )
    for setting in ("frame_wise", "normalization"):
        theirs, ours = (str(getattr(spec, setting)).lower() for spec in (given, wanted))
        if theirs != ours:
            raise UserError(
                f"encoder.init {init} has {setting} {theirs}, the run's encoder {ours}: set encoder.{setting}={theirs}"
            )
    if STAGES.index(given.deepest_stage) < STAGES.index(wanted.deepest_stage):
        raise UserError(
            f"encoder.init {init} ends after {given.deepest_stage}, but tasks read {wanted.deepest_stage}: choose tasks' "
            "stages up to that, or other weights"
        )


PROBE_SECONDS = 5.0  # for each device, after its first batch
PROBE_STEPS = 10_000  # more than any machine decodes in that time


def resolve_decode_device(asked: str, world: World, measure: Callable[[str], float]) -> str:
    """ "cpu", or the process's own "cuda:N": what `decode.device` asks for, or what `measure` finds the quicker.

    `measure(device)` gives videos/s or raises UserError; only the main rank measures, and all follow it. Raises
    UserError for cuda in a process that computes on the processor.
    """
    on_gpu = world.device.type == "cuda"
    if asked == "cuda" and not on_gpu:
        raise UserError(
            "decode.device=cuda hands frames to the GPU that the process computes on, and this one computes on the "
            "cpu: set device=cuda, or decode.device=cpu"
        )
    if asked == "cpu" or not on_gpu:
        return "cpu"
    # Named by its number: the threads that decode each start on GPU 0.
    gpu = f"cuda:{world.device.index or 0}"
    if asked == "cuda":
        return gpu
    is_gpu_quicker = _is_gpu_quicker(gpu, measure) if world.is_main else False
    return gpu if _agreed(is_gpu_quicker, world) else "cpu"


def videos_per_second(dataset: ClipDataset, *, num_workers: int, timeout_seconds: float) -> float:
    """What the loader delivers when nobody else computes, over PROBE_SECONDS."""
    positions = StepPositions(0, PROBE_STEPS, rank=0, world_size=1, videos_per_rank=8)
    batches = frame_batches(
        dataset, positions, num_workers=num_workers, timeout_seconds=timeout_seconds
    )
    try:
        next(batches)
        started, num_videos = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - started) < PROBE_SECONDS:
            num_videos += len(next(batches).video_ids)
        return num_videos / elapsed
    finally:
        batches.close()


def _is_gpu_quicker(gpu: str, measure: Callable[[str], float]) -> bool:
    try:
        on_gpu = measure(gpu)
    except UserError as error:
        log.info("decode.device=auto: cpu, because %s", error)
        return False
    on_cpu = measure("cpu")
    log.info(
        "decode.device=auto: %s (measured: cuda %.0f videos/s, cpu %.0f)",
        "cuda" if on_gpu > on_cpu else "cpu",
        on_gpu,
        on_cpu,
    )
    return on_gpu > on_cpu


def _agreed(decision: bool, world: World) -> bool:
    """The main rank's decision."""
    if not dist.is_initialized():
        return decision
    flag = torch.tensor(int(decision), device=world.device)
    dist.broadcast(flag, src=0)
    return bool(flag.item())


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
        rules=config.data.sampling,
        crop_letterbox=config.data.crop_letterbox,
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
        manifest, config.data.val_fraction, config.seed, run=run, may_change=may_change
    )
    if config.data.val_fraction > 0 and not len(split.heldout):
        raise UserError(
            f"data.val_fraction {config.data.val_fraction:g} holds out no whole source group of "
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


def autocast(config: Config, device: torch.device) -> torch.autocast:
    """The precision of forward passes: bfloat16 where `train.precision` says so, on GPUs by default."""
    precision = config.train.precision
    enabled = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)
