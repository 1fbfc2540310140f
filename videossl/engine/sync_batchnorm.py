"""Batch normalisation over the rows of all ranks, on CPUs too: torch.nn.SyncBatchNorm is for accelerators only.

With it, a run gives the same losses on any number of processes, up to rounding.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm


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
