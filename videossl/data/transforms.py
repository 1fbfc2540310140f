"""uint8 frames to the encoders' input, batched, on the device: crop, flip, photometric jitter, normalised Lab.

One set of parameters per clip, the same for all its frames; the crop and the flip are shared by the clips of a video but
for a small shift of each clip. In evaluation the crop is the centre and nothing is jittered.
"""

import math

import torch
from einops import rearrange, repeat
from torch import Tensor

from videossl.color import normalize_lab, rgb_to_lab
from videossl.config import Augmentation
from videossl.rng import RowRandom


def transform_clips(
    frames: Tensor, crop_size: int, augmentation: Augmentation, rng: RowRandom | None
) -> Tensor:
    """(B, K, T, 3, S, S) uint8 RGB to (B, K, 3, T, crop_size, crop_size) float32 normalised Lab.

    `rng` has one row per video; None evaluates: the centre crop, no jitter.
    """
    num_videos, num_clips = frames.shape[:2]
    boxes = _boxes(num_videos, num_clips, frames.shape[-1], augmentation, rng, frames.device)
    cropped = _crop(frames, boxes, crop_size)  # (B, K, T, 3, H, W) in [0, 1]
    if rng is not None and augmentation.flip:
        flipped = rng.uniform() < 0.5
        cropped = torch.where(flipped[:, None, None, None, None, None], cropped.flip(-1), cropped)
    lab = rgb_to_lab(cropped)
    if rng is not None:
        lab = _jitter(lab, augmentation, rng)
    return rearrange(normalize_lab(lab), "b k t c h w -> b k c t h w").contiguous()


def _boxes(
    num_videos: int,
    num_clips: int,
    side: int,
    augmentation: Augmentation,
    rng: RowRandom | None,
    device: torch.device,
) -> Tensor:
    """(B, K, 4) square boxes x0 y0 x1 y1 in pixels, inside the frame without its border."""
    inner = side * (1 - 2 * augmentation.border)
    if rng is None:
        low, size = torch.full((num_videos, num_clips, 2), (side - inner) / 2, device=device), inner
        return torch.cat([low, low + size], -1)
    # Uniform in log scale: as many octaves in as out.
    scale = torch.exp(rng.uniform(1, 1, low=math.log(augmentation.min_scale), high=0.0))
    size_drawn = inner * scale  # (B, 1, 1)
    room = inner - size_drawn
    place = rng.uniform(1, 2) * room
    shift = rng.uniform(num_clips, 2, low=-1.0, high=1.0) * (
        augmentation.clip_jitter * side if num_clips > 1 else 0.0
    )
    low = torch.minimum((place + shift).clamp_min(0), room) + augmentation.border * side
    return torch.cat([low, low + size_drawn], -1)


def _crop(frames: Tensor, boxes: Tensor, crop_size: int) -> Tensor:
    """Area-sampled square crops of all frames of each clip: (B, K, T, 3, crop, crop) float in [0, 1]."""
    num_videos, num_clips, num_frames = frames.shape[:3]
    images = rearrange(frames, "b k t c h w -> (b k) (t c) h w").float() / 255
    from torchvision.ops import roi_align  # torchvision takes a second to load

    index = torch.arange(len(images), device=frames.device, dtype=boxes.dtype)
    rois = torch.cat([index[:, None], boxes.flatten(0, 1)], 1)
    # Two samples a side for each output pixel: no aliasing down to half size.
    cropped = roi_align(images, rois, crop_size, sampling_ratio=2, aligned=True)
    return rearrange(
        cropped, "(b k) (t c) h w -> b k t c h w", b=num_videos, k=num_clips, t=num_frames
    )


def _jitter(lab: Tensor, augmentation: Augmentation, rng: RowRandom) -> Tensor:
    """Lightness gain and offset, saturation and hue rotation: one draw per clip. Lab (B, K, T, 3, H, W)."""
    draws = rng.uniform(lab.shape[1], 4, low=-1.0, high=1.0)
    draws = repeat(draws, "b k p -> p b k 1 1 1")
    lightness = (lab[..., 0, :, :] - 50) * (1 + augmentation.contrast * draws[0]) + 50
    lightness = lightness + augmentation.brightness * draws[1]
    saturation = 1 + augmentation.saturation * draws[2]
    angle = math.radians(augmentation.hue_degrees) * draws[3]
    a, b = lab[..., 1, :, :], lab[..., 2, :, :]
    turned_a = saturation * (torch.cos(angle) * a - torch.sin(angle) * b)
    turned_b = saturation * (torch.sin(angle) * a + torch.cos(angle) * b)
    return torch.stack([lightness.clamp(0, 100), turned_a, turned_b], -3)
