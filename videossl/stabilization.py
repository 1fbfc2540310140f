"""Takes a camera's motion out of clips: every frame is laid over the centre one by a homography.

Wei, Lim, Zisserman, Freeman, CVPR 2018, section 4: a camera that only ever zooms in tells time's direction without anything
happening. Corners are tracked from the centre frame (Lucas and Kanade) and a homography fitted to them (RANSAC) by OpenCV,
an optional dependency, on the CPU; frames are warped on the clip's own device.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

MAX_CORNERS = 200
MIN_CORNERS = 12  # below which no homography is believed; chosen
MIN_INLIERS = 0.5  # share of the corners tracked that must follow it; chosen
RANSAC_PIXELS = 1.0

Homographies = NDArray[np.float64]  # (T, 3, 3)


def require_opencv() -> Any:
    """The module cv2; raises ValueError that says how to get it."""
    try:
        import cv2
    except ImportError as error:
        raise ValueError(
            "stabilising needs OpenCV: pip install 'videossl[stabilization]', or set stabilize=false"
        ) from error
    return cv2


def camera_motion(frames: NDArray[np.uint8]) -> Homographies | None:
    """The homography from the centre frame to each frame of a grey clip (T, H, W); None where one cannot be believed.

    Points (x, y) of the centre frame, T // 2, go to where the camera's motion has taken them.
    """
    cv2 = require_opencv()
    centre = len(frames) // 2
    side = min(frames.shape[1:])
    corners = cv2.goodFeaturesToTrack(
        frames[centre], MAX_CORNERS, qualityLevel=0.01, minDistance=max(3, side // 24)
    )
    if corners is None or len(corners) < MIN_CORNERS:
        return None
    motion = np.tile(np.eye(3), (len(frames), 1, 1))
    # Outwards from the centre, each time from where the corners were seen last.
    for direction in (1, -1):
        found, alive = corners.copy(), np.ones(len(corners), dtype=bool)
        previous = frames[centre]
        for index in range(centre + direction, -1 if direction < 0 else len(frames), direction):
            found, status, _ = cv2.calcOpticalFlowPyrLK(previous, frames[index], found, None)
            alive &= status[:, 0] == 1
            if alive.sum() < MIN_CORNERS:
                return None
            fitted, inliers = cv2.findHomography(
                corners[alive], found[alive], cv2.RANSAC, RANSAC_PIXELS
            )
            if fitted is None or inliers.mean() < MIN_INLIERS:
                return None
            motion[index] = fitted
            previous = frames[index]
    return motion


def covers(motion: Homographies, side: int, margin: int) -> bool:
    """Whether every frame of `side` pixels shows all of what the centre frame shows inside `margin`."""
    low, high = margin, side - 1 - margin
    corners = np.array([[low, low, 1], [low, high, 1], [high, low, 1], [high, high, 1]], float)
    taken = motion @ corners.T  # (T, 3, 4)
    if (taken[:, 2] <= 0).any():  # behind the camera
        return False
    points = taken[:, :2] / taken[:, 2:]
    return bool((points >= 0).all() and (points <= side - 1).all())


def stabilize(clips: Tensor, margin: int) -> tuple[Tensor, Tensor]:
    """Clips (N, 3, T, S, S) of normalised Lab over their centre frames, without `margin` pixels on each side, and (N,) bool
    whether that was possible; those where it was not are cut alone.

    Waits for the device: corners are tracked on the CPU. T must be odd: the centre frame alone is not resampled, and only in
    the very middle does it look the same from both ends.
    """
    num_clips, _, num_frames, side, _ = clips.shape
    if num_frames % 2 == 0:
        raise ValueError(f"num_frames must be odd to be stabilised, got {num_frames}")
    lightness = clips[:, 0].float()
    low, high = lightness.amin((1, 2, 3), keepdim=True), lightness.amax((1, 2, 3), keepdim=True)
    grey = (255 * (lightness - low) / (high - low).clamp_min(1e-3)).to(torch.uint8).cpu().numpy()
    motions = [camera_motion(clip) for clip in grey]
    stable = [motion is not None and covers(motion, side, margin) for motion in motions]
    identity = np.tile(np.eye(3), (num_frames, 1, 1))
    chosen = [
        m if m is not None and ok else identity for m, ok in zip(motions, stable, strict=True)
    ]
    homographies = torch.from_numpy(np.stack(chosen)).to(clips.device, torch.float32)
    inside = torch.arange(margin, side - margin, device=clips.device, dtype=torch.float32)
    y, x = torch.meshgrid(inside, inside, indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)], -1)  # (s, s, 3)
    taken = torch.einsum("ntij,yxj->ntyxi", homographies, points)
    grid = 2 * taken[..., :2] / taken[..., 2:] / (side - 1) - 1
    frames = clips.transpose(1, 2).flatten(0, 1).float()
    warped = F.grid_sample(frames, grid.flatten(0, 1), align_corners=True, padding_mode="border")
    warped = warped.unflatten(0, (num_clips, num_frames)).transpose(1, 2).to(clips.dtype)
    return warped, torch.tensor(stable, device=clips.device)
