"""One encoder, many questions: all views of a shape go through the encoder in one call. The module DDP wraps."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from videossl.models.encoder import STAGES, Encoder
from videossl.pretext.task import PretextTask
from videossl.rng import RowRandom
from videossl.types import ClipBatch, FeatureMaps, TaskResult, Views


@dataclass(frozen=True)
class _Request:
    """Rows one view needs encoded, down to one stage."""

    task: str
    view: str
    rows: Tensor
    depth: int


class MultiTask(nn.Module):
    """An encoder and its tasks; `forward(views)` encodes the views of all tasks together and lets each task judge.

    `weights` are the fixed factors of the tasks' losses. With `learn_weights` each loss l is besides weighed by its own
    uncertainty, w (exp(-s) l + s / 2) with s = log sigma^2 learned from 0 (Kendall, Gal, Cipolla, CVPR 2018, section 3.2).
    """

    def __init__(
        self,
        encoder: Encoder,
        tasks: Mapping[str, PretextTask],
        weights: Mapping[str, float],
        *,
        learn_weights: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.tasks = nn.ModuleDict(tasks)
        self.weights = dict(weights)
        self.log_variances = (
            nn.ParameterDict({name: torch.zeros(()) for name in tasks}) if learn_weights else None
        )

    def make_views(self, batch: ClipBatch, rng: RowRandom) -> dict[str, Views]:
        """Each task's views of the batch, without gradient."""
        with torch.no_grad():
            return {name: task.make_views(batch, rng) for name, task in self.named_tasks()}

    def forward(self, views: Mapping[str, Views]) -> tuple[Tensor, dict[str, TaskResult]]:
        """The weighted sum of the tasks' losses, and each task's own result."""
        features = self.encode(views)
        results = {
            name: task(features[name], views[name].targets) for name, task in self.named_tasks()
        }
        return torch.stack(list(self.terms(results).values())).sum(), results

    def terms(self, results: Mapping[str, TaskResult]) -> dict[str, Tensor]:
        """What each task adds to the total loss."""
        if self.log_variances is None:
            return {name: self.weights[name] * result.loss for name, result in results.items()}
        return {
            name: self.weights[name] * (torch.exp(-s) * results[name].loss + s / 2)
            for name, s in self.log_variances.items()
        }

    def learned_weights(self) -> dict[str, float]:
        """The factors that learned weights have come to; empty where they are fixed."""
        learned = self.log_variances.items() if self.log_variances is not None else ()
        return {name: self.weights[name] * float(torch.exp(-s.detach())) for name, s in learned}

    def draw(self, views: Mapping[str, Views]) -> dict[str, Tensor]:
        """Pictures (3, H, W) uint8 of what the tasks see and answer, by `task/name`; call `eval` before."""
        with torch.no_grad():
            features = self.encode(views)
            return {
                f"{name}/{title}": picture
                for name, task in self.named_tasks()
                for title, picture in task.draw(views[name], features[name]).items()
            }

    def encode(self, views: Mapping[str, Views]) -> dict[str, dict[str, FeatureMaps]]:
        """{task: {view: features at the task's stage}}, by one encoder call per shape of view.

        A tensor that several views share is encoded once. Rows are ordered by the deepest stage anyone reads of them, so
        that the shallow ones leave the pass early.
        """
        requests = defaultdict(list)
        for name, task in self.named_tasks():
            for view, rows in views[name].inputs.items():
                requests[rows.shape[1:]].append(
                    _Request(name, view, rows, STAGES.index(task.stage))
                )
        features: dict[str, dict[str, FeatureMaps]] = defaultdict(dict)
        for group in requests.values():
            for request, maps in self._encode_shape(group):
                features[request.task][request.view] = maps
        return features

    def _encode_shape(self, requests: list[_Request]) -> list[tuple[_Request, FeatureMaps]]:
        tensors: dict[tuple[object, ...], Tensor] = {}
        depths: dict[tuple[object, ...], int] = {}
        for request in requests:
            key = _identity(request.rows)
            tensors[key] = request.rows
            depths[key] = max(depths.get(key, 0), request.depth)
        ordered = sorted(tensors, key=lambda key: -depths[key])
        first_row, num_rows = {}, 0
        for key in ordered:
            first_row[key] = num_rows
            num_rows += len(tensors[key])
        rows_per_stage = {
            stage: sum(len(tensors[key]) for key in ordered if depths[key] >= depth)
            for depth, stage in enumerate(STAGES)
        }
        rows = (
            torch.cat([tensors[key] for key in ordered])
            if len(ordered) > 1
            else tensors[ordered[0]]
        )
        encoded = self.encoder(rows, rows_per_stage)
        return [
            (request, encoded[STAGES[request.depth]][start : start + len(request.rows)])
            for request in requests
            for start in [first_row[_identity(request.rows)]]
        ]

    def named_tasks(self) -> list[tuple[str, PretextTask]]:
        return list(self.tasks.items())  # type: ignore[arg-type]


def _identity(tensor: Tensor) -> tuple[object, ...]:
    """Equal for tensors that are the same memory read the same way."""
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
