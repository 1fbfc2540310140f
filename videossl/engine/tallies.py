"""Sums of task results over batches and ranks: read from the device only when somebody looks."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from videossl.distributed import World, sum_over_ranks
from videossl.types import TaskResult, tally, tally_value


class Tallies:
    """Adds up losses and tallies per task; `values()` gives exact means over all that was added, on all ranks."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], Tensor] = {}

    @classmethod
    def continued(
        cls, states: Sequence[Mapping[str, Mapping[str, Tensor]]], world: World
    ) -> "Tallies":
        """From the `state` of each rank: its own, or all of them on the main rank if there were more or fewer ranks."""
        tallies = cls()
        if len(states) == world.size:
            states = [states[world.rank]]
        elif not world.is_main:
            states = []
        for state in states:
            tallies.add_state(state, world.device)
        return tallies

    def add(self, results: Mapping[str, TaskResult], skipped: Tensor | None = None) -> None:
        """Adds one batch, as zero where `skipped` is true; no transfer from the device."""
        for task, result in results.items():
            for name, value in {"loss": tally(result.loss), **result.tallies}.items():
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
            values.setdefault(task, {})[name] = tally_value(summed)
            if name == "accuracy":
                values[task]["answers"] = float(summed[1].sum())
        return values
