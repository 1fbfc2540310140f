"""What a run says of itself: metrics summed over steps and processes, the log, JSON lines, TensorBoard."""

import json
import logging
import math
import os
import resource
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.tensorboard import summary

from videossl.config import Config
from videossl.data.dataset import ClipDataset
from videossl.distributed import World, sum_over_ranks
from videossl.engine.multitask import MultiTask
from videossl.errors import StorageFull, UserError
from videossl.io.output_files import WholeRecords, whole_file, writing
from videossl.models.encoder import count_parameters
from videossl.rng import row_random
from videossl.types import ClipBatch, TaskResult, metric_mean, metric_sum


class MetricSums:
    """Adds up losses and metrics per task; `values()` gives exact means over all that was added, on all ranks."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], Tensor] = {}

    @classmethod
    def continued(
        cls, states: Sequence[Mapping[str, Mapping[str, Tensor]]], world: World
    ) -> "MetricSums":
        """From the `state` of each rank: its own, or all of them on the main rank if there were more or fewer ranks."""
        metric_sums = cls()
        if len(states) == world.size:
            states = [states[world.rank]]
        elif not world.is_main:
            states = []
        for state in states:
            metric_sums.add_state(state, world.device)
        return metric_sums

    def add(self, results: Mapping[str, TaskResult], skipped: Tensor | None = None) -> None:
        """Adds one batch, as zero where `skipped` is true; no transfer from the device."""
        for task, result in results.items():
            for name, value in {"loss": metric_sum(result.loss), **result.metric_sums}.items():
                key = (task, name)
                if skipped is not None:
                    value = torch.where(skipped, 0.0, value)
                self._sums[key] = self._sums[key] + value if key in self._sums else value.clone()

    def state(self) -> dict[str, dict[str, Tensor]]:
        """{task: {metric: sums}} of this rank, for a checkpoint between two log lines."""
        state: dict[str, dict[str, Tensor]] = {}
        for (task, name), value in self._sums.items():
            state.setdefault(task, {})[name] = value.cpu()
        return state

    def add_state(self, state: Mapping[str, Mapping[str, Tensor]], device: torch.device) -> None:
        """Adds what `state` gave."""
        for task, metrics in state.items():
            for name, value in metrics.items():
                key, value = (task, name), value.to(device)
                self._sums[key] = self._sums[key] + value if key in self._sums else value.clone()

    def values(self) -> dict[str, dict[str, float]]:
        """{task: {metric: mean}} over all ranks, one transfer; every rank must call it.

        `answers` is the number of those whose mean the accuracy is.
        """
        if not self._sums:
            return {}
        flat = sum_over_ranks(
            torch.cat([value.double().flatten() for value in self._sums.values()])
        ).cpu()
        values: dict[str, dict[str, float]] = {}
        start = 0
        for (task, name), tallied in self._sums.items():
            summed = flat[start : start + tallied.numel()].view_as(tallied)
            start += tallied.numel()
            values.setdefault(task, {})[name] = metric_mean(summed)
            if name == "accuracy":
                values[task]["num_samples"] = float(summed[1].sum())
        return values


class EventFile:
    """One event file in `folder`, of a run that goes on after `step`: later points of earlier files no longer count.

    Each method raises OSError if the disk refuses.
    """

    def __init__(self, folder: Path, *, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 1000}.{socket.gethostname()}.{os.getpid()}"
        self._file = WholeRecords(folder / name)
        self._records = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))
        if step:
            self._write(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def scalar(self, name: str, value: float, step: int) -> None:
        """One point of a curve."""
        self._add(summary.scalar(name, value), step)

    def image(self, name: str, picture: Tensor, step: int) -> None:
        """A picture (3, H, W) uint8."""
        self._add(summary.image(name, picture, dataformats="CHW"), step)

    def close(self) -> None:
        """Ends the file."""
        self._file.close()

    def _add(self, content: Summary, step: int) -> None:
        self._write(Event(step=step, summary=content))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())


log = logging.getLogger("videossl")


class _LogFile(logging.FileHandler):
    """train.log, which says once that it cannot be written, and then is silent."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self._is_silent = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._is_silent:
            self._is_silent = True
            log.warning("%s cannot be written: %s", self.baseFilename, sys.exc_info()[1])

    def close(self) -> None:
        with suppress(OSError):  # what it still holds does not fit either, which has been said
            super().close()


class RunLogger:
    """Writes a run's folder; on ranks other than the main one it does nothing.

    A full disk costs what could not be written, and one warning per file: training goes on. Raises UserError where the
    folder is gone, or refuses for another reason.
    """

    def __init__(self, out: Path, *, is_main: bool, first_step: int, total_steps: int) -> None:
        self.is_main = is_main
        self._bar: Progress | None = None
        if not is_main:
            return
        self._out = out
        self._refused: set[str] = set()
        metrics = out / "metrics.jsonl"
        _drop_after(metrics, first_step)
        with writing(metrics):
            self._jsonl = WholeRecords(metrics)
        with writing(out / "tb"):
            self._tensorboard = EventFile(out / "tb", step=first_step)
        with writing(out / "train.log"):
            self._file = _LogFile(out / "train.log")
        log.addHandler(self._file)
        if sys.stderr.isatty():
            columns = (
                TextColumn("train"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(file=sys.stderr))
            self._bar_task = self._bar.add_task("train", total=total_steps, completed=first_step)
            self._bar.start()

    def advance(self, step: int) -> None:
        """Moves the bar."""
        if self._bar is not None:
            self._bar.update(self._bar_task, completed=step)

    def write(self, step: int, line: str, values: Mapping[str, Any], prefix: str = "") -> None:
        """One line for people, one JSON object for programs, one point per number for TensorBoard."""
        if not self.is_main:
            return
        self.say(line)
        if not self._out.is_dir():  # files that are open would take what nobody will read
            raise UserError(f"{self._out} cannot be written: it is gone")
        record = json.dumps(_without_nan({"step": step, **values})) + "\n"
        with self._tried("metrics.jsonl"):
            self._jsonl.write(record.encode())
        with self._tried("tb"):
            for name, value in flatten(values):
                self._tensorboard.scalar(prefix + name, value, step)

    def draw(self, step: int, tag: str, pictures: Mapping[str, Tensor]) -> None:
        """Pictures (3, H, W) uint8 for TensorBoard."""
        if self.is_main:
            with self._tried("tb"):
                for name, picture in pictures.items():
                    self._tensorboard.image(f"{tag}/{name}", picture, step)

    def say(self, line: str) -> None:
        """A line for people only."""
        if not self.is_main:
            return
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False)
            self._file.handle(log.makeRecord("videossl", logging.INFO, "", 0, line, (), None))
        else:
            log.info(line)

    @contextmanager
    def _tried(self, name: str) -> Iterator[None]:
        try:
            with writing(self._out / name):
                yield
        except StorageFull as error:
            if name not in self._refused:
                self._refused.add(name)
                log.warning("%s; training goes on", error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self.is_main:
            return
        if self._bar is not None:
            self._bar.stop()
        self._jsonl.close()
        self._tensorboard.close()
        log.removeHandler(self._file)
        self._file.close()


def _drop_after(path: Path, step: int) -> None:
    """Drops the records of steps that a killed run had made after its last checkpoint: they are made again."""
    if not path.exists():
        return
    with writing(path):
        lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if _step_of(line) <= step]
    if kept != lines:
        with whole_file(path) as partial:
            partial.write_bytes(b"".join(kept))


def _step_of(line: bytes) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a line cut off by the kill
        return float("inf")


def _without_nan(value: Any) -> Any:
    """JSON has no nan: null, as for a metric that no sample of the interval could give."""
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """The numbers of nested mappings with their path: {"a": {"b": 1}} to [("a/b", 1.0)]."""
    flat: list[tuple[str, float]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.extend(flatten(value, f"{prefix}{name}/"))
        elif isinstance(value, int | float):
            flat.append((prefix + name, float(value)))
    return flat


def describe_tasks(tasks: Mapping[str, Mapping[str, float]]) -> str:
    """`order_verification loss 0.693 acc 0.51 (chance 0.50, shortcut baseline 0.54)  arrow_of_time ...`."""
    return "  ".join(
        f"{name} loss {m['loss']:.3f} acc {m['accuracy']:.3f} ({describe_bars(m)})"
        for name, m in tasks.items()
    )


def describe_bars(metrics: Mapping[str, float]) -> str:
    """What an accuracy must be above: chance, and the shortcut baseline where one is known."""
    shortcut_baseline = (
        f", shortcut baseline {metrics['shortcut_baseline']:.2f}"
        if "shortcut_baseline" in metrics
        else ""
    )
    return f"chance {metrics['chance']:.2f}{shortcut_baseline}"


TRAINING_FACTOR = 3  # the backward pass costs twice the forward one


def flops_per_video(model: MultiTask, data: ClipDataset, device: torch.device) -> int:
    """Floating-point operations of a training step, per video, counted on a batch of zeros; the model stays as it was."""
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
        f"{values['clips_per_second']:.1f} clips/s  waiting {100 * values['data_time_fraction']:.0f} %  "
        f"{values['memory_gib']:.1f} GiB  {duration(values['eta_seconds'])} left"
        + (f"  bad {values['failed_decodes']}" if values["failed_decodes"] else "")
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


class Interval:
    """Begins at `step`; `metric_sums` may carry on those of a run that was stopped between two log lines."""

    def __init__(self, step: int, metric_sums: MetricSums | None = None) -> None:
        self.metric_sums = MetricSums() if metric_sums is None else metric_sums
        self.first_step, self.waited = step, 0.0
        self._seconds, self._since = 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds of training, without pauses."""
        return self._seconds + time.perf_counter() - self._since

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Does not count the time inside: evaluation, saving."""
        self._seconds += time.perf_counter() - self._since
        try:
            yield
        finally:
            self._since = time.perf_counter()
