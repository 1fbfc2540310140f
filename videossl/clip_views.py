"""Views of clips that several tasks build: cut at an offset of their own, in one colour channel, in another order.

Clips are normalised Lab, (N, 3, T, H, W), on any device. Randomness comes in as tensors, or from the rows' own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from videossl.color import denormalize_lab, lab_to_rgb, normalize_lab, rgb_to_lab
from videossl.rng import RowRandom


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
    rgb = _rgb(clips)
    index = channel[:, None, :, None, None].expand(-1, 1, -1, *clips.shape[3:])
    grey = rgb.gather(1, index)  # (N, 1, T, H, W)
    lightness = normalize_lab(rgb_to_lab(grey.expand_as(rgb), dim=1), dim=1)[:, :1]
    return torch.cat([lightness, torch.zeros_like(clips[:, 1:])], 1)


def show_apart(clips: Tensor, rng: RowRandom, *, size: int, shift: int, is_split: bool) -> Tensor:
    """The clips of a window (B, K, 3, T, H, W), each cut at an offset of its own, (B K, 3, T, size, size).

    Offsets are up to `shift` pixels, the same for a clip's frames; if `is_split`, each clip shows one colour channel.
    """
    count, num_frames = clips.shape[1], clips.shape[3]
    views = clips.flatten(0, 1)
    if shift:
        offsets = rng.integers(count, 1, 2, high=2 * shift + 1).expand(-1, -1, num_frames, -1)
        views = cut_frames(views, offsets.flatten(0, 1), size)
    if is_split:
        channel = rng.integers(count, 1, high=3).expand(-1, -1, num_frames)
        views = split_channels(views, channel.flatten(0, 1))
    return views


def without_green_magenta(clips: Tensor) -> Tensor:
    """Clips whose colours are projected along the axis from green to magenta, the same shape.

    Lenses shift green against magenta towards the edge of a picture, so that colour fringes tell where a patch was
    (Doersch et al., ICCV 2015, section 3.1); two frames that differ along that axis alone become one. In sRGB, as there.
    """
    red, green, blue = _rgb(clips).unbind(1)
    part = (2 * green - red - blue) / 6  # along (-1, 2, -1), whose square is 6
    projected = torch.stack([red + part, green - 2 * part, blue + part], 1)
    return normalize_lab(rgb_to_lab(projected, dim=1), dim=1)


def reorder_frames(clips: Tensor, order: Tensor) -> Tensor:
    """The frames of each clip whose indices are `order` (N, T), in that order."""
    index = order[:, None, :, None, None].expand(-1, clips.shape[1], -1, *clips.shape[3:])
    return clips.gather(2, index)


def warp_frames(
    clips: Tensor, *, centre: Tensor, scale: Tensor, angle: Tensor, size: int
) -> Tensor:
    """(N, 3, T, size, size): of each clip the square around `centre` (N, 2), all its frames alike.

    `centre` is a row and a column in pixels from the top left corner, `scale` (N,) how many pixels of the clip one of the
    result covers, `angle` (N,) radians that the square is turned by, clockwise. Two samples a side for each pixel: no
    aliasing up to a scale of 2. Beyond its edge a clip goes on as it ends.
    """
    span = (torch.arange(2 * size, device=clips.device) + 0.5) / 2 - size / 2
    down, right = torch.meshgrid(span, span, indexing="ij")  # pixels of the result, from its centre
    turn, scale = angle[:, None, None], scale[:, None, None]
    row = centre[:, 0, None, None] + scale * (turn.cos() * down + turn.sin() * right)
    column = centre[:, 1, None, None] + scale * (turn.cos() * right - turn.sin() * down)
    place = torch.stack([2 * column / clips.shape[4] - 1, 2 * row / clips.shape[3] - 1], -1)
    frames = clips.flatten(1, 2)  # (N, 3 T, H, W)
    sampled = F.grid_sample(frames, place, padding_mode="border", align_corners=False)
    return F.avg_pool2d(sampled, 2).unflatten(1, clips.shape[1:3])


def thumbnails(clips: Tensor, side: int = 8) -> Tensor:
    """(N, side, side): the lightness of each clip's middle frame, area-sampled; what rules without a network look at."""
    return F.adaptive_avg_pool2d(clips[:, 0, clips.shape[2] // 2], side)


def mean_pictures(clips: Tensor, side: int = 8) -> Tensor:
    """(N, 3 side^2): each clip's mean over time, area-sampled; the nearest of them is often of the same video."""
    return F.adaptive_avg_pool3d(clips, (1, side, side)).flatten(1)


def change(clips: Tensor) -> Tensor:
    """(N,) the mean |difference| of neighbouring frames, lightness alone."""
    lightness = clips[:, 0]
    return (lightness[:, 1:] - lightness[:, :-1]).abs().mean(dim=(1, 2, 3))


def _rgb(clips: Tensor) -> Tensor:
    """sRGB in [0, 1] of normalised Lab, the same shape."""
    return lab_to_rgb(denormalize_lab(clips, dim=1), dim=1)
