"""A step asks the device for nothing: each answer would stop the host until the GPU has caught up."""

import contextlib
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from videossl.config import load_config
from videossl.distributed import World
from videossl.engine.trainer import Trainer

WAITING_METHODS = (
    "item",
    "tolist",
    "cpu",
    "numpy",
    "__bool__",
    "__float__",
    "__int__",
    "__index__",
)
WAITING_OPERATORS = (
    "_local_scalar_dense",
    "nonzero",
    "bincount",
    "masked_select",
    "unique",
    "lift_fresh",
    "equal",
)
WINDOW = "crop_size: 32, num_frames: 3, window_seconds: 1.0, min_gap_seconds: 0.1"
TASKS = """
encoder: {name: tiny}
data: {short_side: 48, videos_per_step: 4, num_workers: 0, val_fraction: 0.3}
train: {steps: 8, log_every: 8, accumulate: 2}
tasks:
  ORDER
  arrow_of_time: {crop_size: 32, num_frames: 4}
  colorization: {crop_size: 32, frame_jitter: 4, num_references: 1, radius: 3, HIDE}
"""


class Waits(TorchDispatchMode):
    """Counts what would wait for a GPU: operators whose shape or answer the host needs, and tensors made of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        has_bool_index = name in ("index", "index_put_") and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        if name.startswith(WAITING_OPERATORS) or has_bool_index:
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def counted_waits(monkeypatch):
    waits = Waits()
    with monkeypatch.context() as patched, waits:
        for name in WAITING_METHODS:
            method = getattr(torch.Tensor, name)

            def counted(self, *args, _name=name, _method=method, **kwargs):
                waits.counts[_name] += 1
                return _method(self, *args, **kwargs)

            patched.setattr(torch.Tensor, name, counted)
        yield waits.counts


@pytest.mark.parametrize("guarded", [True, False])
@pytest.mark.parametrize(
    ("order", "hide"),
    [
        (f"order_verification: {{{WINDOW}}}", "hide: one, predict: values"),
        (f"clip_order: {{{WINDOW}, split_channels: true}}", "hide: both, predict: classes"),
        (f"odd_one_out: {{{WINDOW}, clip_jitter: 4}}", "hide: one, predict: classes"),
        ("playback_speed: {crop_size: 32, num_frames: 3, frame_gaps: [1, 2]}", "hide: both"),
        ("relative_position: {crop_size: 16, gap: 4, jitter: 2}", "hide: both"),
        ("exemplar: {crop_size: 16}", "hide: both"),
        ("random_walk: {crop_size: 32, patch_size: 16, grid: 3, frame_jitter: 4}", "hide: both"),
        ("image_colorization: {crop_size: 32}", "hide: both"),
        ("cpc: {crop_size: 32, num_blocks: 3, num_predicted: 2, block_frames: 2}", "hide: both"),
        (f"simcse: {{{WINDOW}}}", "hide: both"),
        (f"simcse: {{{WINDOW}, mode: supervised, hard_negative: shuffled}}", "hide: both"),
        (
            "relative_position: {crop_size: 16, gap: 4, jitter: 2, cells: space-time, colour: project}",
            "hide: both",
        ),
    ],
)
def test_a_step_never_waits_for_the_device(
    order, hide, guarded, video_folder, tmp_path, monkeypatch
):
    path = tmp_path / "c.yaml"
    path.write_text(TASKS.replace("ORDER", order).replace("HIDE", hide))
    config = load_config(
        path,
        [f"data.manifest={video_folder}", f"out={tmp_path / 'run'}", "monitor.gradients_every=1"],
    )
    trainer = Trainer(config, World(rank=0, size=1, local_rank=0, device=torch.device("cpu")))
    # As on a GPU: a fused optimiser that looks by itself, and a guard that does not.
    trainer.optimizer = torch.optim.AdamW(trainer.model.parameters(), fused=True)
    trainer.guard.looks_at_once = not guarded
    trainer.model.train()
    with contextlib.closing(trainer.batches()) as batches:
        trainer.train_step(batches)
        ready = iter([next(batches) for _ in range(2)])  # decoding is the processor's business
        with counted_waits(monkeypatch) as counts:
            trainer.train_step(ready)
    if guarded:
        assert not counts
    else:  # the counter sees what there is to see
        assert counts["item"] == 1
