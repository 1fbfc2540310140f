"""One encoder, many questions: all views of a shape go through the encoder in one call. The module DDP wraps."""

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from videossl.engine.shared_pass import Request, SharedPass
from videossl.models.encoder import STAGES, Encoder
from videossl.models.momentum import follow, slow_copy
from videossl.pretext.task import PretextTask
from videossl.rng import RowRandom
from videossl.types import ClipBatch, FeatureMaps, TaskResult, Views


class MultiTask(nn.Module):
    """An encoder and its tasks; `forward(views)` encodes the views of all tasks together and lets each task judge.

    `weights` are the fixed factors of the tasks' losses. With `learn_weights` each loss l is besides weighed by its own
    uncertainty, w (exp(-s) l + s / 2) with s = log sigma^2 learned from 0 (Kendall, Gal, Cipolla, CVPR 2018, section 3.2).
    Tasks with a `momentum` share one slow copy of the encoder. Raises ValueError if they want it to follow at two speeds.
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
        self._task_names = list(tasks)
        self.tasks = nn.ModuleDict({_key(name): task for name, task in tasks.items()})
        self.weights = dict(weights)
        self.log_variances = (
            nn.ParameterDict({_key(name): torch.zeros(()) for name in tasks})
            if learn_weights
            else None
        )

        momenta = {task.momentum for task in tasks.values() if task.momentum is not None}
        if len(momenta) > 1:
            raise ValueError(
                f"tasks share one slow encoder, but their momentum is {' and '.join(map(str, sorted(momenta)))}"
            )
        self.momentum = momenta.pop() if momenta else None
        self.slow_encoder = None if self.momentum is None else slow_copy(encoder)

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
        terms = {}
        for name, result in results.items():  # in the order of fixed weights: the same sum
            s = self.log_variances[_key(name)]
            terms[name] = self.weights[name] * (torch.exp(-s) * result.loss + s / 2)
        return terms

    def learned_weights(self) -> dict[str, float]:
        """The factors that learned weights have come to; empty where they are fixed."""
        if self.log_variances is None:
            return {}
        learned = {name: self.log_variances[_key(name)].detach() for name in self._task_names}
        return {name: self.weights[name] * float(torch.exp(-s)) for name, s in learned.items()}

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

        See `SharedPass` for what is shared.
        """
        requests = defaultdict(list)
        for name, task in self.named_tasks():
            depth = STAGES.index(task.stage)
            for view in views[name].names:
                source = views[name].reversals.get(view)
                rows = views[name].inputs[source or view]
                request = Request(name, view, rows, depth, is_reversed=source is not None)
                requests[rows.shape[1:]].append(request)
        features: dict[str, dict[str, FeatureMaps]] = defaultdict(dict)
        for group in requests.values():
            for request, maps in SharedPass(group, self.encoder).run():
                features[request.task][request.view] = maps
        for name, task in self.named_tasks():
            for view, rows in views[name].slow_inputs.items():
                assert self.slow_encoder is not None
                with torch.no_grad():
                    features[name][view] = self.slow_encoder(rows)[task.stage]
        return features

    def after_step(self, skipped: Tensor) -> None:
        """Lets what follows the weights follow them; `skipped` is true if the optimiser's step did not count."""
        if self.slow_encoder is not None and self.momentum is not None:
            follow(self.slow_encoder, self.encoder, self.momentum, skipped)
        for _, task in self.named_tasks():
            task.after_step(skipped)

    def named_tasks(self) -> list[tuple[str, PretextTask]]:
        """The tasks by the names that the config gives them."""
        return [(name, self.tasks[_key(name)]) for name in self._task_names]  # type: ignore[misc]


def _key(name: str) -> str:
    """Of a task among modules: those of torch may hold no dots."""
    return name.replace(".", "/")
