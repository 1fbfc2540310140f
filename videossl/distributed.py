"""torchrun set-up, rank and world, and sums over ranks. Without torchrun everything is one process."""

import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

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
    store: dist.Store | None = None  # shared by all ranks of this attempt; None in a world of one

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
        raise UserError(
            f"device is {name!r}; allowed: auto, cpu, cuda (one of several GPUs: CUDA_VISIBLE_DEVICES=N)"
        )
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
    store, rank, size = next(dist.rendezvous("env://"))
    store = _unused_part(store, rank, size)
    dist.init_process_group(
        "nccl" if chosen.type == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=size,
    )
    try:
        yield World(rank, size, local_rank, chosen, store)
    finally:
        dist.destroy_process_group()


def _unused_part(store: dist.Store, rank: int, size: int) -> dist.Store:
    """A part of torchrun's store in which no earlier attempt of the run has written.

    Restarted workers get the store of those that died, with their addresses in it (seen with torch 2.15), and neither the
    restart count nor anything else in the environment is the same on all hosts. So rank 0 draws a name, and hands it to
    each process that asks with a name of its own.
    """
    own = uuid.uuid4().hex
    if rank:
        store.set(f"videossl/asks/{rank}", own)
        name = store.get(f"videossl/answer/{own}").decode()
        store.set(f"videossl/took/{name}/{rank}", "")
        return dist.PrefixStore(name, store)
    answered: dict[int, bytes] = {}
    waiting = set(range(1, size))
    while waiting:
        for other in sorted(waiting):
            if store.check([f"videossl/took/{own}/{other}"]):
                waiting.remove(other)
            elif store.check([f"videossl/asks/{other}"]):
                asked = store.get(f"videossl/asks/{other}")
                if answered.get(other) != asked:  # else it is on its way
                    answered[other] = asked
                    store.set(f"videossl/answer/{asked.decode()}", own)
        time.sleep(0.01 if waiting else 0)
    return dist.PrefixStore(own, store)


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of a tensor of equal shape over all ranks; itself in a world of one."""
    if not dist.is_initialized():
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, rows: Tensor) -> Tensor:
        gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)  # what every rank's loss says of this rank's rows
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all ranks, in their order, each (N, ...): (ranks * N, ...). Gradients go back to the rank of the row."""
    if not dist.is_initialized():
        return rows
    gathered: Tensor = _GatherRows.apply(rows)
    return gathered


def world_size() -> int:
    """The number of ranks; 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather_objects(value: Any) -> list[Any]:
    """Every rank's value, in order, on the main rank; empty on the others. Small things of plain types and CPU tensors."""
    if not dist.is_initialized():
        return [value]
    gathered = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, gathered, dst=0)
    return gathered or []


def from_main(value: Any) -> Any:
    """The main rank's value, on every rank. Small things of plain types."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def of_main(ask: Callable[[], Any], world: World) -> Any:
    """What the main rank gets by `ask`, on every rank; a UserError of it too, with its text once for each host."""
    answer, refusal = None, ""
    if world.is_main:
        try:
            answer = ask()
        except UserError as error:
            refusal = str(error)
    answer, refusal = from_main((answer, refusal))
    if refusal:
        raise UserError(refusal if world.local_rank == 0 else "")
    return answer


@contextmanager
def locked_by_main(lock: AbstractContextManager[None], world: World) -> Iterator[None]:
    """Enters a lock in the main rank; every rank must call it, and is refused where that one is."""
    with ExitStack() as stack:
        of_main(lambda: stack.enter_context(lock), world)
        yield


def is_equal_on_all_ranks(value: int) -> bool:
    """Whether every rank has the same number."""
    if not dist.is_initialized():
        return True
    gathered: list[int | None] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return len(set(gathered)) == 1


def barrier() -> None:
    """Waits for all ranks; nothing in a world of one."""
    if dist.is_initialized():
        dist.barrier()
