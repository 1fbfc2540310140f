"""The baseline without features: dense optical flow takes the first mask from frame to frame.

Dense inverse search (Kroeger et al., ECCV 2016, arXiv:1603.03590) as OpenCV has it, an optional dependency. The flow goes
from each frame back to the one before, so that every pixel knows which of that frame's labels it takes; shares of each
object travel with bilinear weights, the largest is the mask. On blackswan, libby and motocross-jump of DAVIS this reads
J&F 41.1; hard masks warped with bilinear weights 40.3, with the nearest pixel 39.4; the presets "ultrafast" 40.6, "fast"
35.8; flow at 240 pixels 36.4.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from videossl.errors import UserError
from videossl.eval.frames import FrameSource
from videossl.eval.mask_files import IndexMask

FLOW_PIXELS = 480  # short side at which flow is computed, at most; chosen: DAVIS is scored at it
_LEAST_PIXELS = 12  # OpenCV's own limit
_CHUNK_FRAMES = 16  # in memory at a time: chosen

Flow = NDArray[np.float32]  # (H, W, 2), x and y in pixels
Shares = NDArray[np.float32]  # (1 + O, H, W), background first


def require_opencv() -> Any:
    """The module cv2; raises UserError that says how to get it."""
    try:
        import cv2
    except ImportError:
        raise UserError(
            "optical flow needs OpenCV: pip install 'videossl[stabilization]' (opencv-python-headless)"
        ) from None
    return cv2


def describe_flow() -> dict[str, object]:
    """Plain types for JSON: how flow is computed here."""
    version = require_opencv().__version__
    return {"method": "DIS, preset medium", "short_side": FLOW_PIXELS, "opencv": version}


def flow_masks(
    source: FrameSource,
    first_mask: IndexMask,
    *,
    object_ids: Sequence[int],
    later_masks: Mapping[int, IndexMask] | None = None,
) -> Iterator[IndexMask]:
    """Yields a mask of object ids (H, W) per frame; the first is `first_mask` itself.

    Objects of `later_masks` join at their frames, where they are taken as given. Raises UserError without OpenCV.
    """
    later = later_masks or {}
    ids = np.array([0, *object_ids], np.uint8)
    shares = _one_hot(first_mask, ids)
    yield first_mask
    for index, flow in enumerate(backward_flows(source), start=1):
        shares = warp(shares, flow)
        if index in later:
            given = later[index] > 0
            shares[:, given] = _one_hot(later[index], ids)[:, given]
        yield ids[shares.argmax(0)]


def backward_flows(source: FrameSource) -> Iterator[Flow]:
    """From each frame but the first to the one before it, (H, W, 2) in pixels of the native size."""
    cv2 = require_opencv()
    cv2.setNumThreads(torch.get_num_threads())  # one of several processes has one
    method = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    height, width = source.native_size
    scale = min(1.0, FLOW_PIXELS / min(height, width))
    size = (
        max(_LEAST_PIXELS, round(height * scale)),
        max(_LEAST_PIXELS, round(width * scale)),
    )
    to_native = np.array([width / size[1], height / size[0]], np.float32)
    before = None
    for frame in _grey_frames(source, size):
        if before is not None:
            flow = method.calc(frame, before, None)
            if size != (height, width):
                flow = cv2.resize(flow, (width, height), interpolation=cv2.INTER_LINEAR) * to_native
            yield flow
        before = frame


def warp(shares: Shares, flow: Flow) -> Shares:
    """Shares as each pixel finds them where its flow points, bilinear; beyond the border is what lies on it."""
    cv2 = require_opencv()
    height, width = flow.shape[:2]
    x = np.arange(width, dtype=np.float32) + flow[..., 0]
    y = np.arange(height, dtype=np.float32)[:, None] + flow[..., 1]
    # Plane by plane: OpenCV takes four channels at most.
    planes = [
        cv2.remap(plane, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for plane in shares
    ]
    return np.stack(planes)


def _grey_frames(source: FrameSource, size: tuple[int, int]) -> Iterator[NDArray[np.uint8]]:
    cv2 = require_opencv()
    for start in range(0, source.num_frames, _CHUNK_FRAMES):
        indices = range(start, min(start + _CHUNK_FRAMES, source.num_frames))
        for rgb in source.read(indices, size).permute(0, 2, 3, 1).numpy():
            yield cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY)


def _one_hot(mask: IndexMask, ids: NDArray[np.uint8]) -> Shares:
    shares = (mask == ids[:, None, None]).astype(np.float32)
    shares[0] = 1 - shares[1:].sum(0)  # void and foreign ids are background
    return shares
