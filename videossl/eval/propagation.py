"""Carries the first frame's mask through a sequence by attention over features: per-frame features in, masks out.

The algorithm that Vondrick et al. (ECCV 2018), CRW (NeurIPS 2020) and DINO (ICCV 2021) share; what differs between them
is in `Protocol`. Labels are shares per object; predictions are read again as context.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from videossl.eval.protocol import Protocol
from videossl.models.aligned_copy import MemoryFrame, aligned_copy
from videossl.models.attention_copy import attention_copy

IndexMask = NDArray[np.uint8]
MakeLabels = Callable[[Sequence[int], torch.device], Tensor]

SEARCH_RADIUS, MAX_DILATION = 12, 4  # of MAST's coarse search (its colorizer.py)


@torch.no_grad()
def propagate(
    features: Iterable[Tensor],
    first_mask: IndexMask,
    protocol: Protocol,
    *,
    object_ids: Sequence[int],
    input_size: tuple[int, int] | None = None,
    later_masks: Mapping[int, IndexMask] | None = None,
) -> Iterator[IndexMask]:
    """Yields a mask of object ids (H, W) per frame; the first is `first_mask` itself.

    `features` gives (D, h, w) per frame, in order, centred and normalised already (see `videossl.eval.features`).
    `input_size` is (H, W) of the frames that the encoder saw, for protocols that decide there. `later_masks` are, by
    frame, those of objects that appear there (YouTube-VOS): each is followed as if the video began at its frame, since
    frames before it say nothing of its objects, and is taken as given where it lies.
    """
    given = {0: first_mask, **(later_masks or {})}
    ids = {start: [v for v in object_ids if (mask == v).any()] for start, mask in given.items()}
    starts = {
        start: partial(_labels_of, mask, ids[start], protocol) for start, mask in given.items()
    }
    for index, groups in enumerate(propagate_labels(features, starts, protocol)):
        if index == 0:
            yield first_mask
            continue
        shares = torch.cat(
            [
                torch.stack([labels[0] for labels in groups.values()]).amin(0, keepdim=True),
                *(labels[1:] for labels in groups.values()),
            ]
        )
        numbers = [0, *(value for start in groups for value in ids[start])]
        number_of = torch.tensor(numbers, dtype=torch.uint8)
        mask = _decide(shares, number_of, first_mask.shape, protocol, input_size)
        yield np.where(given[index] > 0, given[index], mask) if index in given else mask


@torch.no_grad()
def propagate_labels(
    features: Iterable[Tensor], starts: Mapping[int, MakeLabels], protocol: Protocol
) -> Iterator[dict[int, Tensor]]:
    """Yields per frame, for each start so far, what the cells copy of its labels, (V, h, w): masks, joints, points.

    `starts[index]((h, w), device)` makes the labels that are known at that frame. Each start has a memory of its own, in
    which its frame is the first.
    """
    memories: dict[int, _Memory] = {}
    for index, feature in enumerate(features):
        found = {start: memory.copy_to(feature) for start, memory in memories.items()}
        if index in starts:
            memories[index] = _Memory(protocol)
            found[index] = starts[index](feature.shape[1:], feature.device)
            memories[index].add(feature, found[index])
        yield found


class _Memory:
    """Features and labels of the frames that a protocol reads, by their index."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        self._frames: dict[int, tuple[Tensor, Tensor]] = {}
        self._next = 0

    def add(self, feature: Tensor, labels: Tensor) -> None:
        """Holds the next frame, and lets go of those that no later frame reads."""
        self._frames[self._next] = (feature, labels)
        self._next += 1
        protocol = self._protocol
        if protocol.memory_offsets is not None:
            kept, reach = protocol.kept_frames, max(protocol.memory_offsets, default=0)
        else:
            kept, reach = (0,), protocol.context_frames
        for index in list(self._frames):
            if index not in kept and index < self._next - reach:
                del self._frames[index]

    def copy_to(self, feature: Tensor) -> Tensor:
        """The labels of the next frame, which then belongs to the memory."""
        labels = self.read(feature)
        if self._protocol.hard_labels:
            labels = _one_hot(labels.argmax(0), len(labels))
        self.add(feature, labels)
        return labels

    def read(self, feature: Tensor) -> Tensor:
        """The labels that the next frame, of this feature, copies: (1 + O, h, w)."""
        protocol = self._protocol
        if protocol.align_after is not None:
            return self._read_aligned(feature)
        context = [self._frames[index] for index in self._context()]
        return attention_copy(
            feature[None],
            torch.stack([key for key, _ in context])[None],
            torch.stack([value for _, value in context])[None],
            temperature=protocol.temperature,
            radius=protocol.radius,
            mask=protocol.window,
            top_k=protocol.top_k,
            unmasked_frames=int(protocol.first_unmasked and protocol.keep_first),
        )[0]

    def _context(self) -> list[int]:
        """The frames that the next one reads, in order; a frame may be there more than once."""
        protocol, target = self._protocol, self._next
        if protocol.memory_offsets is not None:
            recent = {target - n for n in protocol.memory_offsets if target - n > 0}
            return sorted(recent | {index for index in protocol.kept_frames if index < target})
        last = range(target - protocol.context_frames, target)
        if protocol.repeat_first:
            recent_frames = [max(index, 0) for index in last]
        else:
            recent_frames = [index for index in last if index >= int(protocol.keep_first)]
        return [0, *recent_frames] if protocol.keep_first else recent_frames

    def _read_aligned(self, feature: Tensor) -> Tensor:
        protocol = self._protocol
        assert protocol.align_after is not None
        assert protocol.radius is not None
        memory = []
        for index in self._context():
            age = self._next - index
            steps = age // protocol.align_after + 1 if age > protocol.align_after else 0
            memory.append(MemoryFrame(*self._frames[index], dilation=min(MAX_DILATION, steps)))
        return aligned_copy(
            feature,
            memory,
            radius=protocol.radius,
            search_radius=SEARCH_RADIUS,
            temperature=protocol.temperature,
        )


def _labels_of(
    mask: IndexMask,
    object_ids: Sequence[int],
    protocol: Protocol,
    cells: Sequence[int],
    device: torch.device,
) -> Tensor:
    """Shares of background and each object per cell, (1 + O, h, w) float, summing to 1."""
    planes = np.stack([mask == value for value in object_ids])
    planes = np.concatenate(
        [~planes.any(0, keepdims=True), planes]
    )  # void and foreign ids are background
    pixels = torch.from_numpy(planes).to(device, torch.float32)[None]
    size = (int(cells[0]), int(cells[1]))
    if protocol.label_down == "bilinear":
        labels = functional.interpolate(pixels, size, mode="bilinear", align_corners=False)[0]
    else:
        mode = {"area": "area", "nearest": "nearest-exact"}[protocol.label_down]
        labels = functional.interpolate(pixels, size, mode=mode)[0]
    return _one_hot(labels.argmax(0), len(labels)) if protocol.hard_labels else labels


def _decide(
    labels: Tensor,
    ids: Tensor,
    frame_size: Sequence[int],
    protocol: Protocol,
    input_size: tuple[int, int] | None,
) -> IndexMask:
    size = (int(frame_size[0]), int(frame_size[1]))
    decide_size = input_size if protocol.decide_at == "input" and input_size else size
    if protocol.label_up == "bilinear":
        shares = functional.interpolate(
            labels[None], decide_size, mode="bilinear", align_corners=False
        )[0]
    else:
        shares = functional.interpolate(labels[None], decide_size, mode="nearest-exact")[0]
    if protocol.min_max:
        shares = _stretch(shares)
    winners = shares.argmax(0)
    if decide_size != size:
        winners = functional.interpolate(winners[None, None].float(), size, mode="nearest-exact")[
            0, 0
        ].long()
    return ids[winners.cpu()].numpy()


def _stretch(shares: Tensor) -> Tensor:
    """Each map to [0, 1] by its own extremes; empty maps stay, flat ones become 0 (norm_mask of the DINO code)."""
    lowest, highest = shares.amin((1, 2), keepdim=True), shares.amax((1, 2), keepdim=True)
    span = highest - lowest
    stretched = (shares - lowest) / torch.where(span > 0, span, 1.0)
    return torch.where(highest > 0, stretched, shares)


def _one_hot(winners: Tensor, num_labels: int) -> Tensor:
    return functional.one_hot(winners, num_labels).permute(2, 0, 1).float()
