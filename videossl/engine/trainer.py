"""The training loop: batch, views, one encoder forward for all tasks, one optimiser step; log, evaluate, checkpoint."""

import contextlib
import functools
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from videossl.config import Config
from videossl.data.dataset import RawClips
from videossl.data.loader import Batches
from videossl.distributed import World, gather_objects, is_equal_on_all_ranks
from videossl.engine.build import (
    autocast,
    begin_with,
    build_datasets,
    build_model,
    build_optimizer,
    distribute,
    no_sync,
    place,
    scheduled_lr,
    share_buffers,
)
from videossl.engine.checkpoint import CheckpointWriter, load_newest
from videossl.engine.diagnostics import Alarms, FiniteGuard, Report, refuse_non_finite
from videossl.engine.evaluation import Details, Evaluation, Evaluations, HeldOut
from videossl.engine.feed import Feed, Quarantine
from videossl.engine.metrics import (
    Interval,
    MetricSums,
    RunLogger,
    duration,
    first_lines,
    peak_memory_gib,
)
from videossl.engine.run_folder import check_run_folder, open_run_folder
from videossl.engine.split import remember_split
from videossl.engine.watchdog import StopAsked, StopRequest, Watchdog, is_broken_exchange
from videossl.errors import Preempted, RankLost, UserError
from videossl.rng import fold
from videossl.types import TaskResult
from videossl.workers import signals

log = logging.getLogger("videossl")

PREPARATION_VIDEOS = 32  # that tasks may fit colour classes on: the same ones on every rank


class Trainer:
    """One run of a config in one process of `world`. `run()` trains to the last step and may be called again later.

    `stop` and `watchdog` are the caller's, who enters them; `evaluations` are run besides the one on held-out videos.
    With `may_change_manifest` a run goes on with a manifest that has changed since.
    Raises UserError for anything the user can mend: config, manifest, folder, checkpoint, too many bad videos.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        *,
        stop: StopRequest | None = None,
        watchdog: Watchdog | None = None,
        evaluations: Sequence[Evaluation] = (),
        may_change_manifest: bool = False,
    ) -> None:
        self.config, self.world = config, world
        self.stop = StopRequest() if stop is None else stop
        self.watchdog = (
            Watchdog(world, config.train.watchdog_seconds) if watchdog is None else watchdog
        )
        if config.data.videos_per_step % world.size:
            raise UserError(
                f"data.videos_per_step {config.data.videos_per_step} must be a multiple of the {world.size} processes"
            )
        torch.manual_seed(fold(config.seed, "weights"))
        self.model = build_model(config)
        self.watchdog.note(0, "opening the data")
        self.out = Path(config.out)
        check_run_folder(config)
        self.train_data, self.heldout_data, split = build_datasets(
            config, self.model, world, run=self.out, may_change=may_change_manifest
        )
        self.step = 0
        self.interval = Interval(0)
        self.writer = CheckpointWriter(self.out / "checkpoints", keep=config.train.keep_checkpoints)
        quarantine = Quarantine(
            self.out, rank=world.rank, max_bad_fraction=config.data.max_bad_fraction
        )
        self.feed = Feed(config, world, quarantine)
        self.alarms = Alarms(is_main=world.is_main)
        heldout = (
            [HeldOut(config, self.feed, self.heldout_data, self.alarms)]
            if self.heldout_data
            else []
        )
        self.evaluations = Evaluations(
            [*heldout, *evaluations],
            best_metric=config.train.best_metric,
            total_steps=config.train.steps,
        )
        open_run_folder(config, is_main=world.is_main)  # nothing is written before
        if world.is_main:
            remember_split(self.out, self.train_data.manifest, split)
        place(self.model, config, world)
        self.optimizer = build_optimizer(
            self.model,
            lr=config.optim.lr,
            weight_decay=config.optim.weight_decay,
            betas=config.optim.betas,
        )
        if not self._resume():
            begin_with(self.model, config.encoder.init)
            self._prepare_tasks()
        self.ddp = distribute(self.model, config, world)
        self.guard = FiniteGuard(
            self.model,
            self.out,
            policy=config.train.non_finite,
            rank=world.rank,
            name_of=self.train_data.source_name,
        )
        self.report = Report(
            config, self.model, self.train_data, self.feed, self.guard, self.alarms
        )

    def run(self) -> None:
        """Trains from the current step to `train.steps`.

        Raises Preempted, with a checkpoint written, when a scheduler asked for it, and RankLost when another rank died.
        """
        train = self.config.train
        logger = RunLogger(
            self.out, is_main=self.world.is_main, first_step=self.step, total_steps=train.steps
        )
        with logger, contextlib.closing(self.writer):
            logger.say(
                first_lines(
                    self.config,
                    self.world,
                    self.model,
                    self.train_data,
                    self.heldout_data,
                    step=self.step,
                )
            )
            if self.step >= train.steps and not self.evaluations.owed:
                logger.say(f"already trained to step {self.step}: raise train.steps to go on")
                return
            # Closed however the run ends, so that no worker outlives it.
            with contextlib.closing(self.batches()) as batches:
                self.model.train()
                self._train_or_explain(batches, logger)
            self.writer.finish()
            self.stop.is_training = False

    def _train_or_explain(self, batches: Iterator[RawClips], logger: RunLogger) -> None:
        self.stop.is_training = True
        try:
            self._train(batches, logger)
        except RuntimeError as error:
            lost = self.watchdog.lost() if is_broken_exchange(error) else None
            if lost is None:
                raise
            raise RankLost(lost) from error
        except StopAsked as stop:
            self.save()
            self.writer.finish()
            text = f"stopped by {self.stop.reason} at step {self.step}, which is saved: the same command goes on from there"
            code = signals.EXIT_CODE if self.stop.is_interrupt else Preempted.EXIT_CODE
            raise Preempted(text if self.world.local_rank == 0 else "", code) from stop

    def _train(self, batches: Iterator[RawClips], logger: RunLogger) -> None:
        train = self.config.train
        if self.evaluations.owed:  # by a run that was stopped in the middle of it
            self.save(is_best=self._evaluate(logger))
        while self.step < train.steps:
            self.interval.waited += self.train_step(batches)
            logger.advance(self.step)
            if self._is_logged(self.step):
                self.report.write(logger, self.step, self.interval, self.lr())
                self.interval = Interval(self.step)
            self.evaluations.become_due(self.step)
            with self.interval.paused():
                is_best = self._evaluate(logger)
                if self.step % train.save_every == 0 or self.step == train.steps or is_best:
                    self.save(is_best=is_best)
            self.stop.check()

    def batches(self) -> Batches:
        """This rank's batches from the current step to the last one; close it to end the workers."""
        accumulate = self.config.train.accumulate
        return self.feed.batches(
            self.train_data, self.step * accumulate, self.config.train.steps * accumulate
        )

    def train_step(self, batches: Iterator[RawClips]) -> float:
        """One optimiser step; returns the seconds spent waiting for data."""
        config, waited = self.config, 0.0
        lr = self.lr()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.guard.begin()
        all_results, video_ids = [], []
        for micro in range(config.train.accumulate):
            before = time.perf_counter()
            self.watchdog.note(self.step, "waiting for data", lambda: self.feed.status.ask())
            raw = next(batches)
            waited += time.perf_counter() - before
            self.feed.quarantine.record(raw.failures, step=self.step)
            self.feed.quarantine.count(raw.failures, num_samples=len(raw.video_ids))
            names = functools.partial(self.train_data.source_names, raw.video_ids)
            self.watchdog.note(self.step, "forward", names)
            is_last = micro == config.train.accumulate - 1
            if is_last and self._is_logged(self.step + 1):
                self.report.probe.arm()
            with contextlib.nullcontext() if is_last else no_sync(self.ddp):
                loss, results = self._forward(raw, micro)
                self.watchdog.note(self.step, "backward")
                if micro == 0 and self._measures_gradients():
                    self.report.gradients.measure(self.model.terms(results))
                (loss / config.train.accumulate).backward()
            all_results.append(results)
            video_ids.append(raw.video_ids)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.optim.clip_norm)
        losses = {
            name: torch.stack([results[name].loss.detach() for results in all_results]).sum()
            for name, _ in self.model.named_tasks()
        }
        skipped = self.guard.update(
            self.optimizer, norm, losses, step=self.step, video_ids=torch.cat(video_ids)
        )
        self.optimizer.zero_grad(set_to_none=True)
        self.model.after_step(skipped)
        for results in all_results:
            self.interval.metric_sums.add(results, skipped)
        self.step += 1
        return waited

    def _forward(self, raw: RawClips, micro: int) -> tuple[torch.Tensor, dict[str, TaskResult]]:
        index = self.step * self.config.train.accumulate + micro
        rng = self.feed.rows("views", index, len(raw.video_ids))
        # Dropout draws from torch's global generator: seeded last, whatever drew from it before.
        torch.manual_seed(fold(self.config.seed, "dropout", index, self.world.rank))
        batch = self.feed.clips(raw, rng)
        with autocast(self.config, self.world.device):
            loss, results = self.ddp(self.model.make_views(batch, rng))
        return loss, results

    def save(self, *, is_best: bool = False) -> None:
        """Writes a checkpoint of this step, in the background; every rank must call it, the main one writes.

        Raises UserError if the weights are not finite.
        """
        self.watchdog.note(self.step, "saving")
        self.guard.read()
        refuse_non_finite(list(self.model.state_dict().items()), self.step)
        metric_sums = gather_objects(self.interval.metric_sums.state())
        if self.world.is_main:
            state = {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "config": self.config.model_dump(mode="json"),
                "encoder": self.model.encoder.describe(),
                "metric_sums": metric_sums,
                "owed": list(self.evaluations.owed),
                "best": self.evaluations.best,
            }
            self.writer.save(state, step=self.step, is_best=is_best)

    def lr(self) -> float:
        """The learning rate of the current step."""
        return scheduled_lr(self.config, self.step)

    def _prepare_tasks(self) -> None:
        """Lets tasks fit what they need of the data, on the same videos on every rank."""
        self.watchdog.note(0, "decoding what tasks prepare on", lambda: self.feed.status.ask())
        batch = self.feed.first_videos(self.train_data, PREPARATION_VIDEOS)
        self.watchdog.note(0, "preparing tasks")
        for _, task in self.model.named_tasks():
            task.prepare(batch, self.config.seed)

    def _resume(self) -> bool:
        newest = load_newest(self.writer.folder, is_main=self.world.is_main)
        state: dict[str, Any] = newest[1] if newest is not None else {"step": 0}
        if not is_equal_on_all_ranks(state["step"]):
            raise UserError(
                f"the ranks see different checkpoints in {self.writer.folder}: name an out=... on storage that all "
                "hosts share"
            )
        if newest is None:
            return False
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.evaluations.owed, self.evaluations.best = state["owed"], state["best"]
        metric_sums = MetricSums.continued(state["metric_sums"], self.world)
        self.interval = Interval(self.step, metric_sums)
        return True

    def _is_logged(self, step: int) -> bool:
        return step % self.config.train.log_every == 0 or step == self.config.train.steps

    def _measures_gradients(self) -> bool:
        every = self.config.monitor.gradients_every
        return every > 0 and self.step % every == 0

    def _evaluate(self, logger: RunLogger) -> bool:
        def poll(details: Details) -> None:
            self.stop.check()
            self.watchdog.note(self.step, "evaluation", details)

        if self.evaluations.owed:
            share_buffers(self.model)
        return self.evaluations.run_owed(self.model, logger, poll, self.step)


def dry_run(trainer: Trainer, num_steps: int) -> str:
    """Takes two optimiser steps and says how long a run of `num_steps` would take, in what memory, with what checkpoints.

    The first step holds what happens once (workers start, kernels are chosen); the second is what a step takes. The
    trainer is used up by it.
    """
    config = trainer.config
    trainer.model.train()
    with contextlib.closing(trainer.batches()) as batches:
        first, (second, waited) = _step(trainer, batches)[0], _step(trainer, batches)
    held = [*trainer.model.state_dict().values(), *_tensors(trainer.optimizer.state_dict())]
    mib = sum(tensor.nbytes for tensor in held) / 2**20
    lines = first_lines(
        config,
        trainer.world,
        trainer.model,
        trainer.train_data,
        trainer.heldout_data,
        step=0,
    )
    place = "of the GPU" if trainer.world.device.type == "cuda" else "of each process"
    return (
        f"{lines}\n"
        f"dry run: first step {first:.2f} s, second {second:.2f} s ({100 * waited / second:.0f} % waiting for data)\n"
        f"time: about {duration(num_steps * second)} for {num_steps} steps, without evaluations\n"
        f"memory {place}: {peak_memory_gib(trainer.world.device):.2f} GiB at most so far\n"
        f"checkpoints: {mib:.1f} MiB each, {config.train.keep_checkpoints} kept\n"
        "nothing was written"
    )


def _step(trainer: Trainer, batches: Batches) -> tuple[float, float]:
    """Seconds of a step, and those of them spent waiting for data."""
    begin = time.perf_counter()
    waited = trainer.train_step(batches)
    if trainer.world.device.type == "cuda":
        torch.cuda.synchronize(trainer.world.device)
    return time.perf_counter() - begin, waited


def _tensors(state: object) -> list[torch.Tensor]:
    leaves = torch.utils._pytree.tree_leaves(state)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
