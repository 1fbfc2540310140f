"""Randomness as a function of keys: no generator state is ever saved, and resuming is exact.

Which videos and which times: keys (seed, epoch, index), so a clip is the same whichever worker or rank decodes it.
Views and labels: keys (seed, step) over the rows of the *global* batch, of which a rank takes its own rows, so that two
processes draw exactly what one process with the whole batch draws.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


def fold(seed: int, *keys: int | str) -> int:
    """A 63-bit seed that depends on every key and on their order (SHA-256: equal on every machine)."""
    text = "/".join(str(key) for key in (seed, *keys))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *keys: int | str) -> torch.Generator:
    """A CPU generator for these keys."""
    return torch.Generator().manual_seed(fold(seed, *keys))


@dataclass
class RowRandom:
    """Draws for the rows [first_row, first_row + num_rows) of a global batch of `total_rows`.

    Every draw is made for all rows of the global batch, on the CPU, and cut to the local ones: the same numbers on
    any world size and any device.
    """

    generator: torch.Generator
    first_row: int
    num_rows: int
    total_rows: int
    device: torch.device

    def _local(self, values: Tensor) -> Tensor:
        return values[self.first_row : self.first_row + self.num_rows].to(
            self.device, non_blocking=True
        )

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """(num_rows, *shape) float32, uniform in [low, high)."""
        return (
            self._local(torch.rand(self.total_rows, *shape, generator=self.generator))
            * (high - low)
            + low
        )

    def integers(self, *shape: int, low: int = 0, high: int) -> Tensor:
        """(num_rows, *shape) int64, uniform in [low, high)."""
        return self._local(
            torch.randint(low, high, (self.total_rows, *shape), generator=self.generator)
        )

    def permutations(self, length: int) -> Tensor:
        """(num_rows, length) int64: an independent permutation per row."""
        return self._local(torch.rand(self.total_rows, length, generator=self.generator).argsort(1))


def row_random(
    seed: int, *keys: int | str, rank: int, world_size: int, num_rows: int, device: torch.device
) -> RowRandom:
    """The draws of one rank whose every rank holds `num_rows` rows."""
    return RowRandom(
        generator(seed, *keys), rank * num_rows, num_rows, world_size * num_rows, device
    )
