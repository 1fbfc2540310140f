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

from videossl.tracking.memory import LabelMemory
from videossl.tracking.protocol import Protocol

LEVELS = 256
FAINT = 0.05  # shares below are no pixel's: what is left by filters and far cells; chosen, docs/results.md


def greatest_expected_iou(shares: Tensor, *, power: float = 1.0) -> Tensor:
    """The winner of each pixel, (H, W) int64, of `shares` (V, H, W) >= 0, the background's first.

    An object's probability is p = s^power / (s^power + (1 - s)^power) of its part s of the pixel's shares. Its threshold
    is the multiple of 1/256, up to 1/2, whose mask M has the greatest sum(p in M) / (|M| + sum(p outside)). A pixel goes
    to the object that is furthest above its threshold, as a ratio, and to the background where none is above.
    """
    shares = shares.clamp_min(0)
    parts = shares[1:] / shares.sum(0).clamp_min(torch.finfo(shares.dtype).tiny)
    if not len(parts):
        return torch.zeros(shares.shape[1:], dtype=torch.int64, device=shares.device)
    raised = parts**power
    probability = raised / (raised + (1 - parts) ** power)
    above = torch.stack([plane / _threshold(plane) for plane in probability])
    ratio, winner = above.max(0)
    return torch.where(ratio > 1, winner + 1, 0)


def _threshold(probability: Tensor) -> Tensor:
    """The threshold whose mask of one object has the greatest expected J, a scalar.

    For an object that is nowhere it is the lowest that counts, which no pixel exceeds.
    """
    # The last level that a pixel is above.
    level = (probability * LEVELS).ceil().long().sub(1).clamp_min(0).flatten()
    counts = torch.bincount(level, minlength=LEVELS).double()
    sums = torch.bincount(level, probability.flatten().double(), minlength=LEVELS)
    first = round(FAINT * LEVELS)
    # From a level on upwards: how many pixels a mask with that threshold has, and how many of them are the object's.
    area, inside = (values[first:].flip(0).cumsum(0).flip(0) for values in (counts, sums))
    expected_iou = inside / (area + inside[0] - inside).clamp_min(1)
    return (first + expected_iou[: LEVELS // 2 - first + 1].argmax()) / LEVELS


def refine(
    shares: Tensor, frame: Tensor, *, radius: int, epsilon: float, fit_size: tuple[int, int]
) -> Tensor:
    """Shares (V, h, w), which sum to 1 in each cell, as those of the pixels of `frame`: (V, H, W) float32, summing to 1.

    `frame` (3, H, W) is uint8 RGB. `radius` of the square windows is in pixels of `fit_size` (H', W'), at which the linear
    functions are fitted; `epsilon` is the ridge on colours in [0, 1]: the larger, the smoother.
    """
    guide = frame.to(shares.device).float() / 255
    size = (guide.shape[1], guide.shape[2])
    # The filter is linear and keeps constants: the background is what the objects leave.
    objects = _resized(shares[1:].float(), fit_size)
    slope, offset = _linear_functions(
        _resized(guide, fit_size, mode="area"), objects, radius, epsilon
    )
    slope = _resized(slope.flatten(0, 1), size).unflatten(0, slope.shape[:2])
    refined = (slope * guide).sum(1) + _resized(offset, size)
    return torch.cat([1 - refined.sum(0, keepdim=True), refined])


def _linear_functions(
    guide: Tensor, values: Tensor, radius: int, epsilon: float
) -> tuple[Tensor, Tensor]:
    """For each pixel the mean slope (V, 3, H, W) and offset (V, H, W) of the windows around it."""
    mean = _window_mean(guide, radius)
    spread = _window_mean(guide[:, None] * guide, radius) - mean[:, None] * mean  # (3, 3, H, W)
    matrix = spread.permute(2, 3, 0, 1) + epsilon * torch.eye(3, device=guide.device)
    value_mean = _window_mean(values, radius)
    shared = _window_mean(values[:, None] * guide, radius) - value_mean[:, None] * mean
    slope = torch.linalg.solve(matrix, shared.permute(2, 3, 1, 0)).permute(3, 2, 0, 1)
    offset = value_mean - (slope * mean).sum(1)
    return _window_mean(slope, radius), _window_mean(offset, radius)


def _window_mean(planes: Tensor, radius: int) -> Tensor:
    """The mean over the window of each pixel, as far as it lies in the picture; planes (..., H, W)."""
    for axis in (-2, -1):
        length = planes.shape[axis]
        place = torch.arange(length, device=planes.device)
        first, end = (place - radius).clamp_min(0), (place + radius + 1).clamp_max(length)
        sums = planes.cumsum(axis)
        before = torch.cat([torch.zeros_like(sums.narrow(axis, 0, 1)), sums], axis)
        count = (end - first).view(-1, *[1] * (-axis - 1))
        planes = (before.index_select(axis, end) - before.index_select(axis, first)) / count
    return planes


def _resized(planes: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    if planes.shape[-2:] == size:
        return planes
    corners = {} if mode == "area" else {"align_corners": False}
    return functional.interpolate(planes[None], size, mode=mode, **corners)[0]


IndexMask = NDArray[np.uint8]
MakeLabels = Callable[[Sequence[int], torch.device], Tensor]
Settle = Callable[[Tensor], tuple[Tensor, Tensor]]
FrameAt = Callable[[int], Tensor]


@torch.no_grad()
def propagate(
    features: Iterable[Tensor],
    first_mask: IndexMask,
    protocol: Protocol,
    *,
    object_ids: Sequence[int],
    input_size: tuple[int, int] | None = None,
    later_masks: Mapping[int, IndexMask] | None = None,
    frame_at: FrameAt | None = None,
    max_bytes: int | None = None,
) -> Iterator[IndexMask]:
    """Yields a mask of object ids (H, W) per frame; the first is `first_mask` itself.

    `features` gives (D, h, w) per frame, in order, centred and normalised already (see `videossl.tracking.features`).
    `input_size` is (H, W) of the frames that the encoder saw, for protocols that decide there. `later_masks` are, by
    frame, those of objects that appear there (YouTube-VOS): each is followed as if the video began at its frame, since
    frames before it say nothing of its objects, and is taken as given where it lies. `frame_at(index)` gives a frame as it
    is, (3, H, W) uint8 RGB, for protocols that refine. `max_bytes` bounds the memory that reading takes, besides the
    features.

    Raises ValueError if the protocol refines and there is no `frame_at`.
    """
    if protocol.refine_radius is not None and frame_at is None:
        raise ValueError("a protocol with refine_radius needs frame_at")
    given = {0: first_mask, **(later_masks or {})}
    ids = {start: [v for v in object_ids if (mask == v).any()] for start, mask in given.items()}
    given = {start: mask for start, mask in given.items() if ids[start]}
    starts = {
        start: partial(_labels_of, mask, ids[start], protocol) for start, mask in given.items()
    }
    decide = partial(
        _winners, frame_size=first_mask.shape, protocol=protocol, input_size=input_size
    )
    settle = partial(_settle, protocol=protocol, decide=decide)
    found = propagate_labels(features, starts, protocol, settle=settle, max_bytes=max_bytes)
    for index, groups in enumerate(found):
        if index == 0 or not groups:
            yield first_mask if index == 0 else np.zeros_like(first_mask)
            continue
        numbers = [0, *(value for start in groups for value in ids[start])]
        shares = _merged(list(groups.values()))
        if protocol.refine_radius is not None and frame_at is not None:
            winners = _winner(_refined(shares, frame_at(index), protocol), protocol)
        else:
            winners = decide(shares)
        mask = torch.tensor(numbers, dtype=torch.uint8)[winners.cpu()].numpy()
        yield np.where(given[index] > 0, given[index], mask) if index in given else mask


def _refined(shares: Tensor, frame: Tensor, protocol: Protocol) -> Tensor:
    """Shares of cells as those of the frame's pixels, drawn to its edges, (V, H, W)."""
    assert protocol.refine_radius is not None
    scale = protocol.refine_side / min(frame.shape[1:])
    fit_size = (round(frame.shape[1] * scale), round(frame.shape[2] * scale))
    return refine(
        shares / shares.sum(0).clamp_min(torch.finfo(shares.dtype).tiny),
        frame,
        radius=protocol.refine_radius,
        epsilon=protocol.refine_epsilon,
        fit_size=fit_size,
    )


def _merged(groups: list[Tensor]) -> Tensor:
    """The labels of all groups under one background, which is where none of them has an object."""
    if len(groups) == 1:
        return groups[0]
    # Weights that a protocol loses are no object's: each group's labels sum to 1 before they are compared.
    groups = [labels / labels.sum(0).clamp_min(torch.finfo(labels.dtype).tiny) for labels in groups]
    background = torch.stack([labels[0] for labels in groups]).amin(0, keepdim=True)
    return torch.cat([background, *(labels[1:] for labels in groups)])


@torch.no_grad()
def propagate_labels(
    features: Iterable[Tensor],
    starts: Mapping[int, MakeLabels],
    protocol: Protocol,
    *,
    settle: Settle | None = None,
    max_bytes: int | None = None,
) -> Iterator[dict[int, Tensor]]:
    """Yields per frame, for each start so far, what the cells copy of its labels, (V, h, w): masks, joints, points.

    `starts[index]((h, w), device)` makes the labels that are known at that frame. Each start has a memory of its own, in
    which its frame is the first. `settle` turns what was copied into what is yielded and what the memory keeps.
    """
    settle = settle or _as_copied
    memories: dict[int, LabelMemory] = {}
    for index, feature in enumerate(features):
        # Channels last once: what all memories keep is then the same.
        feature = feature.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        found = {}
        for start, memory in memories.items():
            found[start], kept = settle(memory.read(feature))
            memory.add(feature, kept)
        if index in starts:
            memory = memories[index] = LabelMemory(protocol, max_bytes=max_bytes)
            found[index] = starts[index](feature.shape[1:], feature.device)
            memory.add(feature, found[index])
            if protocol.first_copies == "queried":
                memory.replace_first(settle(memory.read(feature))[1])
        yield found


def _as_copied(labels: Tensor) -> tuple[Tensor, Tensor]:
    return labels, labels


def _labels_of(
    mask: IndexMask,
    object_ids: Sequence[int],
    protocol: Protocol,
    cells: Sequence[int],
    device: torch.device,
) -> Tensor:
    """Shares of background and each object per cell, (1 + O, h, w) float, summing to 1."""
    numbers = np.zeros(256, np.int64)  # void and foreign ids are background
    numbers[list(object_ids)] = np.arange(1, len(object_ids) + 1)
    winners = torch.from_numpy(numbers[mask]).to(device)
    return _to_cells(winners, len(object_ids) + 1, (int(cells[0]), int(cells[1])), protocol)


def _to_cells(
    winners: Tensor, num_labels: int, size: tuple[int, int], protocol: Protocol
) -> Tensor:
    """Winners of pixels (H, W) to labels of cells, (num_labels, h, w)."""
    if protocol.label_downsample == "index":
        # The mean of ids as numbers, cut: a cell is an object's where all pixels around its middle are.
        cells = functional.interpolate(
            winners[None, None].float(), size, mode="bilinear", align_corners=False
        )
        return _one_hot(cells[0, 0].long(), num_labels)
    pixels = _one_hot(winners, num_labels)[None]
    if protocol.label_downsample == "bilinear":
        labels = functional.interpolate(pixels, size, mode="bilinear", align_corners=False)[0]
    else:
        modes = {"area": "area", "nearest": "nearest-exact", "corner": "nearest"}
        labels = functional.interpolate(pixels, size, mode=modes[protocol.label_downsample])[0]
    return _one_hot(labels.argmax(0), num_labels) if protocol.hard_labels else labels


def _settle(
    labels: Tensor, *, protocol: Protocol, decide: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Labels as copied to those that decide, and those that the memory keeps."""
    if protocol.norm_mask and protocol.norm_mask_at == "cells":
        labels = _stretch(labels)
    if not protocol.hard_labels:
        return labels, labels
    if protocol.hard_at == "cells":
        labels = _one_hot(labels.argmax(0), len(labels))
        return labels, labels
    size = (labels.shape[1], labels.shape[2])
    return labels, _to_cells(decide(labels), len(labels), size, protocol)


def _winners(
    labels: Tensor,
    *,
    frame_size: Sequence[int],
    protocol: Protocol,
    input_size: tuple[int, int] | None,
) -> Tensor:
    """Labels of cells to the winner of each pixel, (H, W)."""
    size = (int(frame_size[0]), int(frame_size[1]))
    decide_size = input_size if protocol.decision_at == "input" and input_size else size
    if protocol.label_upsample == "bilinear":
        shares = functional.interpolate(
            labels[None], decide_size, mode="bilinear", align_corners=False
        )[0]
    else:
        shares = functional.interpolate(labels[None], decide_size, mode="nearest-exact")[0]
    if protocol.norm_mask and protocol.norm_mask_at == "pixels":
        shares = _stretch(shares)
    winners = _winner(shares, protocol)
    if decide_size != size:
        winners = functional.interpolate(winners[None, None].float(), size, mode="nearest-exact")[
            0, 0
        ].long()
    return winners


def _winner(shares: Tensor, protocol: Protocol) -> Tensor:
    if protocol.decision == "expected_iou":
        return greatest_expected_iou(shares, power=protocol.decision_power)
    return shares.argmax(0)


def _stretch(shares: Tensor) -> Tensor:
    """Each map to [0, 1] by its own extremes; empty maps stay, flat ones become 0 (norm_mask of the DINO code)."""
    lowest, highest = shares.amin((1, 2), keepdim=True), shares.amax((1, 2), keepdim=True)
    span = highest - lowest
    stretched = (shares - lowest) / torch.where(span > 0, span, 1.0)
    return torch.where(highest > 0, stretched, shares)


def _one_hot(winners: Tensor, num_labels: int) -> Tensor:
    return functional.one_hot(winners, num_labels).permute(2, 0, 1).float()
