"""The frames that label propagation reads, and how: which of them, where in them, and with what weights.

Everything is kept channels last, (h, w, D) and (h, w, V), which is how `strongest_copy` reads it without a copy.
"""

import torch
from torch import Tensor

from videossl.models.attention import MemoryFrame, aligned_copy, attention_copy
from videossl.models.attention_topk import strongest_copy
from videossl.tracking.protocol import Protocol

SEARCH_RADIUS, MAX_DILATION = 12, 4  # of MAST's coarse search (its colorizer.py)


class LabelMemory:
    """Features and labels of past frames, by their index; the first one added is frame 0.

    `max_bytes` bounds the similarities and keys that are worked on at a time, down to one row of tiles; None takes what is
    quickest. MAST's aligned windows have a bound of their own.
    """

    def __init__(self, protocol: Protocol, *, max_bytes: int | None = None) -> None:
        self._protocol = protocol
        self._max_bytes = max_bytes
        self._frames: dict[int, tuple[Tensor, Tensor]] = {}
        self._first: tuple[Tensor, Tensor] | None = None  # with its given labels
        self._next = 0

    def add(self, feature: Tensor, labels: Tensor) -> None:
        """Holds the next frame, (D, h, w) with (V, h, w), and lets go of those that no later frame reads."""
        frame = (_channels_last(feature), _channels_last(labels))
        self._frames[self._next] = frame
        self._first = self._first or frame
        self._next += 1
        protocol = self._protocol
        if protocol.memory_offsets is not None:
            kept, reach = protocol.anchor_frames, max(protocol.memory_offsets, default=0)
        else:
            kept, reach = (), protocol.context_frames
        for index in list(self._frames):
            if index not in kept and index < self._next - reach:
                del self._frames[index]

    def replace_first(self, labels: Tensor) -> None:
        """As one of the last frames the first has these labels; those given stay where the first is kept."""
        feature, _ = self._frames[0]
        self._frames[0] = (feature, _channels_last(labels))

    def read(self, feature: Tensor) -> Tensor:
        """The labels that the next frame, of this feature (D, h, w), copies: (V, h, w)."""
        protocol = self._protocol
        if protocol.align_after is not None:
            return self._read_aligned(feature)
        context = self._context()
        keys, values = [key for key, _ in context], [value for _, value in context]
        if protocol.top_k is None:
            return attention_copy(
                feature[None],
                torch.stack(keys).permute(0, 3, 1, 2)[None],
                torch.stack(values).permute(0, 3, 1, 2)[None],
                temperature=protocol.temperature,
                radius=protocol.radius,
                mask=protocol.window,
                unmasked_frames=self._num_unmasked,
                **({} if self._max_bytes is None else {"max_bytes": self._max_bytes}),
            )[0]
        query = _channels_last(feature)
        groups = [(keys, values)]
        if protocol.top_k_of == "frame":
            groups = [([key], [value]) for key, value in context]
        copied = torch.zeros((), device=feature.device)
        for group_keys, group_values in groups:
            copied = copied + strongest_copy(
                query,
                group_keys,
                group_values,
                temperature=protocol.temperature,
                top_k=protocol.top_k,
                radius=protocol.radius,
                mask=protocol.window,
                unmasked_frames=self._num_unmasked,
                renormalize=protocol.renormalize,
                distance_sigma=protocol.distance_sigma,
                max_bytes=self._max_bytes,
            )
        return (copied / len(groups)).permute(2, 0, 1)

    @property
    def _num_unmasked(self) -> int:
        return int(self._protocol.first_unmasked and self._protocol.keep_first)

    def _context(self) -> list[tuple[Tensor, Tensor]]:
        """What the next frame reads, in order; a frame may be there more than once."""
        assert self._first is not None
        protocol = self._protocol
        if protocol.memory_offsets is not None:
            return [self._frames[index] for index in self.context_indices()]
        # A first frame with labels of its own as one of the last is read with them there.
        copies_are_given = protocol.first_copies != "queried"
        indices = self.context_indices()
        kept = [self._first] if protocol.keep_first else []
        recent = indices[1:] if protocol.keep_first else indices
        return kept + [
            self._first if i < 0 or (i == 0 and copies_are_given) else self._frames[i]
            for i in recent
        ]

    def context_indices(self) -> list[int]:
        """The indices of the frames that the next one reads; below 0 for copies of the first before it."""
        protocol, target = self._protocol, self._next
        if protocol.memory_offsets is not None:
            recent = {target - n for n in protocol.memory_offsets if target - n > 0}
            return sorted(recent | {index for index in protocol.anchor_frames if index < target})
        oldest = target - protocol.context_frames
        if protocol.first_copies in ("once", "recent"):
            counts_again = protocol.first_copies == "recent" or not protocol.keep_first
            oldest = max(oldest, 0 if counts_again else 1)
        last = list(range(oldest, target))
        return [0, *last] if protocol.keep_first else last

    def _read_aligned(self, feature: Tensor) -> Tensor:
        protocol = self._protocol
        assert protocol.align_after is not None
        assert protocol.radius is not None
        memory = []
        for index in self.context_indices():
            age = self._next - index
            steps = age // protocol.align_after + 1 if age > protocol.align_after else 0
            key, value = (t.permute(2, 0, 1) for t in self._frames[index])
            memory.append(MemoryFrame(key, value, dilation=min(MAX_DILATION, steps)))
        return aligned_copy(
            feature,
            memory,
            radius=protocol.radius,
            search_radius=SEARCH_RADIUS,
            temperature=protocol.temperature,
        )


def _channels_last(planes: Tensor) -> Tensor:
    return planes.permute(1, 2, 0).contiguous()
