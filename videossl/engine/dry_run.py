"""What a run would take, measured on two steps that leave nothing behind."""

import contextlib
import time

import torch

from videossl.data.loader import Batches
from videossl.engine.status_lines import duration, first_lines, peak_memory_gib
from videossl.engine.trainer import Trainer


def dry_run(trainer: Trainer, num_steps: int) -> str:
    """Takes two optimiser steps and says how long a run of `num_steps` would take, in what memory, with what checkpoints.

    The first step holds what happens once (workers start, kernels are chosen); the second is what a step takes. The
    trainer is used up by it.
    """
    config = trainer.config
    trainer.model.train()
    with contextlib.closing(trainer.batches()) as batches:
        first, (second, waited) = _step(trainer, batches)[0], _step(trainer, batches)
    held = [*trainer.model.state_dict().values(), *_tensors(trainer.optimizer.state_dict())]
    mib = sum(tensor.nbytes for tensor in held) / 2**20
    lines = first_lines(
        config,
        trainer.world,
        trainer.model,
        trainer.train_data,
        trainer.heldout_data,
        step=0,
    )
    place = "of the GPU" if trainer.world.device.type == "cuda" else "of each process"
    return (
        f"{lines}\n"
        f"dry run: first step {first:.2f} s, second {second:.2f} s ({100 * waited / second:.0f} % waiting for data)\n"
        f"time: about {duration(num_steps * second)} for {num_steps} steps, without evaluations\n"
        f"memory {place}: {peak_memory_gib(trainer.world.device):.2f} GiB at most so far\n"
        f"checkpoints: {mib:.1f} MiB each, {config.train.keep_checkpoints} kept\n"
        "nothing was written"
    )


def _step(trainer: Trainer, batches: Batches) -> tuple[float, float]:
    """Seconds of a step, and those of them spent waiting for data."""
    begin = time.perf_counter()
    waited = trainer.train_step(batches)
    if trainer.world.device.type == "cuda":
        torch.cuda.synchronize(trainer.world.device)
    return time.perf_counter() - begin, waited


def _tensors(state: object) -> list[torch.Tensor]:
    leaves = torch.utils._pytree.tree_leaves(state)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
