"""torchrun set-up, rank and world, and sums over ranks. Without torchrun everything is one process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from videossl.errors import UserError


@dataclass(frozen=True)
class World:
    """This process among all: its rank, the world size, its local rank on the host, and its device."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """`auto` is this process's GPU if there is one, else the CPU; raises UserError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if name != "cuda":
        raise UserError(f"device is {name!r}; allowed: auto, cpu, cuda")
    if not torch.cuda.is_available():
        raise UserError(
            "device is 'cuda' but torch sees no GPU: install a driver, or set device=cpu"
        )
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"local rank {local_rank} has no GPU: this host has {torch.cuda.device_count()}; "
            "start torchrun with --nproc_per_node of at most that"
        )
    return torch.device("cuda", local_rank)


@contextmanager
def launched_world(device: str = "auto") -> Iterator[World]:
    """The world torchrun made (nccl on GPUs, gloo on CPUs), or a world of one without torchrun; torn down on leaving."""
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = choose_device(device, local_rank)
    if "RANK" not in os.environ:
        yield World(rank=0, size=1, local_rank=0, device=chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size(), local_rank, chosen)
    finally:
        dist.destroy_process_group()


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of a tensor of equal shape over all ranks; itself in a world of one."""
    if not dist.is_initialized():
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values


def barrier() -> None:
    """Waits for all ranks; nothing in a world of one."""
    if dist.is_initialized():
        dist.barrier()
