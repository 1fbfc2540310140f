"""Slow copies and queues of keys: what MoCo needs besides an encoder. He et al., CVPR 2020, section 3.2."""

import copy
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def slow_copy(module: Module) -> Module:
    """A copy that no gradient reaches: it follows by `follow` alone."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def follow(slow: nn.Module, module: nn.Module, momentum: float, skipped: Tensor) -> None:
    """Moves each parameter by 1 - `momentum` of the way to the module's (equation 2); not where `skipped`, a bool scalar."""
    for parameter, target in zip(slow.parameters(), module.parameters(), strict=True):
        step = torch.where(skipped, 0.0, 1 - momentum).to(parameter.dtype)
        parameter.lerp_(target.detach(), step)


class KeyQueue(nn.Module):
    """The last `length` keys of all ranks, with the video of each and what a rule without a network compares.

    `keys` (length, D) start as random directions of no video (-1), as in the paper. All are buffers: a checkpoint has them.
    """

    def __init__(self, length: int, channels: int, rival_channels: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(length, channels), dim=1))
        self.register_buffer("rival_keys", torch.randn(length, rival_channels))
        self.register_buffer("videos", torch.full((length,), -1))
        self.register_buffer("next_place", torch.zeros((), dtype=torch.int64))
        self.keys: Tensor
        self.rival_keys: Tensor
        self.videos: Tensor
        self.next_place: Tensor

    @torch.no_grad()
    def push(self, keys: Tensor, rival_keys: Tensor, videos: Tensor, skipped: Tensor) -> None:
        """Puts rows, of more than `length` the last, in the place of the oldest; nothing where `skipped`, a bool scalar."""
        keys, rival_keys, videos = (rows[-len(self.keys) :] for rows in (keys, rival_keys, videos))
        steps = torch.arange(len(keys), device=keys.device)
        places = (self.next_place + steps) % len(self.keys)
        for held, new in ((self.keys, keys), (self.rival_keys, rival_keys), (self.videos, videos)):
            held[places] = torch.where(skipped, held[places], new.to(held.dtype))
        moved = torch.where(skipped, 0, len(keys))
        self.next_place.copy_((self.next_place + moved) % len(self.keys))
