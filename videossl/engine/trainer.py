"""The training loop: batch, views, one encoder forward for all tasks, one optimiser step; log, evaluate, checkpoint."""

import contextlib
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from videossl.config import Config
from videossl.data.dataset import ClipDataset, RawClips
from videossl.data.loader import Batches, StepPositions, frame_batches, to_clip_batch
from videossl.distributed import World, barrier
from videossl.engine.build import build_augmentation, build_datasets, build_model
from videossl.engine.checkpoint import load_checkpoint, save_checkpoint
from videossl.engine.logger import RunLogger, describe_tasks
from videossl.engine.multitask import MultiTask
from videossl.engine.optim import build_optimizer, lr_at
from videossl.engine.quarantine import Quarantine
from videossl.engine.run_folder import open_run_folder
from videossl.engine.tallies import Tallies
from videossl.errors import UserError
from videossl.models.encoder import count_parameters
from videossl.rng import RowRandom, fold, row_random
from videossl.types import ClipBatch

log = logging.getLogger("videossl")

PREPARATION_VIDEOS = 32  # that tasks may fit colour classes on: the same ones on every rank


class Trainer:
    """One run of a config in one process of `world`. `run()` trains to the last step and may be called again later.

    Raises UserError for anything the user can mend: config, manifest, folder, checkpoint, too many bad videos.
    """

    def __init__(self, config: Config, world: World) -> None:
        self.config, self.world = config, world
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
        checkpoint = open_run_folder(config, is_main=world.is_main)
        barrier()  # no rank writes before the folder is there
        self.out = Path(config.out)
        self.step = 0
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
        if checkpoint is not None:
            self._resume(checkpoint)
        else:
            self._prepare_tasks()
        self.ddp = self._distribute()

    def run(self) -> None:
        """Trains from the current step to `train.steps`."""
        train = self.config.train
        logger = RunLogger(
            self.out, is_main=self.world.is_main, first_step=self.step, total_steps=train.steps
        )
        with logger, contextlib.ExitStack() as stack:
            logger.say(self.describe())
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
            tallies, waited, started = Tallies(), 0.0, time.perf_counter()
            logged_step = self.step
            self.model.train()
            while self.step < train.steps:
                waited += self.train_step(batches, tallies)
                logger.advance(self.step)
                done = self.step == train.steps
                if self.step % train.log_every == 0 or done:
                    elapsed = time.perf_counter() - started
                    self._log(logger, tallies, waited, elapsed, self.step - logged_step)
                    tallies, waited, logged_step = Tallies(), 0.0, self.step
                    started = time.perf_counter()
                if self.heldout_data is not None and (
                    self.step % train.evaluate_every == 0 or done
                ):
                    self._log_evaluation(logger)
                    started = time.perf_counter()
                if self.step % train.save_every == 0 or done:
                    self.save()
                    started = time.perf_counter() if not done else started

    def train_step(self, batches: Iterator[RawClips], tallies: Tallies) -> float:
        """One optimiser step; returns the seconds spent waiting for data."""
        config, waited = self.config, 0.0
        lr = self.lr()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        for micro in range(config.train.accumulate):
            before = time.perf_counter()
            raw = next(batches)
            waited += time.perf_counter() - before
            self.quarantine.record(raw.failures, step=self.step)
            self.quarantine.count(raw.failures, num_samples=len(raw.video_ids))
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
                (loss / config.train.accumulate).backward()
            tallies.add(results)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.optim.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
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
            self.quarantine.record(raw.failures, step=self.step)
            batch = to_clip_batch(raw, self.world.device, self.augmentation, rng=None)
            with self._autocast():
                rng = self._rows("heldout views", index, len(raw.video_ids))
                _, results = self.model(self.model.make_views(batch, rng))
            tallies.add(results)
        self.model.train()
        return tallies.values()

    def save(self) -> None:
        """Writes a checkpoint of this step; only the main rank does."""
        if self.world.is_main:
            state = {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "config": self.config.model_dump(mode="json"),
                "encoder": self.model.encoder.describe(),
            }
            save_checkpoint(
                self.out / "checkpoints",
                state,
                step=self.step,
                keep=self.config.train.keep_checkpoints,
            )

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

    def describe(self) -> str:
        """What this run is, in a few lines."""
        config, data = self.config, self.train_data
        heldout = len(self.heldout_data) if self.heldout_data is not None else 0
        encoder = self.model.encoder
        return (
            f"videos: {len(data)} to train on, {heldout} held out by source group; left out: {data.left_out}\n"
            f"batch: {config.data.videos_per_step} videos over {self.world.size} process(es), "
            f"x{config.train.accumulate} accumulated, on {self.world.device.type}\n"
            f"encoder: {encoder.spec.name} to {encoder.spec.deepest_stage}, "
            f"{count_parameters(encoder) / 1e6:.2f} M parameters; tasks: {', '.join(config.tasks)}\n"
            f"out: {self.out}, from step {self.step} to {config.train.steps}"
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
        (raw,) = frame_batches(self.train_data, positions, **self._worker_options())
        self.quarantine.record(raw.failures, step=0)
        batch: ClipBatch = to_clip_batch(raw, self.world.device, self.augmentation, rng=None)
        for _, task in self.model.named_tasks():
            task.prepare(batch, self.config.seed)

    def _resume(self, path: Path) -> None:
        state = load_checkpoint(path)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def _distribute(self) -> MultiTask | DistributedDataParallel:
        if self.world.size == 1:
            return self.model
        if self.config.train.sync_batchnorm:
            if self.world.device.type != "cuda":
                raise UserError(
                    "train.sync_batchnorm needs GPUs: torch has it for CUDA only; set it to false"
                )
            self.model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        ids = [self.world.local_rank] if self.world.device.type == "cuda" else None
        return DistributedDataParallel(self.model, device_ids=ids)

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

    def _log(
        self, logger: RunLogger, tallies: Tallies, waited: float, elapsed: float, steps: int
    ) -> None:
        tasks = tallies.values()  # collective: every rank
        for name, metrics in tasks.items():
            if not math.isfinite(metrics["loss"]):
                raise UserError(
                    f"the loss of {name} is {metrics['loss']} at step {self.step}: lower optim.lr or optim.clip_norm; "
                    "the last checkpoint is from before"
                )
        videos = steps * self.config.data.videos_per_step * self.config.train.accumulate
        clips = videos * sum(spec.num_clips for spec in self.train_data.specs)
        values = {
            "lr": self.lr(),
            "clips_per_second": clips / elapsed,
            "data_wait_share": waited / elapsed,
            "bad_videos": self.quarantine.num_failures,
        }
        line = (
            f"step {self.step}/{self.config.train.steps}  {describe_tasks(tasks)}  lr {values['lr']:.2e}  "
            f"{values['clips_per_second']:.1f} clips/s  waiting {100 * values['data_wait_share']:.0f} %"
            + (f"  bad {values['bad_videos']}" if values["bad_videos"] else "")
        )
        logger.write(self.step, line, {"tasks": tasks, **values}, "train/")

    def _log_evaluation(self, logger: RunLogger) -> None:
        tasks = self.evaluate()
        line = f"step {self.step} on held-out videos: {describe_tasks(tasks)}"
        logger.write(self.step, line, {"heldout": tasks})
