"""Frames to per-frame features: an encoder in sliding windows, or raw Lab patches.

A 3D encoder sees clips; tracking wants one map per frame. Windows overlap by half and only their centres are kept, where
the temporal padding of the convolutions reaches least.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from typing import Protocol as TypingProtocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional

from videossl.color import encoder_input
from videossl.decode.reader import VideoReader
from videossl.errors import UserError
from videossl.eval.protocol import Protocol
from videossl.models.encoder import Encoder, StageInfo

LAB_PATCH_PIXELS = 4
LAB_PATCH_TEMPERATURE = 0.005  # chosen on drift-straight, like the preset of this library

_KEPT_BYTES = (
    2**30
)  # of features of one sequence; a longer one is encoded twice when it must be centred


class FrameSource(TypingProtocol):
    """The frames of one sequence, at any size asked for."""

    num_frames: int
    native_size: tuple[int, int]  # (H, W)

    def read(self, indices: Sequence[int], size: tuple[int, int]) -> Tensor:
        """These frames resized to (H, W): (n, 3, H, W) uint8 RGB."""
        ...


class Extractor(TypingProtocol):
    """Clips to features: called with (3, T, H, W) normalised Lab, answers (T, D, h, w) float."""

    stride: int  # pixels per cell
    is_per_frame: bool  # whether a frame's features depend on that frame alone
    device: torch.device

    def __call__(self, clip: Tensor) -> Tensor: ...

    def describe(self) -> dict[str, object]:
        """Plain types for JSON: which features these are."""
        ...


class ImageFrames:
    """Frames that lie in a folder as images."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self.num_frames = len(self.paths)
        with Image.open(self.paths[0]) as image:
            self.native_size = (image.height, image.width)

    def read(self, indices: Sequence[int], size: tuple[int, int]) -> Tensor:
        """See FrameSource. Raises UserError for a damaged image."""
        frames = []
        for index in indices:
            try:
                with Image.open(self.paths[index]) as image:
                    frames.append(resize_rgb(image.convert("RGB"), size))
            except (UnidentifiedImageError, OSError) as error:
                raise UserError(f"{self.paths[index]}: damaged image ({error})") from None
        return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


class VideoFrames:
    """Frames of an open video, decoded when asked for and resized at once."""

    def __init__(self, reader: VideoReader) -> None:
        self.reader = reader
        self.num_frames = reader.num_frames
        self.native_size = (reader.height, reader.width)

    def read(self, indices: Sequence[int], size: tuple[int, int]) -> Tensor:
        """See FrameSource."""
        frames = self.reader.frames_at(list(indices)).data.permute(0, 2, 3, 1).cpu().numpy()
        resized = [resize_rgb(Image.fromarray(frame), size) for frame in frames]
        return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)


def resize_rgb(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """An RGB image at (H, W), (H, W, 3) uint8, bicubic with antialiasing."""
    if (image.height, image.width) != size:
        image = image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(image)


class EncoderFeatures:
    """One stage of an encoder as per-frame features.

    `stage` None takes the encoder's own `track_stage`, else the finest stage of stride 4 or more. Raises UserError for
    an unknown stage.
    """

    is_per_frame = False

    def __init__(
        self, encoder: Encoder, *, stage: str | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.encoder = encoder.eval().to(device)
        self.device = torch.device(device)
        stages = encoder.stages
        self.stage = stage or encoder.track_stage or _default_stage(stages)
        if self.stage not in stages:
            raise UserError(
                f"stage {self.stage!r} is unknown; this encoder has {', '.join(stages)}"
            )
        self.stride = stages[self.stage].spatial_stride
        self.channels = stages[self.stage].channels
        names = list(stages)
        # Stages behind the one read get no rows: they would be computed for nobody.
        self._rows = {name: int(names.index(name) <= names.index(self.stage)) for name in names}

    @torch.no_grad()
    def __call__(self, clip: Tensor) -> Tensor:
        """See Extractor; a stage of temporal stride s repeats each feature s times."""
        maps = self.encoder(clip[None], self._rows)[self.stage]
        data = maps.data[0].transpose(0, 1)  # (T', C, h, w)
        if maps.temporal_stride > 1:
            data = data.repeat_interleave(maps.temporal_stride, 0)
        return data[: clip.shape[1]].float()

    def describe(self) -> dict[str, object]:
        """See Extractor."""
        return {
            "encoder": self.encoder.spec.name,
            "stage": self.stage,
            "channels": self.channels,
            "cell_pixels": self.stride,
        }


class LabPatches:
    """The baseline without a network: each cell is its 4x4 patch of normalised Lab."""

    stride = LAB_PATCH_PIXELS
    is_per_frame = True

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def __call__(self, clip: Tensor) -> Tensor:
        """See Extractor."""
        return functional.pixel_unshuffle(clip.transpose(0, 1), self.stride)

    def describe(self) -> dict[str, object]:
        """See Extractor."""
        return {
            "patches": "normalised Lab",
            "channels": 3 * self.stride**2,
            "cell_pixels": self.stride,
        }


class Window(NamedTuple):
    """Frames [start, stop) go through the encoder, features of [keep_start, keep_stop) are used."""

    start: int
    stop: int
    keep_start: int
    keep_stop: int


def sliding_windows(num_frames: int, window_frames: int) -> list[Window]:
    """Windows that overlap by half; each frame is kept once, from the window that holds it most centrally."""
    length = min(window_frames, num_frames)
    step = max(1, length // 2)
    starts = [*range(0, num_frames - length, step), num_frames - length]
    windows, kept = [], 0
    for i, start in enumerate(starts):
        is_last = i == len(starts) - 1
        # Midway between the centres of this window and the next.
        keep_stop = num_frames if is_last else (start + starts[i + 1] + length + 1) // 2
        windows.append(Window(start, start + length, kept, keep_stop))
        kept = keep_stop
    return windows


def input_size(native_size: tuple[int, int], protocol: Protocol, stride: int) -> tuple[int, int]:
    """(H, W) at which the encoder sees the frames: the short side asked for, both sides multiples of the stride.

    Sides go to the nearest multiple of the stride by resizing (never padding, so that no cell lies on invented pixels);
    the long side is floored to `long_side_multiple` where the protocol has one. `input_hw` squeezes frames to one size.
    """
    if protocol.input_hw is not None:
        height, width = (max(round(s / stride) * stride, stride) for s in protocol.input_hw)
        return height, width
    short = min(native_size)
    scale = 1.0 if protocol.short_side is None else protocol.short_side / short
    sides = []
    for side in native_size:
        multiple = protocol.long_side_multiple
        if multiple is not None and side > short:
            floored = int(side * scale) // multiple * multiple
            sides.append(max(floored // stride * stride, stride))
        else:
            sides.append(max(round(side * scale / stride) * stride, stride))
    return sides[0], sides[1]


def sequence_features(
    source: FrameSource, extractor: Extractor, protocol: Protocol
) -> Iterator[Tensor]:
    """The features (D, h, w) of each frame in order, centred and normalised as the protocol says.

    Centring needs the mean over the sequence before the first frame: features up to 1 GiB are kept, a longer sequence
    is encoded twice.
    """

    def extract() -> Iterator[Tensor]:
        return _raw_features(source, extractor, protocol)

    features: Iterator[Tensor] = extract()
    mean: Tensor | float = 0.0
    if protocol.centre:
        mean, kept = _mean_over(features)
        features = iter(kept) if kept is not None else extract()
    for feature in features:
        centred = feature - mean
        yield functional.normalize(centred, dim=0) if protocol.normalize else centred


def _mean_over(features: Iterator[Tensor]) -> tuple[Tensor, list[Tensor] | None]:
    """The mean (D, 1, 1) over frames and cells, and the features themselves unless they are too large to keep."""
    total, num_frames, num_bytes = None, 0, 0
    kept: list[Tensor] | None = []
    for feature in features:
        frame_mean = feature.double().mean((1, 2), keepdim=True)
        total = frame_mean if total is None else total + frame_mean
        num_frames += 1
        num_bytes += feature.nbytes
        if num_bytes > _KEPT_BYTES:
            kept = None
        elif kept is not None:
            kept.append(feature)
    assert total is not None
    return (total / num_frames).float(), kept


def _raw_features(
    source: FrameSource, extractor: Extractor, protocol: Protocol
) -> Iterator[Tensor]:
    size = input_size(source.native_size, protocol, extractor.stride)
    window_frames = 1 if extractor.is_per_frame else protocol.window_frames
    frames: dict[int, Tensor] = {}  # the overlap, so that no frame is decoded twice
    for window in sliding_windows(source.num_frames, window_frames):
        wanted = range(window.start, window.stop)
        missing = [index for index in wanted if index not in frames]
        fresh = dict(zip(missing, source.read(missing, size), strict=True))
        frames = {index: frames[index] if index in frames else fresh[index] for index in wanted}
        rgb = torch.stack([frames[index] for index in wanted], 1).to(
            extractor.device
        )  # (3, T, H, W)
        clip = encoder_input(rgb, dim=0)
        if protocol.grey:
            clip[1:] = 0
        features = extractor(clip)
        # A copy: a slice would keep the features of the whole window alive.
        yield from features[
            window.keep_start - window.start : window.keep_stop - window.start
        ].clone()


def _default_stage(stages: dict[str, StageInfo]) -> str:
    """The deepest of the finest stages of stride 4 or more; finer ones cost 16 times as much attention."""
    coarse = {name: info for name, info in stages.items() if info.spatial_stride >= 4} or stages
    finest = min(info.spatial_stride for info in coarse.values())
    return [name for name, info in coarse.items() if info.spatial_stride == finest][-1]
