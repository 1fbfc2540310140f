"""Steps whose loss or gradient is not finite leave no trace in the model, and are written down.

The update is skipped on the device, so that a GPU is never waited for: what happened is read at logging steps.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from videossl.errors import UserError

log = logging.getLogger("videossl")

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
