"""Clips for one rank: decoded ahead, bad videos written down, moved to the device and augmented there."""

from typing import Any

import torch

from videossl.config import Config
from videossl.data.dataset import ClipDataset, RawClips
from videossl.data.loader import Batches, DecodeStatus, StepPositions, frame_batches, to_clip_batch
from videossl.distributed import World
from videossl.engine.build import build_augmentation
from videossl.engine.quarantine import Quarantine
from videossl.rng import RowRandom, row_random
from videossl.types import ClipBatch


class Feed:
    """What a rank is fed with. `status.ask()` says which videos are being decoded."""

    def __init__(self, config: Config, world: World, quarantine: Quarantine) -> None:
        self.quarantine, self.status = quarantine, DecodeStatus()
        self.device, self.is_main = world.device, world.is_main
        self._config, self._world = config, world
        self._augmentation = build_augmentation(config)
        self._videos_per_rank = config.data.videos_per_step // world.size
        self._stream = torch.cuda.Stream(world.device) if world.device.type == "cuda" else None

    def batches(self, data: ClipDataset, first: int, last: int) -> Batches:
        """This rank's share of the batches [first, last), decoded ahead; close it to end the workers."""
        positions = StepPositions(
            first,
            last,
            rank=self._world.rank,
            world_size=self._world.size,
            videos_per_rank=self._videos_per_rank,
        )
        return frame_batches(
            data, positions, **self._options(), pin_memory=self._stream is not None
        )

    def first_videos(self, data: ClipDataset, count: int) -> ClipBatch:
        """The first `count` videos without augmentation: the same ones on every rank."""
        positions = StepPositions(0, 1, rank=0, world_size=1, videos_per_rank=count)
        (raw,) = frame_batches(data, positions, **self._options())
        self.quarantine.record(raw.failures, step=0)
        return to_clip_batch(raw, self._world.device, self._augmentation, rng=None)

    def clips(self, raw: RawClips, rng: RowRandom | None) -> ClipBatch:
        """A batch on the device, augmented, or in its evaluation form without `rng`.

        On a GPU a stream of its own copies and augments while the step before is still being computed.
        """
        device = self._world.device
        if self._stream is None:
            return to_clip_batch(raw, device, self._augmentation, rng)
        with torch.cuda.stream(self._stream):
            batch = to_clip_batch(raw, device, self._augmentation, rng)
        current = torch.cuda.current_stream(device)
        current.wait_stream(self._stream)
        for clip in batch.clips.values():
            clip.record_stream(
                current
            )  # its memory is free for the other stream only when this one is done
        return batch

    def rows(self, purpose: str, index: int, num_rows: int) -> RowRandom:
        """The draws of this rank's rows of a global batch."""
        return row_random(
            self._config.seed,
            purpose,
            index,
            rank=self._world.rank,
            world_size=self._world.size,
            num_rows=num_rows,
            device=self._world.device,
        )

    def _options(self) -> dict[str, Any]:
        data = self._config.data
        return {
            "num_workers": data.num_workers,
            "timeout_seconds": data.timeout_seconds,
            "memory_gib": data.worker_memory_gib,
            "quarantine": self.quarantine.videos,
            "status": self.status,
        }
