"""Carries the first frame's mask through a sequence by attention over features: per-frame features in, masks out.

The algorithm that Vondrick et al. (ECCV 2018), CRW (NeurIPS 2020) and DINO (ICCV 2021) share; what differs between them
is in `Protocol`. Labels are shares per object; predictions are read again as context.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from videossl.eval.protocol import Protocol
from videossl.models.attention_copy import attention_copy

IndexMask = NDArray[np.uint8]


@torch.no_grad()
def propagate(
    features: Iterable[Tensor],
    first_mask: IndexMask,
    protocol: Protocol,
    *,
    object_ids: Sequence[int],
    input_size: tuple[int, int] | None = None,
) -> Iterator[IndexMask]:
    """Yields a mask of object ids (H, W) per frame; the first is `first_mask` itself.

    `features` gives (D, h, w) per frame, in order, centred and normalised already (see `videossl.eval.features`).
    `input_size` is (H, W) of the frames that the encoder saw, for protocols that decide there.
    """
    memory: deque[tuple[Tensor, Tensor]] = deque(maxlen=protocol.context_frames)
    first: tuple[Tensor, Tensor] | None = None
    ids = torch.tensor([0, *object_ids], dtype=torch.uint8)
    for feature in features:
        if first is None:
            labels = _labels_of(first_mask, object_ids, feature.shape[1:], protocol, feature.device)
            first = (feature, labels)
            if protocol.repeat_first or not protocol.keep_first:
                memory.extend([first] * (protocol.context_frames if protocol.repeat_first else 1))
            yield first_mask
            continue
        context = [first, *memory] if protocol.keep_first else list(memory)
        labels = attention_copy(
            feature[None],
            torch.stack([key for key, _ in context])[None],
            torch.stack([value for _, value in context])[None],
            temperature=protocol.temperature,
            radius=protocol.radius,
            mask=protocol.window,
            top_k=protocol.top_k,
            unmasked_frames=int(protocol.first_unmasked and protocol.keep_first),
        )[0]
        if protocol.hard_labels:
            labels = _one_hot(labels.argmax(0), len(ids))
        memory.append((feature, labels))
        yield _decide(labels, ids, first_mask.shape, protocol, input_size)


def _labels_of(
    mask: IndexMask,
    object_ids: Sequence[int],
    cells: Sequence[int],
    protocol: Protocol,
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
