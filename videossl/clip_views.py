"""Views of clips that several tasks build: cut at an offset of their own, in one colour channel, in another order.

Clips are normalised Lab, (N, 3, T, H, W), on any device. Randomness comes in as tensors, drawn by the caller.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from videossl.color import LAB_OFFSET, LAB_SCALE, lab_to_rgb, rgb_to_lab


def cut_frames(clips: Tensor, offsets: Tensor, size: int) -> Tensor:
    """(N, 3, T, size, size): of each frame the square whose top left corner is `offsets` (N, T, 2), row and column."""
    span = torch.arange(size, device=clips.device)
    rows, columns = (offsets[..., axis, None] + span for axis in (0, 1))  # (N, T, size)
    clip = torch.arange(len(clips), device=clips.device)[:, None, None, None]
    frame = torch.arange(clips.shape[2], device=clips.device)[None, :, None, None]
    cut = clips.movedim(1, -1)[clip, frame, rows[..., None], columns[:, :, None]]
    return cut.movedim(-1, 1)  # from (N, T, size, size, 3)


def split_channels(clips: Tensor, channel: Tensor) -> Tensor:
    """Grey clips that show one of red, green and blue, the same shape: `channel` (N, T) in [0, 3) for each frame.

    Channel splitting (Lee et al., ICCV 2017, section 4.1): frames of two channels cannot be compared by their colour.
    """
    parts = zip(clips.unbind(1), LAB_OFFSET, LAB_SCALE, strict=True)
    rgb = lab_to_rgb(torch.stack([c * scale + offset for c, offset, scale in parts], 1), dim=1)
    index = channel[:, None, :, None, None].expand(-1, 1, -1, *clips.shape[3:])
    grey = rgb.gather(1, index)  # (N, 1, T, H, W)
    lightness = rgb_to_lab(grey.expand_as(rgb), dim=1)[:, :1]
    lightness = (lightness - LAB_OFFSET[0]) / LAB_SCALE[0]
    return torch.cat([lightness, torch.zeros_like(clips[:, 1:])], 1)


def reorder_frames(clips: Tensor, order: Tensor) -> Tensor:
    """The frames of each clip in the order (N, T) of their indices."""
    return clips.gather(2, order[:, None, :, None, None].expand_as(clips))


def thumbnails(clips: Tensor, side: int = 8) -> Tensor:
    """(N, side, side): the lightness of each clip's middle frame, area-sampled; what rules without a network look at."""
    return F.adaptive_avg_pool2d(clips[:, 0, clips.shape[2] // 2], side)
