"""One encoder, many questions: all views of a shape go through the encoder in one call. The module DDP wraps."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn

from videossl.distributed import sum_over_ranks, world_size
from videossl.models.encoder import STAGES, Encoder, Segment
from videossl.models.heads import follow, slow_copy
from videossl.pretext.task import PretextTask
from videossl.rng import RowRandom
from videossl.types import ClipBatch, FeatureMaps, TaskResult, Views


@dataclass(frozen=True)
class Request:
    """Rows that one view of a task needs encoded, down to one stage (its index in STAGES)."""

    task: str
    view: str
    rows: Tensor
    depth: int
    is_reversed: bool = False


_Key = tuple[object, ...]


class SharedPass:
    """The pass for requests whose rows have one shape."""

    def __init__(self, requests: list[Request], encoder: Encoder) -> None:
        self._requests, self._encoder = requests, encoder
        self._last_frame_wise = len(encoder.frame_wise_stages) - 1
        self._tensors: dict[_Key, Tensor] = {_identity(r.rows): r.rows for r in requests}
        self._depths: dict[tuple[_Key, bool], int] = {}  # deepest stage read, forward and backward
        for request in requests:
            view = (_identity(request.rows), request.is_reversed)
            self._depths[view] = max(self._depths.get(view, -1), request.depth)
        self._has_reversals = any(is_reversed for _, is_reversed in self._depths)
        # What enters: each tensor once, as deep as its forward views, and its reversals up to where they begin.
        entering = dict.fromkeys(self._tensors, -1)
        for (key, is_reversed), depth in self._depths.items():
            needed = min(depth, self._last_frame_wise) if is_reversed else depth
            entering[key] = max(entering[key], needed)
        self._entering = dict(sorted(entering.items(), key=lambda item: -item[1]))
        self._first_row: dict[_Key, int] = {}
        num_rows = 0
        for key in self._entering:
            self._first_row[key] = num_rows
            num_rows += len(self._tensors[key])

    def run(self) -> list[tuple[Request, FeatureMaps]]:
        """Each request with its features."""
        tensors = [self._tensors[key] for key in self._entering]
        rows = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
        if not self._has_reversals:
            encoded = self._encoder(rows, self._rows_per_stage([]))
            return [(r, self._entered(r, encoded)) for r in self._requests]
        places = self._places()
        segments = [segment for segment, _ in places.values()]
        encoded = self._encoder(rows, self._rows_per_stage(segments), segments)
        results = []
        for request in self._requests:
            if request.depth <= self._last_frame_wise:
                results.append((request, self._entered(request, encoded)))
                continue
            _, first = places[_identity(request.rows), request.is_reversed]
            maps = encoded[STAGES[request.depth]]
            results.append((request, maps[first : first + len(request.rows)]))
        return results

    def _places(self) -> dict[tuple[_Key, bool], tuple[Segment, int]]:
        """What goes on behind the frame-wise stages, deepest first: its rows before, and its first row after."""
        deep = [item for item in self._depths.items() if item[1] > self._last_frame_wise]
        places, first = {}, 0
        for (key, is_reversed), _ in sorted(deep, key=lambda item: -item[1]):
            start = self._first_row[key]
            segment = Segment(start, start + len(self._tensors[key]), is_reversed)
            places[key, is_reversed] = (segment, first)
            first += len(segment)
        return places

    def _rows_per_stage(self, segments: list[Segment]) -> dict[str, int]:
        counts = {}
        for depth, stage in enumerate(STAGES):
            if segments and depth > self._last_frame_wise:
                keys = [key for (key, _), reached in self._depths.items() if reached >= depth]
            else:
                keys = [key for key, reached in self._entering.items() if reached >= depth]
            counts[stage] = sum(len(self._tensors[key]) for key in keys)
        return counts

    def _entered(self, request: Request, encoded: dict[str, FeatureMaps]) -> FeatureMaps:
        """Features of rows in the order in which they entered."""
        first = self._first_row[_identity(request.rows)]
        maps = encoded[STAGES[request.depth]][first : first + len(request.rows)]
        if not request.is_reversed:
            return maps
        return FeatureMaps(maps.data.flip(2), maps.temporal_stride, maps.spatial_stride)


def _identity(tensor: Tensor) -> _Key:
    """Equal for tensors that are the same memory read the same way."""
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())


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
    """The name of a task among the modules, which may hold no dots."""
    return name.replace(".", "/")


class TaskGradients:
    """Gram matrix of the tasks' gradients with respect to an encoder, averaged over ranks as DDP does."""

    def __init__(self, encoder: nn.Module) -> None:
        self._parameters = [p for p in encoder.parameters() if p.requires_grad]
        self._names: tuple[str, ...] = ()
        self._gram: Tensor | None = None

    def measure(self, terms: Mapping[str, Tensor]) -> None:
        """Takes the gradient of each task's loss before the backward pass, whose graph stays; all ranks call it."""
        rows = []
        for term in terms.values():
            gradients = torch.autograd.grad(
                term, self._parameters, retain_graph=True, allow_unused=True
            )
            flat = [
                torch.zeros_like(p).flatten() if g is None else g.flatten()
                for p, g in zip(self._parameters, gradients, strict=True)
            ]
            rows.append(sum_over_ranks(torch.cat(flat).float()) / world_size())
        stacked = torch.stack(rows)
        self._names, self._gram = tuple(terms), stacked @ stacked.T

    def read(self) -> dict[str, dict[str, float]]:
        """{"norm": {task: norm}, "cosine": {"task task": cosine}} of the last measurement; empty without a new one."""
        if self._gram is None:
            return {}
        gram, self._gram = self._gram.double().cpu(), None
        norms = gram.diagonal().clamp_min(0).sqrt()
        cosines = {}
        for i, j in combinations(range(len(self._names)), 2):
            both = float(norms[i] * norms[j])
            cosines[f"{self._names[i]} {self._names[j]}"] = (
                float(gram[i, j]) / both if both else 0.0
            )
        return {"norm": dict(zip(self._names, norms.tolist(), strict=True)), "cosine": cosines}


def describe_gradients(values: Mapping[str, Mapping[str, float]]) -> str:
    """One line of what `read` gave."""
    norms = ", ".join(f"{name} {norm:.2g}" for name, norm in values["norm"].items())
    cosines = ", ".join(
        f"{' x '.join(pair.split())} {cosine:+.2f}" for pair, cosine in values["cosine"].items()
    )
    return f"gradients on the encoder: {norms}" + (f"; cosines {cosines}" if cosines else "")
