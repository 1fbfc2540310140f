"""Goes on learning on one video: the pretext task that made an encoder track, asked about the frames at hand.

Test-time training on a stream (Wang et al., JMLR 2025, who have colorization among their tasks). No label is read: a task
makes its own from the frames. Batch norm keeps the statistics of training, which a single video's would not replace.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from videossl.config import Config, saved_config, validate
from videossl.data.transforms import transform_clips
from videossl.engine.build import task_configs
from videossl.engine.checkpoint import encoder_of_state, load_newest_or_named, weights_below
from videossl.errors import UserError
from videossl.models.encoder import Encoder
from videossl.models.encoder_file import (
    is_encoder_file,
    read_encoder,
    read_record,
    read_task_weights,
)
from videossl.models.encoder_sources import shipped_or_given
from videossl.pretext import available, load
from videossl.pretext.task import PretextTask
from videossl.rng import RowRandom, row_random
from videossl.types import ClipBatch

LEARNING_RATE = 1e-4  # of two that were tried, docs/results.md
WARMUP_STEPS = 10
CLIPS_PER_STEP = 8
MAX_FRAMES, STRETCH_FRAMES = 512, 32  # of a video, held in memory: 160 MB at 240 pixels


@dataclass(frozen=True)
class Tracker:
    """An encoder, the task that made it track, and the config of their run."""

    encoder: Encoder
    task: PretextTask
    config: Config


def restore_tracker(path: str | Path) -> Tracker:
    """From a run's folder, a checkpoint or an exported file that holds its task.

    Raises UserError where there is no task that tracks, or no weights of it.
    """
    path = shipped_or_given(path)
    if is_encoder_file(path):
        found = read_task_weights(path)
        if found is None:
            raise UserError(
                f"{path} holds no pretext task to adapt with: export it again from its run, or give the run"
            )
        return _tracker(path, read_encoder(path), *found, read_record(path)["facts"].get("config"))
    file, state = load_newest_or_named(path)
    name = tracking_task(state.get("config"))
    if name is None:
        raise UserError(
            f"{file} was trained by no task that tracks: there is nothing to adapt with"
        )
    weights = weights_below(state["model"], f"tasks.{name}.")
    return _tracker(file, encoder_of_state(file, state), name, weights, state["config"])


def tracking_task(config: Mapping[str, Any] | None) -> str | None:
    """The first task of a run's config that tracks; None if there is none. Tasks from outside of videossl are not asked."""
    names = (config or {}).get("tasks") or {}
    ours = available()
    return next((name for name in names if name in ours and load(name).wants_tracking), None)


def task_weights(
    path: str | Path, contents: Mapping[str, Any]
) -> tuple[str, dict[str, Tensor]] | None:
    """The task that tracks of a loaded file, for another file; `contents` is a checkpoint's state or a file's record."""
    if "model" not in contents:
        return read_task_weights(path) if is_encoder_file(path) else None
    name = tracking_task(contents.get("config"))
    return None if name is None else (name, weights_below(contents["model"], f"tasks.{name}."))


def stretches_of(num_frames: int) -> list[range]:
    """The frames of a video to adapt to: all of a short one, evenly spaced stretches of a long one."""
    if num_frames <= MAX_FRAMES:
        return [range(num_frames)]
    count = MAX_FRAMES // STRETCH_FRAMES
    starts = [round(k * (num_frames - STRETCH_FRAMES) / (count - 1)) for k in range(count)]
    return [range(start, start + STRETCH_FRAMES) for start in starts]


@torch.enable_grad()
def adapt(
    tracker: Tracker,
    stretches: Sequence[Tensor],
    *,
    steps: int,
    frames_per_second: float,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Encoder:
    """A copy of the encoder that has learned for `steps` steps from one video, on `device`.

    `stretches` are its frames, (T, 3, H, W) uint8 RGB each: see `stretches_of`. The clips are those that the task was
    trained on, as far apart in time, cropped and varied as its config says; those of a stretch too short for them are
    closer together. The same seed gives the same encoder.
    """
    encoder = copy.deepcopy(tracker.encoder).to(device).eval()
    task = copy.deepcopy(tracker.task).to(device).train()
    parameters = [*encoder.parameters(), *task.parameters()]
    optimizer = torch.optim.Adam(parameters, LEARNING_RATE)
    for step in range(steps):
        rng = row_random(
            seed,
            "adapt",
            step,
            rank=0,
            world_size=1,
            num_rows=CLIPS_PER_STEP,
            device=torch.device(device),
        )
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS)
        views = task.make_views(_clips(tracker, stretches, frames_per_second, rng), rng)
        features = {name: encoder(rows) for name, rows in views.inputs.items()}
        loss = task({n: maps[task.stage] for n, maps in features.items()}, views.targets).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, tracker.config.optim.clip_norm)
        optimizer.step()
    return encoder


def _clips(
    tracker: Tracker, stretches: Sequence[Tensor], frames_per_second: float, rng: RowRandom
) -> ClipBatch:
    """Clips of the task's kind: random squares of the frames, at random times."""
    spec = tracker.task.clip_spec
    draws = rng.uniform(spec.num_clips + 3).cpu()  # (B, ...) in [0, 1)
    squares, seconds = [], []
    for stretch_at, row_at, column_at, *starts in draws.tolist():
        frames = stretches[int(stretch_at * len(stretches))]
        spacing = round(spec.seconds_between_frames * frames_per_second)
        spacing = max(1, min(spacing, (len(frames) - 1) // max(1, spec.num_frames - 1)))
        offsets = (spacing * torch.arange(spec.num_frames)).clamp_max(len(frames) - 1)
        room = len(frames) - int(offsets[-1])
        index = torch.stack([int(at * room) + offsets for at in starts])  # (K, T)
        height, width = frames.shape[2:]
        side = min(height, width)
        y, x = int(row_at * (height - side + 1)), int(column_at * (width - side + 1))
        squares.append(frames[index][..., y : y + side, x : x + side])
        seconds.append(index.double() / frames_per_second)
    augmentation = tracker.config.augment
    clips = transform_clips(torch.stack(squares).to(rng.device), spec.crop_size, augmentation, rng)
    ids = torch.zeros(len(clips), dtype=torch.int64, device=rng.device)
    return ClipBatch({spec: clips}, {spec: torch.stack(seconds)}, ids)


def _tracker(
    path: Path,
    encoder: Encoder,
    name: str,
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any] | None,
) -> Tracker:
    try:
        checked = validate(Config, saved_config(config or {}))
        task = load(name)(task_configs({name: checked.tasks[name]})[name], encoder.stages)
        task.load_state_dict(weights)
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path} does not describe its task {name}: {str(error).splitlines()[0]}"
        ) from error
    return Tracker(encoder, task, checked)
