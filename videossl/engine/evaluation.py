"""What is measured on the model while it trains: objects handed to the trainer, run when due, the best value kept.

The trainer knows no benchmark: held-out clips, kNN and tracking are all given to it.
"""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from videossl.config import Config
from videossl.data.dataset import ClipDataset
from videossl.distributed import from_main
from videossl.engine.build import autocast
from videossl.engine.diagnostics import Alarms
from videossl.engine.feed import Feed
from videossl.engine.metrics import MetricSums, RunLogger, describe_tasks, flatten
from videossl.engine.multitask import MultiTask
from videossl.errors import UserError
from videossl.stats import too_few

Details = Callable[[], str]  # of a piece of work, for whoever asks why a run stands still
Poll = Callable[[Details], None]


@dataclass(frozen=True)
class Measured:
    """Numbers by name, maybe nested; the line that people read; pictures by name, (3, H, W) uint8 RGB."""

    values: Mapping[str, Any]
    line: str
    pictures: Mapping[str, Tensor] = field(default_factory=dict)


class Evaluation(Protocol):
    """Something measured every `every` steps and at the last one.

    It is called on every rank, with the model in evaluation mode and without gradient. Before each piece of work it must
    call `poll` with what it is about to look at, equally often on every rank: that is where a run can be stopped. What the
    main rank returns counts.
    """

    name: str
    every: int

    def __call__(self, model: MultiTask, poll: Poll) -> Measured: ...


class Evaluations:
    """The evaluations of a run, in order. `owed` are those a stopped run has not finished, `best` is the best value of
    `best_metric` (a path such as val/arrow_of_time/accuracy; less is better if it ends in loss).

    Raises UserError if no evaluation measures `best_metric`.
    """

    def __init__(
        self, evaluations: Sequence[Evaluation], *, best_metric: str | None, total_steps: int
    ) -> None:
        self.owed: list[str] = []
        self.best: float | None = None
        self._evaluations, self._total_steps = list(evaluations), total_steps
        self._best_metric = best_metric
        names = [evaluation.name for evaluation in evaluations]
        if best_metric is not None and best_metric.split("/")[0] not in names:
            raise UserError(
                f"train.best_metric {best_metric!r} is not measured: it must begin with one of "
                f"{', '.join(f'{name}/' for name in names) or '(this run evaluates nothing)'}"
            )

    def become_due(self, step: int) -> None:
        """Adds what is due after this step to `owed`."""
        self.owed += [
            evaluation.name
            for evaluation in self._evaluations
            if step % evaluation.every == 0 or step == self._total_steps
        ]

    def run_owed(self, model: MultiTask, logger: RunLogger, poll: Poll, step: int) -> bool:
        """Runs what is owed; returns whether `best_metric` is better than ever, the same on every rank."""
        is_best = False
        for evaluation in self._evaluations:
            if evaluation.name not in self.owed:
                continue
            model.eval()
            with torch.no_grad():
                measured = evaluation(model, poll)
            model.train()
            self.owed.remove(evaluation.name)
            line = f"step {step} {measured.line}"
            logger.write(step, line, {evaluation.name: measured.values})
            logger.draw(step, evaluation.name, measured.pictures)
            is_best |= self._is_best(evaluation.name, measured.values)
        return is_best

    def _is_best(self, name: str, values: Mapping[str, Any]) -> bool:
        metric = self._best_metric
        if metric is None or metric.split("/")[0] != name:
            return False
        flat = from_main(dict(flatten({name: values})))
        if metric not in flat:
            raise UserError(
                f"train.best_metric {metric!r} is not measured; allowed: {', '.join(flat)}"
            )
        value = -flat[metric] if metric.endswith("loss") else flat[metric]
        if self.best is not None and not value > self.best:
            return False
        self.best = value
        return True


ERRORS_OF_INTERVAL = 1.96  # standard errors to each side, of 95 %


class HeldOut:
    """An Evaluation: each task's metrics over `train.eval_batches` batches, and pictures of the first of them."""

    name = "val"

    def __init__(self, config: Config, feed: Feed, data: ClipDataset, alarms: Alarms) -> None:
        self.every = config.train.eval_every
        self._config, self._feed, self._data, self._alarms = config, feed, data, alarms

    def __call__(self, model: MultiTask, poll: Poll) -> Measured:
        """See Evaluation."""
        metric_sums, pictures = MetricSums(), {}
        batches = self._feed.batches(self._data, 0, self._config.train.eval_batches)
        with contextlib.closing(batches):
            for index, raw in enumerate(batches):
                poll(lambda raw=raw: self._data.source_names(raw.video_ids))  # type: ignore[misc]
                self._feed.quarantine.record(raw.failures, step=0)
                batch = self._feed.clips(raw, None)
                rng = self._feed.rows("heldout views", index, len(raw.video_ids))
                with autocast(self._config, self._feed.device):
                    views = model.make_views(batch, rng)
                    _, results = model(views)
                    if index == 0 and self._feed.is_main and self._config.monitor.pictures:
                        pictures = model.draw(views)
                metric_sums.add(results)
        tasks = metric_sums.values()
        self._alarms.check_tasks(tasks, "held-out")
        return Measured(tasks, f"on {self._describe_videos()}: {describe_tasks(tasks)}", pictures)

    def _describe_videos(self) -> str:
        """How many are asked, and how far an accuracy of theirs is known: answers of one video are not independent."""
        asked = self._config.train.eval_batches * self._config.data.videos_per_step
        count = min(len(self._data), asked)
        widest = ERRORS_OF_INTERVAL * math.sqrt(0.25 / count)
        return too_few(count, "held-out videos") or (
            f"{count} held-out videos (95 % within {widest:.2f})"
        )
