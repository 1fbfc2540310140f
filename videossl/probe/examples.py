"""The frozen features of one part of a split, beside their classes and sources: what a probe learns from or answers."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from videossl.embedding.features import VideoFeatures
from videossl.errors import UserError
from videossl.probe.split import LabelledSplit

log = logging.getLogger("videossl")


@dataclass(frozen=True)
class Examples:
    """V videos: `features` (V, K, C), or (V, K, P, C) tokens; `labels` (V,) int64, `groups` and `rows` (V,)."""

    features: Tensor
    labels: Tensor
    groups: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def per_video(self) -> Tensor:
        """(V, C): the mean of the clips' features, each of unit length."""
        return torch.nn.functional.normalize(self.features, dim=-1).mean(1)

    @property
    def per_clip(self) -> tuple[Tensor, Tensor]:
        """(V * K, ...) features and (V * K,) labels."""
        num_clips = self.features.shape[1]
        return self.features.flatten(0, 1), self.labels.repeat_interleave(num_clips)

    def select(self, chosen: np.ndarray) -> "Examples":
        """The same of some videos, by position."""
        index = torch.from_numpy(chosen)
        return Examples(
            self.features[index], self.labels[index], self.groups[chosen], self.rows[chosen]
        )


def examples_of(
    rows: np.ndarray, split: LabelledSplit, features: Mapping[int, VideoFeatures], part: str
) -> Examples:
    """The videos among `rows` that have features; how many have none is said.

    Raises UserError where none has, and where a class of the train part has none left: its answers could not be learned.
    """
    kept = [row for row in rows.tolist() if features[row].clips is not None]
    lost = [row for row in rows.tolist() if features[row].clips is None]
    if not kept:
        raise UserError(
            f"not one of the {len(rows)} videos of the {part} part has features, the first because: "
            f"{features[int(rows[0])].reason}"
        )
    gone = set(split.label[rows].tolist()) - set(split.label[kept].tolist())
    if part == "train" and gone:
        raise UserError(
            f"no video of class {split.classes[min(gone)]!r} is left to learn from: {len(lost)} of the {part} part have no "
            f"features, the first because: {features[lost[0]].reason}"
        )
    if lost:
        log.warning(
            "%d of %d videos of the %s part are left out, the first because: %s",
            *(len(lost), len(rows), part, features[lost[0]].reason),
        )
    return Examples(
        torch.stack([features[row].clips for row in kept]),  # type: ignore[misc]
        torch.from_numpy(split.label[kept]),
        split.group[kept],
        np.asarray(kept),
    )
