"""How long a row will take, measured on a few frames before it begins."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from videossl.eval.features import Extractor, sequence_features
from videossl.eval.footage import Footage
from videossl.eval.frames import FrameSource
from videossl.eval.memory import LabelMemory
from videossl.eval.protocol import Protocol
from videossl.eval.stored_features import StoredFeatures
from videossl.eval.tracking import Row


@dataclass(frozen=True)
class Pace:
    """Seconds a frame of encoding and of propagation, on one process."""

    encode_seconds: float
    propagate_seconds: float

    def seconds(self, num_frames: int, num_workers: int) -> float:
        """Of a row of so many frames, side by side on so many processes."""
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
    for _ in range(max(row.protocol.context_frames, *row.protocol.kept_frames, 1) + 1):
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
