"""Batches in memory that worker processes write and the training process reads in place: no frame is ever sent.

The memory is one anonymous mapping made before the workers are forked, so that neither a file system's size (64 MiB of
/dev/shm in a container) nor a limit on open files bounds it.
"""

import math
import mmap
import weakref
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from videossl.data.dataset import RawClips
from videossl.types import ClipSpec

ALIGNMENT = 64  # bytes: a cache line


class FrameRing:
    """`num_slots` batches of up to `num_rows` samples whose frames have the `shapes` (K, T, 3, S, S), uint8.

    A slot is taken, its rows are written by any process, and `view` gives it to a reader. It is free again when the
    reader holds none of its frames any more.
    """

    def __init__(
        self, shapes: Mapping[ClipSpec, tuple[int, ...]], *, num_rows: int, num_slots: int
    ) -> None:
        self._shapes = dict(shapes)
        self._offsets: dict[ClipSpec, tuple[int, int]] = {}  # of frames and of times in a slot
        end = 0
        for spec, shape in self._shapes.items():
            times = end + _aligned(num_rows * math.prod(shape))
            self._offsets[spec] = end, times
            end = times + _aligned(8 * num_rows * math.prod(shape[:2]))
        self._ids = end
        self._slot_bytes = end + _aligned(8 * num_rows)
        self._memory = mmap.mmap(-1, num_slots * self._slot_bytes)
        # Single operations on sets need no lock, which the garbage collector might ask for where it is held already.
        self._free, self._viewed = set(range(num_slots)), set[int]()

    @property
    def num_viewed(self) -> int:
        """Slots whose frames a reader still holds."""
        return len(self._viewed)

    def take(self) -> int:
        """A free slot; there must be one."""
        return self._free.pop()

    def frames_of(self, slot: int, row: int) -> dict[ClipSpec, Tensor]:
        """Where the frames of one sample go; in a worker."""
        frames, _, _ = self._tensors(self._array(slot), row + 1)
        return {spec: clips[row] for spec, clips in frames.items()}

    def write(self, slot: int, row: int, sample: RawClips) -> None:
        """Puts one sample into its row, but for frames that are there already; in a worker."""
        frames, pts_seconds, video_ids = self._tensors(self._array(slot), row + 1)
        for spec, clip in sample.frames.items():
            if clip.data_ptr() != frames[spec][row].data_ptr():
                frames[spec][row].copy_(clip)
            pts_seconds[spec][row].copy_(sample.pts_seconds[spec])
        video_ids[row] = sample.video_ids

    def view(self, slot: int, num_rows: int) -> RawClips:
        """The first rows of a slot, whose frames are read in place; the slot is free when all of them are dropped."""
        array = self._array(slot)
        self._viewed.add(slot)
        # Every tensor made of the array keeps it alive, so that its end is the end of the last of them.
        weakref.finalize(array, self._release, slot).atexit = False
        frames, pts_seconds, video_ids = self._tensors(array, num_rows)
        times = {
            spec: pts.clone() for spec, pts in pts_seconds.items()
        }  # small, and kept for longer
        return RawClips(frames, times, video_ids.clone())

    def copy(self, slot: int, num_rows: int) -> RawClips:
        """The first rows of a slot, copied; the slot is free at once."""
        frames, pts_seconds, video_ids = self._tensors(self._array(slot), num_rows)
        batch = RawClips(
            {spec: clips.clone() for spec, clips in frames.items()},
            {spec: pts.clone() for spec, pts in pts_seconds.items()},
            video_ids.clone(),
        )
        self._free.add(slot)
        return batch

    def _release(self, slot: int) -> None:
        self._free.add(slot)
        self._viewed.discard(slot)

    def _array(self, slot: int) -> np.ndarray:
        start = slot * self._slot_bytes
        return np.frombuffer(self._memory, np.uint8, count=self._slot_bytes, offset=start)

    def _tensors(
        self, array: np.ndarray, num_rows: int
    ) -> tuple[dict[ClipSpec, Tensor], dict[ClipSpec, Tensor], Tensor]:
        def part(offset: int, shape: tuple[int, ...], dtype: type[np.generic]) -> Tensor:
            # Shaped by numpy, which takes a third of torch's time: a training step waits for it.
            return torch.from_numpy(np.ndarray((num_rows, *shape), dtype, array, offset))

        frames, pts_seconds = {}, {}
        for spec, shape in self._shapes.items():
            start, times = self._offsets[spec]
            frames[spec] = part(start, shape, np.uint8)
            pts_seconds[spec] = part(times, shape[:2], np.float64)
        return frames, pts_seconds, part(self._ids, (), np.int64)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
