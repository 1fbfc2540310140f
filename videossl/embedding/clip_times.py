"""Which seconds of a video are shown when it is judged: K clips, evenly spread, the same ones at every call."""

import torch
from torch import Tensor

from videossl.export.clip_form import ClipForm


def uniform_clip_times(
    begin: float, end: float, *, fps: float, clip: ClipForm, num_clips: int
) -> Tensor:
    """(K, T) float64 seconds in [begin, end): the first clip starts with the video, the last one ends with it.

    One clip is the middle one. In a video shorter than a clip, the frames after its last one show that again: each video
    has its features, however short (Xu et al., CVPR 2019 leave such videos out).
    """
    last = max(begin, end - (1 / fps if fps > 0 else 0.0))  # when the last frame begins
    slack = max(last - begin - clip.clip_seconds, 0.0)
    steps = torch.arange(num_clips, dtype=torch.float64)
    shares = steps / (num_clips - 1) if num_clips > 1 else torch.full((1,), 0.5).double()
    starts = begin + shares * slack
    frames = torch.arange(clip.num_frames, dtype=torch.float64) * clip.seconds_between_frames
    return (starts[:, None] + frames).clamp(begin, last)
