"""What each task asks of the shared encoder: the norm of its gradient, and whether tasks pull together or apart."""

from collections.abc import Mapping
from itertools import combinations

import torch
from torch import Tensor, nn

from videossl.distributed import sum_over_ranks, world_size


class TaskGradients:
    """Gram matrix of the tasks' gradients with respect to an encoder, averaged over ranks as DDP does."""

    def __init__(self, encoder: nn.Module) -> None:
        self._parameters = [p for p in encoder.parameters() if p.requires_grad]
        self._names: tuple[str, ...] = ()
        self._gram: Tensor | None = None

    def measure(self, terms: Mapping[str, Tensor]) -> None:
        """Of each task's term of the loss, before the backward pass, whose graph stays; collective, read nothing."""
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
