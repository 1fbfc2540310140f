"""Runs one row of the table: a way to get features, applied to each piece of footage, masks written as they come."""

import itertools
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from videossl.io import progress
from videossl.io.index_masks import IndexMask, Palette, write_mask
from videossl.io.progress import RunAhead
from videossl.tracking.features import Extractor, StoredFeatures, input_size, sequence_features
from videossl.tracking.memory import LabelMemory
from videossl.tracking.overlay import draw_object_attention
from videossl.tracking.propagation import propagate
from videossl.tracking.protocol import Protocol
from videossl.tracking.sequence import Footage, FrameSource
from videossl.workers.pool import ProcessPool

_LOOKING_FRAME = 8  # whose attention is drawn: what it reads is not yet all alike; chosen
_FEATURES_AHEAD = 16  # frames encoded while those before are propagated: chosen

log = logging.getLogger("videossl")


@dataclass(frozen=True)
class Row:
    """One line of the table: what yields a mask per frame.

    Features of `make_extractor` carry masks along under the protocol; `make_masks` is anything else that can be asked for
    the masks of a footage; without either the first mask is repeated. `adapt` makes of the extractor one for a footage,
    before its features are made. `max_bytes` bounds what reading the memory takes. Into the folder `attention` goes a
    picture for each footage of where a pixel of an object looks.
    """

    name: str
    protocol: Protocol
    make_extractor: Callable[[], Extractor] | None
    make_masks: Callable[[Footage], Iterator[IndexMask]] | None = None
    max_bytes: int | None = None
    adapt: Callable[[Extractor, Footage], Extractor] | None = None
    attention: Path | None = None

    def record(self) -> dict[str, object]:
        """Plain types for JSON."""
        if self.make_extractor is None:
            return {} if self.make_masks else {"features": "none: the first mask is repeated"}
        return {"protocol": self.protocol.as_dict()}


def track_row(
    row: Row, footages: Sequence[Footage], folder: Path, *, pool: Executor | None = None
) -> dict[str, object]:
    """Writes `folder/<name>/<frame>.png` for each footage; returns what was used and how long it took.

    A folder of masks appears under its name only when it is complete; those that are there are not made again. With a
    `pool` of `worker_pool` the pieces of footage are tracked side by side.
    """
    begin = time.perf_counter()
    missing = [footage for footage in footages if not (folder / footage.name).is_dir()]
    if len(missing) < len(footages):
        log.info("%s: %d sequences are done already", row.name, len(footages) - len(missing))
    is_long = row.make_extractor is not None or row.make_masks is not None
    adapting: list[float] = []
    steps = (
        _in_pool(row, missing, folder, pool, adapting)
        if pool and is_long
        else _in_turn(row, missing, folder, adapting)
    )
    num_frames = sum(len(footage.frame_names) for footage in missing)
    if is_long and num_frames:  # copying a mask takes no time worth a line
        steps = progress.track(steps, description=row.name, total=num_frames)
    for _ in steps:
        pass
    record = row.record()
    if num_frames:
        record["seconds_per_frame"] = (time.perf_counter() - begin) / num_frames
    if adapting:
        record["adapt_seconds_per_video"] = sum(adapting) / len(adapting)
    if row.make_extractor is not None:
        extractor = row.make_extractor()
        record["features"] = extractor.describe()
        sizes = {footage.name: _input_size(row, footage, extractor) for footage in footages}
        record["input_size_hw"] = {name: list(size) for name, size in sizes.items() if size}
    return record


def _in_turn(
    row: Row, footages: Sequence[Footage], folder: Path, adapting: list[float]
) -> Iterator[None]:
    """One step a frame; while the masks of one footage are made, the features of the next are.

    `adapting` takes the seconds that each footage took to adapt to.
    """
    extractor = row.make_extractor() if row.make_extractor is not None else None
    features = _features_of(row, footages[0], extractor, adapting) if footages else None
    for footage, follower in itertools.zip_longest(footages, footages[1:]):
        following = _features_of(row, follower, extractor, adapting) if follower else None
        masks = _masks(row, footage, extractor, features)
        yield from _write_masks(masks, footage, folder, row.protocol.palette)
        features = following


def _features_of(
    row: Row, footage: Footage, extractor: Extractor | None, adapting: list[float]
) -> Iterator[Tensor] | None:
    """Features that a thread begins to make at once."""
    if extractor is None:
        return None
    if row.adapt is not None:
        begin = time.perf_counter()
        extractor = row.adapt(extractor, footage)
        adapting.append(time.perf_counter() - begin)
    made = sequence_features(footage.source, extractor, row.protocol, name=footage.name)
    return RunAhead(made, depth=_FEATURES_AHEAD)


def _write_masks(
    masks: Iterable[IndexMask], footage: Footage, folder: Path, palette: Palette
) -> Iterator[None]:
    partial = folder / f"{footage.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was stopped
    for name, mask in zip(footage.frame_names, masks, strict=True):
        write_mask(partial / f"{name}.png", mask, palette=palette)
        yield None
    partial.rename(folder / footage.name)


def _input_size(row: Row, footage: Footage, extractor: Extractor) -> tuple[int, int] | None:
    if isinstance(extractor, StoredFeatures):  # made of frames whose size is not known
        return None
    return input_size(footage.source.native_size, row.protocol, extractor.stride)


def worker_pool(num_workers: int) -> ProcessPool:
    """Processes of one thread each: on a CPU, tracking sequences side by side beats threads within one."""
    # Forked children would inherit torch's thread pools in an undefined state.
    return ProcessPool(num_workers, start_method="spawn", initialize=_one_thread)


def _in_pool(
    row: Row,
    footages: Sequence[Footage],
    folder: Path,
    pool: Executor,
    adapting: list[float],
) -> Iterator[None]:
    """One step a frame, when its sequence is done; longest first, so that no process is left alone with a long one."""
    order = sorted(footages, key=lambda footage: -len(footage.frame_names))
    futures = {pool.submit(_in_process, row, footage, folder): footage for footage in order}
    try:
        for future in as_completed(futures):
            adapting += future.result()
            yield from [None] * len(futures[future].frame_names)
    finally:  # one that fails is told of at once, not after all others
        for future in futures:
            future.cancel()


def _in_process(row: Row, footage: Footage, folder: Path) -> list[float]:
    adapting: list[float] = []
    for _ in _in_turn(row, [footage], folder, adapting):
        pass
    return adapting


def _one_thread() -> None:
    torch.set_num_threads(1)


def _masks(
    row: Row, footage: Footage, extractor: Extractor | None, features: Iterator[Tensor] | None
) -> Iterator[IndexMask]:
    if row.make_masks is not None:
        yield from row.make_masks(footage)
    elif features is None or extractor is None:
        mask = footage.first_mask
        for index in range(len(footage.frame_names)):
            later = footage.later_masks.get(index)
            mask = mask if later is None else np.where(later > 0, later, mask)
            yield mask
    else:
        size = _input_size(row, footage, extractor)
        first: list[Tensor] = []
        masks = footage_masks(
            footage,
            _keeping(features, first, count=_LOOKING_FRAME + 1),
            row.protocol,
            input_size=size,
            max_bytes=row.max_bytes,
        )
        looking = min(_LOOKING_FRAME, len(footage.frame_names) - 1)
        for index, mask in enumerate(masks):
            if row.attention is not None and index == looking:
                folder = row.attention / footage.name
                draw_object_attention(folder, footage.source, first, mask, row.protocol)
            yield mask


def _keeping(features: Iterable[Tensor], kept: list[Tensor], *, count: int) -> Iterator[Tensor]:
    """The same features; the first of them are also put into the list."""
    for feature in features:
        if len(kept) < count:
            kept.append(feature)
        yield feature


def footage_masks(
    footage: Footage,
    features: Iterable[Tensor],
    protocol: Protocol,
    *,
    input_size: tuple[int, int] | None,
    max_bytes: int | None = None,
) -> Iterator[IndexMask]:
    """The masks of all frames of a footage, carried along by its features; see `propagate`."""
    return propagate(
        features,
        footage.first_mask,
        protocol,
        object_ids=footage.object_ids,
        input_size=input_size,
        later_masks=footage.later_masks,
        frame_at=footage.frame_at,
        max_bytes=max_bytes,
    )


@dataclass(frozen=True)
class Pace:
    """Seconds a frame of encoding and of propagation, on one process."""

    encode_seconds: float
    propagate_seconds: float

    def seconds(self, num_frames: int, num_workers: int) -> float:
        """How long a row of so many frames takes, side by side on so many processes."""
        return num_frames * (self.encode_seconds + self.propagate_seconds) / num_workers


class _FirstFrames:
    """A sequence cut short."""

    def __init__(self, source: FrameSource, count: int) -> None:
        self._source, self.native_size = source, source.native_size
        self.num_frames = min(count, source.num_frames)

    def read(self, indices: Sequence[int], size: tuple[int, int]) -> Tensor:
        """See FrameSource."""
        return self._source.read(indices, size)


@torch.no_grad()
def measure_pace(row: Row, footage: Footage, *, num_threads: int | None = None) -> Pace:
    """Encodes a window of the footage, and reads a memory as full as it will be; the second of two times counts.

    `num_threads` are those of one process. Raises ValueError for a row without features.
    """
    if row.make_extractor is None:
        raise ValueError(f"row {row.name} has no features whose pace could be measured")
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads or before)
    try:
        extractor = row.make_extractor()
        encode_seconds, feature = _time_encoding(row.protocol, footage, extractor)
        return Pace(encode_seconds, _time_reading(row, feature, len(footage.object_ids) + 1))
    finally:
        torch.set_num_threads(before)


def _time_encoding(
    protocol: Protocol, footage: Footage, extractor: Extractor
) -> tuple[float, Tensor]:
    source: FrameSource = _FirstFrames(footage.source, protocol.window_frames)
    if isinstance(extractor, StoredFeatures):  # which are those of all frames
        source = footage.source
    seconds, features = 0.0, []
    for _ in range(2):
        begin = time.perf_counter()
        features = list(sequence_features(source, extractor, protocol, name=footage.name))
        _wait_for(features[-1])
        seconds = (time.perf_counter() - begin) / len(features)
    return seconds, features[-1]


def _time_reading(row: Row, feature: Tensor, num_labels: int) -> float:
    memory = LabelMemory(row.protocol, max_bytes=row.max_bytes)
    labels = feature.new_zeros(num_labels, *feature.shape[1:])
    for _ in range(max(row.protocol.context_frames, *row.protocol.anchor_frames, 1) + 1):
        memory.add(feature, labels)
    seconds = 0.0
    for _ in range(2):
        begin = time.perf_counter()
        _wait_for(memory.read(feature))
        seconds = time.perf_counter() - begin
    return seconds


def _wait_for(values: Tensor) -> None:
    if values.device.type == "cuda":
        torch.cuda.synchronize(values.device)
