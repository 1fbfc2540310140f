"""The order of samples: a keyed permutation evaluated per index, so that its position is one integer and costs no memory.

Every epoch shows each of `length` videos once; ranks and workers that take disjoint positions get disjoint videos.
"""

import numpy as np

from videossl.rng import fold

FEISTEL_ROUNDS = 4
_MULTIPLIER_1 = 0x9E3779B97F4A7C15
_MULTIPLIER_2 = 0xBF58476D1CE4E5B9
_BITS_64 = 2**64 - 1


class Permutation:
    """A pseudo-random permutation of range(length) for these keys: a Feistel network that walks cycles.

    The network permutes a power of four at most 4 times the length; values outside the range go in again, so at most 4
    turns are needed on average (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002, section 4).
    """

    def __init__(self, length: int, *keys: int | str, seed: int) -> None:
        if not 1 <= length <= 2**62:
            raise ValueError(f"a permutation needs a length from 1 to 2**62, got {length}")
        self.length = length
        self._half_bits = max(1, ((length - 1).bit_length() + 1) // 2)
        self._keys = [fold(seed, "permutation", *keys, r) for r in range(FEISTEL_ROUNDS)]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> int:
        """The element at a position. Raises IndexError outside [0, length)."""
        if not 0 <= position < self.length:
            raise IndexError(f"position {position} is outside [0, {self.length})")
        half_bits, mask = self._half_bits, (1 << self._half_bits) - 1
        value = position
        while True:
            left, right = value >> half_bits, value & mask
            for key in self._keys:
                # A multiply-xor-shift mix (the finaliser of splitmix64): cheap, and enough for shuffling.
                mixed = ((right ^ key) * _MULTIPLIER_1) & _BITS_64
                mixed = ((mixed ^ (mixed >> 29)) * _MULTIPLIER_2) & _BITS_64
                left, right = right, left ^ ((mixed >> 32) & mask)
            value = (left << half_bits) | right
            if value < self.length:
                return value

    def take(self, positions: np.ndarray) -> np.ndarray:
        """(N,) int64 elements at (N,) integer positions: what `[...]` gives for each. Raises IndexError outside."""
        values = np.asarray(positions, dtype=np.int64)
        if len(values) and not (values.min() >= 0 and values.max() < self.length):
            raise IndexError(f"positions must be in [0, {self.length})")
        values = self._turn(values.astype(np.uint64))
        outside = np.flatnonzero(values >= self.length)
        while len(outside):
            again = self._turn(values[outside])
            values[outside] = again
            outside = outside[again >= self.length]
        return values.astype(np.int64)

    def _turn(self, values: np.ndarray) -> np.ndarray:
        half_bits = np.uint64(self._half_bits)
        mask = np.uint64((1 << self._half_bits) - 1)
        left, right = values >> half_bits, values & mask
        for key in self._keys:
            mixed = (right ^ np.uint64(key)) * np.uint64(_MULTIPLIER_1)
            mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(_MULTIPLIER_2)
            left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
        return (left << half_bits) | right
