"""What goes wrong in training, noticed early: features that collapse, losses that are no numbers, gradients that fight."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from videossl.config import Config
from videossl.data.dataset import ClipDataset
from videossl.engine.feed import Feed
from videossl.engine.metrics import Interval, RunLogger, describe_bars, peak_memory_gib, step_line
from videossl.engine.multitask import MultiTask, TaskGradients, describe_gradients
from videossl.errors import UserError
from videossl.models.encoder import Encoder


@dataclass(frozen=True)
class Health:
    """How much the features of the deepest stage vary over one batch, averaged over time and space, on one rank.

    `spread`: the standard deviation over rows, root mean square over channels, relative to the features' own root mean
    square; 0 is complete collapse. `effective_rank`: the exponential of the entropy of the singular values of the centred
    features (Roy and Vetterli, EUSIPCO 2007; as a measure of representations: RankMe, Garrido et al., ICML 2023), 1 to
    `max_rank`. `dead_share`: channels with one value everywhere.
    """

    spread: float
    effective_rank: float
    max_rank: int
    dead_share: float

    def as_dict(self) -> dict[str, float]:
        """Plain numbers for the log."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"features: spread {self.spread:.3f}, effective rank {self.effective_rank:.1f} of {self.max_rank}, "
            f"{100 * self.dead_share:.0f} % dead"
        )


def measure_health(pooled: Tensor, is_dead: Tensor) -> Health:
    """The health of (N, C) pooled features, of which (C,) says whether a channel is dead."""
    rows = pooled.double().cpu()
    centred = rows - rows.mean(0)
    scale = rows.square().mean().sqrt()
    spread = float(centred.square().mean().sqrt() / scale) if scale > 0 else 0.0
    singular = torch.linalg.svdvals(centred)
    # Rounding leaves a constant batch singular values of 1e-16: none of them is a direction.
    singular = singular[singular > 1e-9 * scale * len(rows) ** 0.5]
    shares = singular / singular.sum()
    rank = float(torch.exp(-(shares * shares.log()).sum())) if len(singular) else 1.0
    max_rank = max(1, min(len(rows) - 1, rows.shape[1]))
    return Health(spread, rank, max_rank, float(is_dead.double().mean()))


class FeatureProbe:
    """Takes features on their way out of an encoder, when it was told to; nothing is read from the device until asked."""

    def __init__(self, encoder: Encoder) -> None:
        self._is_armed = False
        self._taken: list[tuple[Tensor, Tensor]] = []
        encoder.register_forward_hook(self._take)

    def arm(self) -> None:
        """Takes the features of each pass until they are read."""
        self._is_armed = True

    def read(self) -> Health | None:
        """The health of the pass with the most rows since `arm`; None if there was none."""
        taken, self._taken, self._is_armed = self._taken, [], False
        return measure_health(*max(taken, key=lambda t: len(t[0]))) if taken else None

    @torch.no_grad()
    def _take(self, encoder: Encoder, arguments: Any, features: dict[str, Any]) -> None:
        deepest = features.get(encoder.spec.deepest_stage)
        if not self._is_armed or deepest is None:
            return
        data = deepest.data
        pooled = data.mean(dim=(2, 3, 4), dtype=torch.float32)
        is_dead = data.amax(dim=(0, 2, 3, 4)) == data.amin(dim=(0, 2, 3, 4))
        self._taken.append((pooled, is_dead))


log = logging.getLogger("videossl")

SUSPICIOUS_ACCURACY = 0.95  # of a self-made question: presumed a shortcut until shown otherwise
MIN_ANSWERS = 100  # before an accuracy is believed: chosen
MIN_SPREAD = 0.02  # of features: every untrained encoder here has .3 to .8 on real clips (measured)
MIN_RANK_SHARE = 0.02  # of the effective rank that so many rows could have; chosen


class Alarms:
    """Says each alarm once, and again when it had gone in between. `said` counts them.

    Every rank keeps one; only the main one speaks.
    """

    def __init__(self, *, is_main: bool) -> None:
        self.said = 0
        self._is_main = is_main
        self._standing: set[str] = set()

    def check_tasks(self, tasks: Mapping[str, Mapping[str, float]], where: str) -> None:
        """A task whose accuracy is beyond belief."""
        for name, metrics in tasks.items():
            self._sound(
                f"{where} {name}",
                metrics["num_samples"] >= MIN_ANSWERS and metrics["accuracy"] > SUSPICIOUS_ACCURACY,
                f"{name} answers {metrics['accuracy']:.3f} of the {where} questions ({describe_bars(metrics)}): "
                "suspiciously perfect, a shortcut until shown otherwise",
            )

    def check_health(self, health: Health) -> None:
        """Features that tell nothing apart."""
        is_flat = health.spread < MIN_SPREAD
        is_thin = health.effective_rank < 1 + MIN_RANK_SHARE * (health.max_rank - 1)
        self._sound(
            "collapse",
            is_flat or is_thin,
            f"the encoder's features collapse: relative standard deviation {health.spread:.1e}, effective rank "
            f"{health.effective_rank:.1f} of {health.max_rank}, {100 * health.dead_share:.0f} % dead channels; lower "
            "optim.lr, or go back to an earlier checkpoint",
        )

    def _sound(self, key: str, is_on: bool, text: str) -> None:
        if is_on and key not in self._standing and self._is_main:
            self.said += 1
            log.warning("ALARM: %s", text)
        (self._standing.add if is_on else self._standing.discard)(key)


MAX_IN_A_ROW = 20  # steps skipped before a run is called diverged; chosen


@dataclass(frozen=True)
class _Step:
    step: int
    is_bad: Tensor
    video_ids: Tensor
    losses: dict[str, Tensor]


class FiniteGuard:
    """Skips steps that are not finite on any rank (policy `skip`), or ends the run at the first (`abort`).

    `count` is the number of steps skipped by this process. `nonfinite.jsonl` gets a line per rank and step with the
    losses and the videos.
    """

    def __init__(
        self,
        model: nn.Module,
        out: Path,
        *,
        policy: Literal["skip", "abort"],
        rank: int,
        name_of: Callable[[int], str],
    ) -> None:
        self.count = 0
        # On a GPU what happened is read at log steps, so that the host does not wait in between.
        self.looks_at_once = next(model.parameters()).device.type == "cpu"
        self._policy, self._rank, self._name_of = policy, rank, name_of
        self._path = out / "nonfinite.jsonl"
        # Batch statistics take what a bad batch gives them before anyone knows: they are put back.
        self._buffers = list(model.buffers())
        self._kept = [buffer.clone() for buffer in self._buffers]
        self._unread: list[_Step] = []
        self._num_in_a_row = 0

    def begin(self) -> None:
        """Before a step's first forward."""
        for kept, buffer in zip(self._kept, self._buffers, strict=True):
            kept.copy_(buffer)

    def update(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_norm: Tensor,
        losses: dict[str, Tensor],
        *,
        step: int,
        video_ids: Tensor,
    ) -> Tensor:
        """The optimiser's step, unless a loss of any rank or the gradient is not finite. Returns whether it was skipped.

        `losses` are this rank's, summed over its batches. Raises UserError as the policy says.
        """
        total = torch.stack([gradient_norm.detach(), *(loss.float() for loss in losses.values())])
        is_bad = (~total.isfinite().all()).float()
        if dist.is_initialized():
            dist.all_reduce(is_bad, dist.ReduceOp.MAX)
        if self.looks_at_once:
            if not is_bad.item():
                optimizer.step()
        else:
            # As torch.amp.GradScaler does: the fused kernel looks at it, and the host does not.
            optimizer.found_inf = is_bad  # type: ignore[attr-defined]
            optimizer.step()
        for kept, buffer in zip(self._kept, self._buffers, strict=True):
            buffer.copy_(torch.where(is_bad.bool(), kept, buffer))
        self._unread.append(_Step(step, is_bad, video_ids, losses))
        if self.looks_at_once:
            self.read()
        return is_bad.bool()

    def read(self) -> None:
        """Looks at the steps since the last call, and writes down the bad ones."""
        steps, self._unread = self._unread, []
        if not steps:
            return
        for step, is_bad in zip(
            steps, torch.stack([s.is_bad for s in steps]).tolist(), strict=True
        ):
            self._num_in_a_row = self._num_in_a_row + 1 if is_bad else 0
            if is_bad:
                self._report(step)

    def _report(self, step: _Step) -> None:
        self.count += 1
        losses = {name: str(loss.item()) for name, loss in step.losses.items()}
        record = {
            "step": step.step,
            "rank": self._rank,
            "losses": losses,
            "videos": [self._name_of(row) for row in step.video_ids.tolist()],
        }
        try:
            with self._path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            log.warning("%s cannot be written: %s", self._path, error.strerror)
        said = ", ".join(f"{name} {value}" for name, value in losses.items())
        text = (
            f"loss or gradient is not finite at step {step.step} ({said}; videos in {self._path})"
        )
        remedy = "lower optim.lr or optim.clip_norm"
        if self._policy == "abort":
            raise UserError(
                f"{text}: train.non_finite=abort ends the run; {remedy}, or set it to skip"
            )
        if self._num_in_a_row >= MAX_IN_A_ROW:
            raise UserError(
                f"{text}, the {MAX_IN_A_ROW}th in a row: the run has diverged; {remedy}"
            )
        if self._rank == 0:
            log.warning("%s: the step is skipped", text)


def refuse_non_finite(named: Sequence[tuple[str, Tensor]], step: int) -> None:
    """Raises UserError, naming the first one, if weights or buffers hold values that are not finite."""
    checked = [(name, value) for name, value in named if value.is_floating_point()]
    is_finite = torch.stack([value.isfinite().all() for _, value in checked]).tolist()
    if not all(is_finite):
        name = checked[is_finite.index(False)][0]
        raise UserError(
            f"{name} is not finite at step {step}, so no checkpoint is written: the earlier ones are from before; "
            "lower optim.lr or optim.clip_norm"
        )


class Report:
    """Looks at a run, at log steps only. The step arms `probe` and lets `gradients` measure; neither waits for a GPU."""

    def __init__(
        self,
        config: Config,
        model: MultiTask,
        data: ClipDataset,
        feed: Feed,
        guard: FiniteGuard,
        alarms: Alarms,
    ) -> None:
        self.probe = FeatureProbe(model.encoder)
        self.gradients = TaskGradients(model.encoder)
        self._config, self._model, self._data = config, model, data
        self._feed, self._guard, self._alarms = feed, guard, alarms

    def write(self, logger: RunLogger, step: int, interval: Interval, lr: float) -> None:
        """Every rank must call it: the sums of all are added up."""
        config = self._config
        self._guard.read()
        tasks = interval.metric_sums.values()
        self._alarms.check_tasks(tasks, "training")
        steps = step - interval.first_step
        videos = steps * config.data.videos_per_step * config.train.accumulate
        clips = videos * sum(spec.num_clips for spec in self._data.specs)
        values = {
            "epoch": step * videos / steps / len(self._data),
            "lr": lr,
            "clips_per_second": clips / interval.seconds,
            "data_time_fraction": interval.waited / interval.seconds,
            "eta_seconds": (config.train.steps - step) * interval.seconds / steps,
            "memory_gib": peak_memory_gib(self._feed.device),
            "failed_decodes": self._feed.quarantine.num_failures,
            "skipped_steps": self._guard.count,
        }
        insight, lines = self._insight()
        line = step_line(step, config.train.steps, tasks, values)
        logger.write(step, line, {"tasks": tasks, **values, **insight}, "train/")
        for text in lines:
            logger.say(f"  {text}")

    def _insight(self) -> tuple[dict[str, Any], list[str]]:
        """What is known of features, gradients and learned weights: for the record, and in lines for people."""
        insight: dict[str, Any] = {}
        lines = []
        if weights := self._model.learned_weights():
            insight["weights"] = weights
            said = ", ".join(f"{name} {weight:.3g}" for name, weight in weights.items())
            lines.append(f"weights learned: {said}")
        if gradients := self.gradients.read():
            insight["gradients"] = gradients
            lines.append(describe_gradients(gradients))
        if (health := self.probe.read()) is not None:
            self._alarms.check_health(health)
            insight["features"] = health.as_dict()
            if gradients:  # now and then is enough for people
                lines.append(str(health))
        return insight, lines
