"""What a run says of itself: its first lines, and the line of every log interval."""

import resource
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from videossl.config import Config
from videossl.data.dataset import ClipDataset
from videossl.distributed import World
from videossl.engine.logger import describe_tasks
from videossl.engine.multitask import MultiTask
from videossl.models.encoder import count_parameters
from videossl.rng import row_random
from videossl.types import ClipBatch

TRAINING_FACTOR = 3  # the backward pass costs twice the forward one


def flops_per_video(model: MultiTask, data: ClipDataset, device: torch.device) -> int:
    """Of one training step, per video: counted on an empty batch of one, which leaves no trace in the model."""
    clips = {
        spec: torch.zeros(
            1, spec.num_clips, 3, spec.num_frames, spec.crop_size, spec.crop_size, device=device
        )
        for spec in data.specs
    }
    times = {spec: torch.zeros(1, spec.num_clips, spec.num_frames).double() for spec in clips}
    batch = ClipBatch(clips, times, torch.zeros(1, dtype=torch.int64))
    rng = row_random(0, "flops", rank=0, world_size=1, num_rows=1, device=device)
    was_training = model.training
    model.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(model.make_views(batch, rng))
    model.train(was_training)
    return TRAINING_FACTOR * counter.get_total_flops()


def first_lines(
    config: Config,
    world: World,
    model: MultiTask,
    data: ClipDataset,
    heldout: ClipDataset | None,
    *,
    step: int,
) -> str:
    """What this run is, in a few lines."""
    encoder = model.encoder
    num_clips = sum(spec.num_clips for spec in data.specs)
    accumulate = config.train.accumulate
    where = f"by {data.reader} on {data.device}"
    gflops = flops_per_video(model, data, world.device) / 1e9
    return (
        f"videos: {len(data)} to train on, {len(heldout) if heldout is not None else 0} held out by source group; "
        f"left out: {data.left_out}\n"
        f"batch: {config.data.videos_per_step} videos over {world.size} process(es), x{accumulate} accumulated, on "
        f"{world.device.type}; an epoch is {len(data) * num_clips} clips\n"
        f"decoding: {where}, decode.backend={config.decode.backend}, decode.device={config.decode.device}, "
        f"{config.data.num_workers} worker(s) per process\n"
        f"encoder: {encoder.spec.name} to {encoder.spec.deepest_stage}, {count_parameters(encoder) / 1e6:.2f} M "
        f"parameters, {gflops:.2f} GFLOPs per video and step; tasks: {', '.join(config.tasks)}\n"
        f"{_chances(model)}out: {config.out}, from step {step} to {config.train.steps}"
    )


def _chances(model: MultiTask) -> str:
    """A line that says what chance means for the tasks where it is not one of so many answers."""
    said = [f"{name}: {task.chance_is}" for name, task in model.named_tasks() if task.chance_is]
    return f"chance: {'; '.join(said)}\n" if said else ""


def step_line(
    step: int, total_steps: int, tasks: Mapping[str, Mapping[str, float]], values: Mapping[str, Any]
) -> str:
    """One interval, on one line."""
    return (
        f"step {step}/{total_steps}  epoch {values['epoch']:.2f}  {describe_tasks(tasks)}  lr {values['lr']:.2e}  "
        f"{values['clips_per_second']:.1f} clips/s  waiting {100 * values['data_wait_share']:.0f} %  "
        f"{values['memory_gib']:.1f} GiB  {duration(values['seconds_left'])} left"
        + (f"  bad {values['bad_videos']}" if values["bad_videos"] else "")
        + (f"  skipped {values['skipped_steps']}" if values["skipped_steps"] else "")
    )


def duration(seconds: float) -> str:
    """`2 h 05 min`, `3 min 20 s` or `12 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def peak_memory_gib(device: torch.device) -> float:
    """The most this process has held: of the GPU where it trains on one, else of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
