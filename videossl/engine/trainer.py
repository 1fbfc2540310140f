"""The training loop: batch, views, one encoder forward for all tasks, one optimiser step; log, evaluate, checkpoint."""

import contextlib
import functools
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from videossl.config import Config
from videossl.data.dataset import ClipDataset, RawClips
from videossl.data.loader import Batches, DecodeStatus, StepPositions, frame_batches, to_clip_batch
from videossl.distributed import World, gather_objects, is_equal_on_all_ranks
from videossl.engine.build import build_augmentation, build_datasets, build_model
from videossl.engine.checkpoint import load_newest
from videossl.engine.checkpoint_writer import CheckpointWriter
from videossl.engine.finite import FiniteGuard, refuse_non_finite
from videossl.engine.interval import Interval
from videossl.engine.logger import RunLogger, describe_tasks, flatten
from videossl.engine.multitask import MultiTask
from videossl.engine.optim import build_optimizer, lr_at
from videossl.engine.preemption import StopAsked, StopRequest
from videossl.engine.quarantine import Quarantine
from videossl.engine.run_folder import open_run_folder
from videossl.engine.status_lines import first_lines, peak_memory_gib, step_line
from videossl.engine.sync_batchnorm import synchronize_batchnorm
from videossl.engine.tallies import Tallies
from videossl.engine.watchdog import Watchdog, is_broken_exchange
from videossl.errors import Preempted, RankLost, UserError
from videossl.rng import RowRandom, fold, row_random
from videossl.types import ClipBatch

log = logging.getLogger("videossl")

PREPARATION_VIDEOS = 32  # that tasks may fit colour classes on: the same ones on every rank


class Trainer:
    """One run of a config in one process of `world`. `run()` trains to the last step and may be called again later.

    Raises UserError for anything the user can mend: config, manifest, folder, checkpoint, too many bad videos.
    """

    def __init__(self, config: Config, world: World, stop: StopRequest | None = None) -> None:
        self.config, self.world = config, world
        self.stop = StopRequest() if stop is None else stop
        videos = config.data.videos_per_step
        if videos % world.size:
            raise UserError(
                f"data.videos_per_step {videos} must be a multiple of the {world.size} processes"
            )
        self.videos_per_rank = videos // world.size
        torch.manual_seed(fold(config.seed, "weights"))
        self.model = build_model(config)
        self.train_data, self.heldout_data = build_datasets(config, self.model, world)
        self.augmentation = build_augmentation(config)
        open_run_folder(config, is_main=world.is_main)
        self.out = Path(config.out)
        self.step = 0
        self.interval = Interval(0)
        self.owes_evaluation = False  # of a run stopped in the middle of one
        self.best: float | None = None  # of train.best_metric
        self.writer = CheckpointWriter(self.out / "checkpoints", keep=config.train.keep_checkpoints)
        self.quarantine = Quarantine(
            self.out, rank=world.rank, max_bad_fraction=config.data.max_bad_fraction
        )
        self.model.to(world.device)
        self.optimizer = build_optimizer(
            self.model,
            lr=config.optim.lr,
            weight_decay=config.optim.weight_decay,
            betas=config.optim.betas,
        )
        self.decode_status = DecodeStatus()
        self.watchdog = Watchdog(world, config.train.watchdog_seconds)
        if not self._resume():
            self._prepare_tasks()
        self.ddp = self._distribute()
        self.guard = FiniteGuard(
            self.model,
            self.out,
            policy=config.train.non_finite,
            rank=world.rank,
            name_of=self.train_data.source_name,
        )

    def run(self) -> None:
        """Trains from the current step to `train.steps`.

        Raises Preempted, with a checkpoint written, when a scheduler asked for it.
        """
        train = self.config.train
        logger = RunLogger(
            self.out, is_main=self.world.is_main, first_step=self.step, total_steps=train.steps
        )
        with logger, contextlib.closing(self.writer), contextlib.ExitStack() as stack:
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
            if self.step >= train.steps:
                logger.say(
                    f"already trained to step {self.step}; raise train.steps in a new folder to go on"
                )
                return
            first, last = self.step * train.accumulate, train.steps * train.accumulate
            # Closed however the run ends, so that no worker outlives it.
            batches = stack.enter_context(
                contextlib.closing(self._batches(self.train_data, first, last))
            )
            self.model.train()
            stack.enter_context(self.watchdog)
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
                name = self.stop.signal_name or "a signal to another rank"
                raise Preempted(
                    f"stopped by {name} at step {self.step}, which is saved: the same command goes on from there"
                ) from stop
            self.writer.finish()

    def _train(self, batches: Iterator[RawClips], logger: RunLogger) -> None:
        train = self.config.train
        if self.owes_evaluation:
            self._log_evaluation(logger)
        while self.step < train.steps:
            self.interval.waited += self.train_step(batches)
            logger.advance(self.step)
            done = self.step == train.steps
            if self.step % train.log_every == 0 or done:
                self._log(logger)
                self.interval = Interval(self.step)
            is_best = False
            if self.heldout_data is not None and (self.step % train.evaluate_every == 0 or done):
                with self.interval.paused():
                    is_best = self._log_evaluation(logger)
            if self.step % train.save_every == 0 or done or is_best:
                with self.interval.paused():
                    self.save(is_best=is_best)
            self.stop.check()

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
            self.watchdog.note(self.step, "waiting for data", lambda: self.decode_status.ask())
            raw = next(batches)
            waited += time.perf_counter() - before
            self.quarantine.record(raw.failures, step=self.step)
            self.quarantine.count(raw.failures, num_samples=len(raw.video_ids))
            self.watchdog.note(self.step, "forward", functools.partial(self._names, raw.video_ids))
            is_last = micro == config.train.accumulate - 1
            with contextlib.nullcontext() if is_last else self._no_sync():
                index = self.step * config.train.accumulate + micro
                rng = self._rows("views", index, len(raw.video_ids))
                # Dropout draws from torch's global generator: seeded last, whatever drew from it before.
                torch.manual_seed(fold(config.seed, "dropout", index, self.world.rank))
                batch = to_clip_batch(raw, self.world.device, self.augmentation, rng)
                with self._autocast():
                    views = self.model.make_views(batch, rng)
                    loss, results = self.ddp(views)
                self.watchdog.note(self.step, "backward")
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
        for results in all_results:
            self.interval.tallies.add(results, skipped)
        self.step += 1
        return waited

    @torch.no_grad()
    def evaluate(self) -> dict[str, dict[str, float]]:
        """{task: {metric: mean}} on clips of the held-out videos, the same ones at every call; no augmentation."""
        assert self.heldout_data is not None
        self.model.eval()
        tallies = Tallies()
        batches = self._batches(self.heldout_data, 0, self.config.train.evaluate_batches)
        for index, raw in enumerate(batches):
            self.stop.check()
            self.watchdog.note(
                self.step, "evaluation", functools.partial(self._names, raw.video_ids)
            )
            self.quarantine.record(raw.failures, step=self.step)
            batch = to_clip_batch(raw, self.world.device, self.augmentation, rng=None)
            with self._autocast():
                rng = self._rows("heldout views", index, len(raw.video_ids))
                _, results = self.model(self.model.make_views(batch, rng))
            tallies.add(results)
        self.model.train()
        return tallies.values()

    def save(self, *, is_best: bool = False) -> None:
        """Writes a checkpoint of this step, in the background; every rank must call it, the main one writes.

        Raises UserError if the weights are not finite.
        """
        self.watchdog.note(self.step, "saving")
        self.guard.read()
        refuse_non_finite(list(self.model.state_dict().items()), self.step)
        tallies = gather_objects(self.interval.tallies.state())
        if self.world.is_main:
            state = {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "config": self.config.model_dump(mode="json"),
                "encoder": self.model.encoder.describe(),
                "tallies": tallies,
                "owes_evaluation": self.owes_evaluation,
                "best": self.best,
            }
            self.writer.save(state, step=self.step, is_best=is_best)

    def lr(self) -> float:
        """The learning rate of the current step."""
        optim = self.config.optim
        return lr_at(
            self.step,
            peak=optim.lr,
            warmup_steps=optim.warmup_steps,
            total_steps=self.config.train.steps,
            final_share=optim.final_lr_share,
        )

    def _batches(self, data: ClipDataset, first: int, last: int) -> Batches:
        positions = StepPositions(
            first,
            last,
            rank=self.world.rank,
            world_size=self.world.size,
            videos_per_rank=self.videos_per_rank,
        )
        return frame_batches(
            data,
            positions,
            **self._worker_options(),
            pin_memory=self.world.device.type == "cuda",
            status=self.decode_status,
        )

    def _worker_options(self) -> dict[str, Any]:
        data = self.config.data
        return {
            "num_workers": data.num_workers,
            "timeout_seconds": data.timeout_seconds,
            "memory_gib": data.worker_memory_gib,
            "quarantine": self.quarantine.videos,
        }

    def _prepare_tasks(self) -> None:
        """Lets tasks fit what they need of the data, on the same videos on every rank."""
        positions = StepPositions(0, 1, rank=0, world_size=1, videos_per_rank=PREPARATION_VIDEOS)
        with self.watchdog:
            self.watchdog.note(
                0, "decoding what tasks prepare on", lambda: self.decode_status.ask()
            )
            (raw,) = frame_batches(
                self.train_data, positions, **self._worker_options(), status=self.decode_status
            )
        self.quarantine.record(raw.failures, step=0)
        batch: ClipBatch = to_clip_batch(raw, self.world.device, self.augmentation, rng=None)
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
        self.owes_evaluation, self.best = state["owes_evaluation"], state["best"]
        self.interval = Interval(self.step, self._own_tallies(state["tallies"]))
        return True

    def _own_tallies(self, states: list[dict[str, dict[str, torch.Tensor]]]) -> Tallies:
        """What this rank had added up since the last log line; of another number of ranks, all of it on the main one."""
        tallies = Tallies()
        if len(states) == self.world.size:
            states = [states[self.world.rank]]
        elif not self.world.is_main:
            states = []
        for state in states:
            tallies.add_state(state, self.world.device)
        return tallies

    def _distribute(self) -> MultiTask | DistributedDataParallel:
        if self.world.size == 1:
            return self.model
        if self.config.train.sync_batchnorm:
            if self.world.device.type == "cuda":
                self.model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
            else:
                synchronize_batchnorm(self.model)
        ids = [self.world.local_rank] if self.world.device.type == "cuda" else None
        return DistributedDataParallel(self.model, device_ids=ids)

    def _names(self, video_ids: torch.Tensor) -> str:
        return ", ".join(self.train_data.source_name(row) for row in video_ids.tolist())

    def _no_sync(self) -> contextlib.AbstractContextManager[None]:
        if isinstance(self.ddp, DistributedDataParallel):
            return self.ddp.no_sync()
        return contextlib.nullcontext()

    def _autocast(self) -> torch.autocast:
        precision = self.config.train.precision
        enabled = precision == "bf16" or (precision == "auto" and self.world.device.type == "cuda")
        return torch.autocast(self.world.device.type, dtype=torch.bfloat16, enabled=enabled)

    def _rows(self, purpose: str, index: int, num_rows: int) -> RowRandom:
        return row_random(
            self.config.seed,
            purpose,
            index,
            rank=self.world.rank,
            world_size=self.world.size,
            num_rows=num_rows,
            device=self.world.device,
        )

    def _log(self, logger: RunLogger) -> None:
        self.guard.read()
        interval = self.interval
        tasks = interval.tallies.values()  # collective: every rank
        steps = self.step - interval.first_step
        videos = steps * self.config.data.videos_per_step * self.config.train.accumulate
        clips = videos * sum(spec.num_clips for spec in self.train_data.specs)
        left = (self.config.train.steps - self.step) * interval.seconds / steps
        values = {
            "epoch": self.step * videos / steps / len(self.train_data),
            "lr": self.lr(),
            "clips_per_second": clips / interval.seconds,
            "data_wait_share": interval.waited / interval.seconds,
            "seconds_left": left,
            "memory_gib": peak_memory_gib(self.world.device),
            "bad_videos": self.quarantine.num_failures,
            "skipped_steps": self.guard.count,
        }
        line = step_line(self.step, self.config.train.steps, tasks, values)
        logger.write(self.step, line, {"tasks": tasks, **values}, "train/")

    def _log_evaluation(self, logger: RunLogger) -> bool:
        """Returns whether train.best_metric is better than ever."""
        self.owes_evaluation = True
        tasks = self.evaluate()
        self.owes_evaluation = False
        line = f"step {self.step} on held-out videos: {describe_tasks(tasks)}"
        logger.write(self.step, line, {"heldout": tasks})
        name = self.config.train.best_metric
        if name is None:
            return False
        values = dict(flatten(tasks))
        if name not in values:
            raise UserError(
                f"train.best_metric {name!r} is not measured; allowed: {', '.join(values)}"
            )
        value = -values[name] if name.endswith("loss") else values[name]
        is_best = self.best is None or value > self.best
        if is_best:
            self.best = value
        return is_best
