"""One pass of an encoder for the views of many tasks: nothing is computed twice, and nothing that nobody reads.

A tensor that several views share is encoded once. Rows are ordered by the deepest stage anyone reads of them, so that the
shallow ones leave the pass early. A view that shows another backward in time begins behind the stages that see single
frames: up to there its features are the other's, reversed (in training these stages' batch statistics count them once).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from videossl.models.encoder import STAGES, Encoder, Segment
from videossl.types import FeatureMaps


@dataclass(frozen=True)
class Request:
    """Rows that one view of a task needs encoded, down to one stage (its index in STAGES)."""

    task: str
    view: str
    rows: Tensor
    depth: int
    is_reversed: bool = False


_Key = tuple[object, ...]


class SharedPass:
    """The pass for requests whose rows have one shape."""

    def __init__(self, requests: list[Request], encoder: Encoder) -> None:
        self._requests, self._encoder = requests, encoder
        self._last_frame_wise = len(encoder.frame_wise_stages) - 1
        self._tensors: dict[_Key, Tensor] = {_identity(r.rows): r.rows for r in requests}
        self._depths: dict[tuple[_Key, bool], int] = {}  # deepest stage read, forward and backward
        for request in requests:
            view = (_identity(request.rows), request.is_reversed)
            self._depths[view] = max(self._depths.get(view, -1), request.depth)
        self._has_reversals = any(is_reversed for _, is_reversed in self._depths)
        # What enters: each tensor once, as deep as its forward views, and its reversals up to where they begin.
        entering = dict.fromkeys(self._tensors, -1)
        for (key, is_reversed), depth in self._depths.items():
            needed = min(depth, self._last_frame_wise) if is_reversed else depth
            entering[key] = max(entering[key], needed)
        self._entering = dict(sorted(entering.items(), key=lambda item: -item[1]))
        self._first_row: dict[_Key, int] = {}
        num_rows = 0
        for key in self._entering:
            self._first_row[key] = num_rows
            num_rows += len(self._tensors[key])

    def run(self) -> list[tuple[Request, FeatureMaps]]:
        """Each request with its features."""
        tensors = [self._tensors[key] for key in self._entering]
        rows = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
        if not self._has_reversals:
            encoded = self._encoder(rows, self._rows_per_stage([]))
            return [(r, self._entered(r, encoded)) for r in self._requests]
        places = self._places()
        segments = [segment for segment, _ in places.values()]
        encoded = self._encoder(rows, self._rows_per_stage(segments), segments)
        results = []
        for request in self._requests:
            if request.depth <= self._last_frame_wise:
                results.append((request, self._entered(request, encoded)))
                continue
            _, first = places[_identity(request.rows), request.is_reversed]
            maps = encoded[STAGES[request.depth]]
            results.append((request, maps[first : first + len(request.rows)]))
        return results

    def _places(self) -> dict[tuple[_Key, bool], tuple[Segment, int]]:
        """What goes on behind the frame-wise stages, deepest first: its rows before, and its first row after."""
        deep = [item for item in self._depths.items() if item[1] > self._last_frame_wise]
        places, first = {}, 0
        for (key, is_reversed), _ in sorted(deep, key=lambda item: -item[1]):
            start = self._first_row[key]
            segment = Segment(start, start + len(self._tensors[key]), is_reversed)
            places[key, is_reversed] = (segment, first)
            first += len(segment)
        return places

    def _rows_per_stage(self, segments: list[Segment]) -> dict[str, int]:
        counts = {}
        for depth, stage in enumerate(STAGES):
            if segments and depth > self._last_frame_wise:
                keys = [key for (key, _), reached in self._depths.items() if reached >= depth]
            else:
                keys = [key for key, reached in self._entering.items() if reached >= depth]
            counts[stage] = sum(len(self._tensors[key]) for key in keys)
        return counts

    def _entered(self, request: Request, encoded: dict[str, FeatureMaps]) -> FeatureMaps:
        """Features of rows in the order in which they entered."""
        first = self._first_row[_identity(request.rows)]
        maps = encoded[STAGES[request.depth]][first : first + len(request.rows)]
        if not request.is_reversed:
            return maps
        return FeatureMaps(maps.data.flip(2), maps.temporal_stride, maps.spatial_stride)


def _identity(tensor: Tensor) -> _Key:
    """Equal for tensors that are the same memory read the same way."""
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
