"""The optimiser's parameter groups, and the learning rate as a function of the step."""

import math

import torch
from torch import nn

from videossl.config import Config


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
