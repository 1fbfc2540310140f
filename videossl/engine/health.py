"""How alive the encoder's features are: their spread, their effective rank, their dead channels."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from videossl.models.encoder import Encoder


@dataclass(frozen=True)
class Health:
    """Of one batch of features of the deepest stage, averaged over time and space, on one rank.

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
    """Of (N, C) pooled features and (C,) whether a channel is dead."""
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
        """Of the pass with the most rows since `arm`; None if there was none."""
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
