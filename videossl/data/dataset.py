"""dataset[position]: choose the video, plan the times of all tasks, open once, decode their union, gather the clips.

Everything is a function of (seed, position, attempt): whichever worker, thread or rank asks, it gets the same frames.
"""

import copy
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from videossl.config import SamplingRules
from videossl.data.entry import VideoEntry
from videossl.data.manifest import Manifest
from videossl.data.sampling import Permutation, VideoTimes, plan_clip_times, usable_shots
from videossl.decode.backends import Backend, open_video, resolve_backend
from videossl.decode.index import VideoIndex
from videossl.decode.reader import VideoReader, indices_shown_at
from videossl.errors import UserError, VideoDecodeError
from videossl.rng import fold, generator
from videossl.types import ClipSpec
from videossl.workers.pool import FailureKind

log = logging.getLogger("videossl")

ALL_RULES = SamplingRules()
MAX_ATTEMPTS = 20  # videos tried in place of one that fails before the sample gives up


@dataclass(frozen=True)
class Failure:
    """One video that could not be decoded, and why."""

    path: str
    reason: str  # one line
    backend: str
    kind: FailureKind = "error"
    worker: int | None = None  # the process that found out, where there are several


@dataclass(frozen=True)
class RawClips:
    """Decoded frames of B videos, not yet augmented: uint8 RGB (B, K, T, 3, S, S) per spec."""

    frames: dict[ClipSpec, Tensor]
    pts_seconds: dict[ClipSpec, Tensor]  # (B, K, T) float64
    video_ids: Tensor  # (B,) int64: the manifest's row
    failures: tuple[Failure, ...] = field(default=())

    def pin_memory(self) -> "RawClips":
        """Page-locked copies, so that the transfer to a GPU runs beside the step."""
        frames = {spec: clip.pin_memory() for spec, clip in self.frames.items()}
        return RawClips(frames, self.pts_seconds, self.video_ids, self.failures)


class ClipDataset(Dataset[RawClips]):
    """Clips of those videos of a manifest that are long enough for all specs.

    `dataset[position]` is defined for every position >= 0: epoch `position // len(dataset)` in its own order. A video
    that fails is replaced by another one, a function of (seed, position, attempt), and reported in `failures`. `rows`
    restricts the dataset to some rows of the manifest, in this order.

    Raises UserError if no video is usable, naming why each kind was left out.
    """

    def __init__(
        self,
        manifest: Manifest,
        specs: Sequence[ClipSpec],
        *,
        seed: int,
        short_side: int,
        rows: np.ndarray | None = None,
        rules: SamplingRules = ALL_RULES,
        crop_letterbox: bool = True,
        backend: Backend = "auto",
        device: str = "cpu",
        shuffle: bool = True,
    ) -> None:
        self.specs = tuple(sorted(set(specs)))
        self.seed, self.short_side, self.shuffle = seed, short_side, shuffle
        self.rules, self.crop_letterbox = rules, crop_letterbox
        self.backend: Backend = backend
        # Refused here: once, and not by every worker.
        self.reader = resolve_backend(backend, device)
        self.device = device
        needed = max(spec.min_span_seconds for spec in self.specs)
        self.rows, num_seen, num_broken = _usable_rows(manifest, rows, needed, rules)
        too_short = num_seen - num_broken - len(self)
        self.left_out = (
            f"{num_broken} broken or left out, {too_short} with less than {needed:.2f} s between "
            "their margins"
        )
        self.manifest = manifest.forget_pages()
        if not len(self):
            raise UserError(
                f"no usable video among {num_seen}: {self.left_out}; add videos, or lower num_frames, "
                "seconds_between_frames or min_gap_seconds of the tasks"
            )
        self._epoch_and_order = (-1, Permutation(1, seed=seed))
        self._other_files: Mapping[int, Path] = {}

    def reading(self, files: Mapping[int, Path]) -> "ClipDataset":
        """The same clips, with the videos of some rows read from other files: frame k of a file stands for frame k."""
        other = copy.copy(self)
        other._other_files = dict(files)
        return other

    def __len__(self) -> int:
        return len(self.rows)

    def row_at(self, position: int, attempt: int = 0) -> int:
        """The manifest row that a position shows, or its `attempt`-th replacement."""
        epoch, index = divmod(position, len(self))
        if attempt:
            index = fold(self.seed, "replacement", position, attempt) % len(self)
        elif self.shuffle:
            index = self._order_of(epoch)[index]
        return int(self.rows[index])

    def source_name(self, row: int) -> str:
        """Where a row's video lies, for people."""
        return str(self.manifest[row].source)

    def source_names(self, rows: Tensor) -> str:
        """Where the videos of some rows lie, for people."""
        return ", ".join(self.source_name(row) for row in rows.tolist())

    def frame_shapes(self) -> dict[ClipSpec, tuple[int, ...]]:
        """(K, T, 3, S, S) of each spec's frames of one video."""
        side = self.short_side
        return {spec: (spec.num_clips, spec.num_frames, 3, side, side) for spec in self.specs}

    def __getitem__(self, position: int) -> RawClips:
        failures: list[Failure] = []
        for attempt in range(MAX_ATTEMPTS):
            try:
                clips = self.decode(position, attempt)
            except VideoDecodeError as error:
                failures.append(Failure(error.path, error.cause, error.backend))
                continue
            return RawClips(clips.frames, clips.pts_seconds, clips.video_ids, tuple(failures))
        raise UserError(
            f"{MAX_ATTEMPTS} videos in a row cannot be decoded, the last being {failures[-1].path} "
            f"({failures[-1].reason}): run `videossl scan` again and use the new manifest"
        )

    def decode(
        self, position: int, attempt: int, into: Mapping[ClipSpec, Tensor] | None = None
    ) -> RawClips:
        """The clips of one video: that of the position, or its `attempt`-th replacement.

        Frames are written to the tensors `into` (shaped as `frame_shapes`), where given. Raises VideoDecodeError if the
        video cannot be decoded.
        """
        row = self.row_at(position, attempt)
        entry = self.manifest[row]
        random = generator(self.seed, "clip", position, attempt)
        video = entry.index()
        times = plan_clip_times(video_times(entry, video), self.specs, self.rules, random)
        union, inverse = torch.cat([t.flatten() for t in times.values()]).unique(
            return_inverse=True
        )
        pts = torch.from_numpy(video.pts_seconds)
        shown_at = frames_of_row(entry, pts, union.tolist())
        # Times close together show one frame: decoded once, and copied once, into the clips.
        shown, again = shown_at.unique(return_inverse=True)
        inverse = again[inverse]
        with self._open(row, entry, video) as reader:
            decoded = reader.frames_at(shown)
        box = _picture_box(entry, decoded.data.shape[-2:]) if self.crop_letterbox else None
        images = _square(decoded.data, self.short_side, random, box)
        frames, pts_seconds, start = {}, {}, 0
        for spec, spec_times in times.items():
            index = inverse[start : start + spec_times.numel()].view(spec_times.shape)
            start += spec_times.numel()
            out = None if into is None else into[spec].flatten(0, 1)
            # Copies whole pictures; indexing with brackets would go pixel by pixel, 7 times as long.
            chosen = torch.index_select(images, 0, index.flatten().to(images.device), out=out)
            frames[spec] = chosen.unflatten(0, index.shape)  # (K, T, 3, S, S)
            pts_seconds[spec] = pts[shown[index]]
        return RawClips(frames, pts_seconds, torch.tensor(row))

    def _open(self, row: int, entry: VideoEntry, video: VideoIndex) -> VideoReader:
        other = self._other_files.get(row)
        return open_video(
            entry.source if other is None else other,
            device=self.device,
            backend=self.backend,
            short_side=self.short_side,
            index=video if other is None else None,
        )

    def _order_of(self, epoch: int) -> Permutation:
        if self._epoch_and_order[0] != epoch:
            self._epoch_and_order = (epoch, Permutation(len(self), "epoch", epoch, seed=self.seed))
        return self._epoch_and_order[1]


def frames_of_row(entry: VideoEntry, pts_seconds: Tensor, seconds: Sequence[float]) -> Tensor:
    """(N,) int64 indices of the frames of a manifest row, shown from `pts_seconds` on, that are on screen at these times.

    Raises VideoDecodeError, which costs one video, where the row contradicts itself.
    """
    try:
        return indices_shown_at(pts_seconds, seconds, entry.end_seconds)
    except UserError as error:
        cause = f"its row of the manifest contradicts itself ({error}): scan it again"
        raise VideoDecodeError(str(entry.source), "manifest", cause) from None


def video_times(entry: VideoEntry, index: VideoIndex) -> VideoTimes:
    """What planning must know of a manifest row."""
    return VideoTimes(
        begin=entry.begin_seconds,
        end=entry.end_seconds,
        fps=entry.fps,
        motion=entry.motion,
        key_seconds=index.pts_seconds[index.is_key],
        cuts=entry.cuts,
    )


def _usable_rows(
    manifest: Manifest, rows: np.ndarray | None, needed: float, rules: SamplingRules
) -> tuple[np.ndarray | range, int, int]:
    """The rows whose longest shot holds `needed` seconds, how many were looked at, how many of these are not to be used."""
    is_usable = manifest.is_usable(needed, skip_ends=rules.skip_ends)
    for row in manifest.rows_with_cuts().tolist() if rules.avoid_cuts else ():
        if is_usable[row]:
            entry = manifest[row]
            try:
                index = entry.index()
            except VideoDecodeError as error:  # a row that contradicts itself costs itself
                log.warning("%s", error)
                is_usable[row] = False
                continue
            shots = usable_shots(video_times(entry, index), rules)
            is_usable[row] = any(end - begin >= needed for begin, end in shots)
    if rows is not None:
        return rows[is_usable[rows]], len(rows), int((~manifest.is_ok()[rows]).sum())
    if is_usable.all():  # no memory at all, however many there are
        return range(len(manifest)), len(manifest), 0
    usable = np.flatnonzero(is_usable).astype(np.min_scalar_type(len(manifest)))
    return usable, len(manifest), int((~manifest.is_ok()).sum())


def _picture_box(entry: VideoEntry, shape: Sequence[int]) -> tuple[int, int, int, int] | None:
    """(top, bottom, left, right) of the picture inside black bars, in decoded frames of (height, width) `shape`."""
    if not any(entry.bars):
        return None
    height, width = shape
    rows, columns = height / entry.height, width / entry.width
    top, bottom, left, right = entry.bars
    return (
        math.ceil(top * rows),
        height - math.ceil(bottom * rows),
        math.ceil(left * columns),
        width - math.ceil(right * columns),
    )


def _square(
    frames: Tensor,
    side: int,
    random: torch.Generator,
    box: tuple[int, int, int, int] | None = None,
) -> Tensor:
    """(F, 3, H, W) to (F, 3, side, side): a square at a random place of the longer side, enlarged if the video is small."""
    if box is not None:
        top, bottom, left, right = box
        frames = frames[..., top:bottom, left:right]
    height, width = frames.shape[-2:]
    size = min(height, width)
    slack = max(height, width) - size
    offset = int(torch.rand(1, generator=random) * (slack + 1))
    top, left = (offset, 0) if height > width else (0, offset)
    square = frames[..., top : top + size, left : left + size]
    if size == side:
        return square.contiguous()
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
