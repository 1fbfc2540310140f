"""dataset[position]: choose the video, plan the times of all tasks, open once, decode their union, gather the clips.

Everything is a function of (seed, position): whichever worker, thread or rank asks, it gets the same frames.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.data import Dataset

from videossl.data.manifest import VideoEntry
from videossl.data.sampling import permuted_index, plan_clip_times, usable_span
from videossl.decode.backends import Backend, open_video, resolve_backend
from videossl.decode.info import VideoDecodeError
from videossl.errors import UserError
from videossl.rng import fold, generator
from videossl.types import ClipSpec

log = logging.getLogger("videossl")

MAX_ATTEMPTS = 20  # videos tried in place of one that fails before the sample gives up


@dataclass(frozen=True)
class Failure:
    """One video that could not be decoded, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class RawClips:
    """Decoded frames of B videos, not yet augmented: uint8 RGB (B, K, T, 3, S, S) per spec."""

    frames: dict[ClipSpec, Tensor]
    pts_seconds: dict[ClipSpec, Tensor]  # (B, K, T) float64
    video_ids: Tensor  # (B,) int64: index of the manifest's row
    failures: tuple[Failure, ...] = field(default=())

    def pin_memory(self) -> "RawClips":
        """Page-locked copies, so that the transfer to a GPU runs beside the step."""
        frames = {spec: clip.pin_memory() for spec, clip in self.frames.items()}
        return RawClips(frames, self.pts_seconds, self.video_ids, self.failures)


class ClipDataset(Dataset[RawClips]):
    """Clips of the videos of a manifest that are long enough for all specs.

    `dataset[position]` is defined for every position >= 0: epoch `position // len(dataset)` in its own order. A video
    that fails is replaced by another one, a function of (seed, position, attempt), and reported in `failures`.

    Raises UserError if no video is usable, naming why each kind was left out.
    """

    def __init__(
        self,
        entries: Sequence[VideoEntry],
        specs: Sequence[ClipSpec],
        *,
        seed: int,
        short_side: int,
        backend: Backend = "auto",
        device: str = "cpu",
        shuffle: bool = True,
    ) -> None:
        self.specs = tuple(sorted(set(specs)))
        self.seed = seed
        self.short_side = short_side
        self.backend = backend
        resolve_backend(backend, device)  # said, or refused, here: once, and not by every worker
        self.device = device
        self.shuffle = shuffle
        needed = max(spec.min_span_seconds for spec in self.specs)
        spans = [usable_span(e.begin_seconds, e.end_seconds, e.fps, e.motion) for e in entries]
        broken = sum(e.status != "ok" for e in entries)
        self.rows = [
            row
            for row, (entry, span) in enumerate(zip(entries, spans, strict=True))
            if entry.status == "ok" and span.seconds >= needed
        ]
        self.entries = entries
        self.spans = spans
        too_short = len(entries) - broken - len(self.rows)
        self.left_out = (
            f"{broken} broken, {too_short} with less than {needed:.2f} s between their margins"
        )
        if not self.rows:
            raise UserError(
                f"no usable video among {len(entries)}: {self.left_out}; add videos, or lower num_frames, "
                "seconds_between_frames or min_gap_seconds of the tasks"
            )

    def __len__(self) -> int:
        return len(self.rows)

    def row_at(self, position: int, attempt: int = 0) -> int:
        """The manifest row that a position shows, or its `attempt`-th replacement."""
        epoch, index = divmod(position, len(self.rows))
        if attempt:
            return self.rows[fold(self.seed, "replacement", position, attempt) % len(self.rows)]
        if not self.shuffle:
            return self.rows[index]
        return self.rows[permuted_index(index, len(self.rows), "epoch", epoch, seed=self.seed)]

    def __getitem__(self, position: int) -> RawClips:
        failures: list[Failure] = []
        for attempt in range(MAX_ATTEMPTS):
            row = self.row_at(position, attempt)
            try:
                frames, pts_seconds = self._decode(row, position, attempt)
            except VideoDecodeError as error:
                failures.append(Failure(error.path, f"{error.backend}: {error.cause}"))
                continue
            return RawClips(frames, pts_seconds, torch.tensor(row), tuple(failures))
        raise UserError(
            f"{MAX_ATTEMPTS} videos in a row cannot be decoded, the last being {failures[-1].path} "
            f"({failures[-1].reason}): run `videossl scan` again and use the new manifest"
        )

    def _decode(
        self, row: int, position: int, attempt: int
    ) -> tuple[dict[ClipSpec, Tensor], dict[ClipSpec, Tensor]]:
        random = generator(self.seed, "clip", position, attempt)
        times = plan_clip_times(self.spans[row], self.specs, random)
        union, inverse = torch.cat([t.flatten() for t in times.values()]).unique(
            return_inverse=True
        )
        with open_video(
            self.entries[row].path,
            device=self.device,
            backend=self.backend,
            short_side=self.short_side,
        ) as reader:
            decoded = reader.frames_shown_at(union.tolist())
        images = _square(decoded.data, self.short_side, random)
        frames, pts_seconds, start = {}, {}, 0
        for spec, spec_times in times.items():
            index = inverse[start : start + spec_times.numel()].view(spec_times.shape)
            start += spec_times.numel()
            frames[spec] = images[index.to(images.device)]  # (K, T, 3, S, S)
            pts_seconds[spec] = decoded.pts_seconds[index]
        return frames, pts_seconds


def _square(frames: Tensor, side: int, random: torch.Generator) -> Tensor:
    """(F, 3, H, W) to (F, 3, side, side): a square at a random place of the longer side, enlarged if the video is small."""
    height, width = frames.shape[-2:]
    size = min(height, width)
    slack = max(height, width) - size
    offset = int(torch.rand(1, generator=random) * (slack + 1))
    top, left = (offset, 0) if height > width else (0, offset)
    square = frames[..., top : top + size, left : left + size]
    if size == side:
        return square
    return (
        torch.nn.functional.interpolate(square.float(), (side, side), mode="bilinear")
        .round()
        .to(torch.uint8)
    )


def collate(samples: Sequence[RawClips]) -> RawClips:
    """Stacks samples into one batch; the failures of all are kept."""
    specs = samples[0].frames.keys()
    return RawClips(
        {spec: torch.stack([s.frames[spec] for s in samples]) for spec in specs},
        {spec: torch.stack([s.pts_seconds[spec] for s in samples]) for spec in specs},
        torch.stack([s.video_ids for s in samples]),
        tuple(failure for s in samples for failure in s.failures),
    )
