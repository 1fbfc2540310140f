"""The model on its device and among its ranks."""

import contextlib

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from videossl.config import Config
from videossl.distributed import World
from videossl.engine.multitask import MultiTask
from videossl.engine.sync_batchnorm import synchronize_batchnorm


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
