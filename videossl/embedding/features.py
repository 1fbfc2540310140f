"""From videos to frozen features: each video's clips through the encoder, one video at a time.

One video at a time, so that its features are the same whatever stands beside it in a batch, and on whichever rank.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from videossl.embedding.clip_reader import ClipReader
from videossl.export.video_encoder import VideoEncoder
from videossl.workers import num_cores

Form = Literal["pooled", "tokens"]
TOKEN_GRID = (4, 4, 4)  # at most: time, height, width; means over equal parts of larger maps


@dataclass(frozen=True)
class VideoFeatures:
    """Of one row of the manifest: (K, C) of its clips, (K, P, C) tokens, or None and the reason."""

    row: int
    clips: Tensor | None
    reason: str = ""


def video_features(
    encoder: VideoEncoder,
    reader: ClipReader,
    rows: Sequence[int],
    *,
    device: torch.device,
    form: Form = "pooled",
    num_workers: int | None = None,
) -> Iterator[VideoFeatures]:
    """The features of these rows in their order, float32 on the CPU, the encoder frozen in evaluation mode.

    `pooled` is the mean over time and space of the encoder's stage, `tokens` its cells, at most TOKEN_GRID of them.
    """
    encoder = encoder.to(device).eval()
    readout = encoder.forward if form == "pooled" else _tokens_of(encoder)
    workers = max(1, num_cores() - 1) if num_workers is None else num_workers
    for found in reader.read_all(rows, num_workers=workers):
        if found.frames is None:
            yield VideoFeatures(found.row, None, found.reason)
            continue
        with torch.inference_mode():
            features = readout(found.frames.to(device, non_blocking=True))
        if not torch.isfinite(features).all():
            yield VideoFeatures(found.row, None, "the encoder's features of it are not finite")
            continue
        yield VideoFeatures(found.row, features.float().cpu())


def _tokens_of(encoder: VideoEncoder) -> Callable[[Tensor], Tensor]:
    def tokens(video: Tensor) -> Tensor:
        """(K, T, 3, H, W) to (K, P, C)."""
        maps = encoder.feature_maps(video)[encoder.stage]
        time, height, width = map(min, maps.shape[2:], TOKEN_GRID)
        return (
            F.adaptive_avg_pool3d(maps, (time, height, width))
            .flatten(2)
            .transpose(1, 2)
            .contiguous()
        )

    return tokens
