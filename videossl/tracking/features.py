"""Frames to per-frame features: an encoder in windows, raw Lab patches, or what somebody else's code gives.

A 3D encoder sees clips and tracking wants one map per frame, so frames are encoded in windows that overlap, and each keeps
its map of the window in which it lies deepest. Frames are read by a thread while those before them are encoded.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal, NamedTuple
from typing import Protocol as TypingProtocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from videossl.color import encoder_input
from videossl.errors import UserError
from videossl.io.input_files import is_system_leftover
from videossl.io.pictures import in_frame_order
from videossl.io.progress import RunAhead
from videossl.models.encoder import Encoder, StageInfo, without_temporal_stride
from videossl.tracking.protocol import Protocol
from videossl.tracking.sequence import FrameSource


class Window(NamedTuple):
    """`frames` go through the encoder in this order; of its answers those at positions [start, stop) are used."""

    frames: tuple[int, ...]
    start: int
    stop: int


def windows(num_frames: int, protocol: Protocol, *, is_per_frame: bool) -> Iterator[Window]:
    """The windows of a sequence; each frame is kept once, in order.

    With `is_per_frame`, features that see no other frame, windows are batches without overlap.
    """
    length = min(protocol.window_frames, num_frames)
    if is_per_frame:
        yield from sliding_windows(num_frames, length, length)
    elif protocol.clip == "sliding":
        yield from sliding_windows(num_frames, length, protocol.window_step)
    else:
        size = protocol.window_frames
        for frame in range(num_frames):
            if protocol.clip == "static":
                yield Window((frame,) * size, size // 2, size // 2 + 1)
            else:  # before the first frame there is the first frame
                past = tuple(max(0, frame - size + 1 + i) for i in range(size))
                yield Window(past, size - 1, size)


def sliding_windows(
    num_frames: int, window_frames: int, step: int | None = None
) -> Iterator[Window]:
    """Windows `step` frames apart, by default half a window; of each frame the window that holds it most centrally."""
    length = min(window_frames, num_frames)
    step = min(length, step or max(1, length // 2))
    starts = [*range(0, num_frames - length, step), num_frames - length]
    kept = 0
    for i, start in enumerate(starts):
        is_last = i == len(starts) - 1
        # Midway between the centres of this window and the next.
        keep_stop = num_frames if is_last else (start + starts[i + 1] + length + 1) // 2
        yield Window(tuple(range(start, start + length)), kept - start, keep_stop - start)
        kept = keep_stop


class StoredFeatures:
    """Reads `<folder>/<sequence>.npy`, or `<folder>/<sequence>/<anything>.npy` in the order of frames (in_frame_order).

    Nothing in a file is executed: arrays of numbers alone are read. Raises UserError for a folder without any.
    """

    stride = 1  # what it was is not known, nor at which size the frames were seen
    is_per_frame = True
    input: Literal["lab", "rgb"] = "rgb"

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        self.folder, self.device = folder, torch.device(device)
        if not arrays_of(folder) and not any(map(arrays_of, folder.glob("*/"))):
            raise UserError(
                f"{folder} holds no features: <sequence>.npy (T, D, h, w) or <sequence>/<frame>.npy (D, h, w) are read"
            )

    def __call__(self, clip: Tensor) -> Tensor:
        """Never: features are made already."""
        raise TypeError("stored features answer for a sequence, not for a clip")

    def describe(self) -> dict[str, object]:
        """Plain types for JSON."""
        return {"stored": str(self.folder)}

    def of(self, name: str, num_frames: int) -> Iterator[Tensor]:
        """The features of one sequence, (D, h, w) float32 per frame.

        Raises UserError for features that are missing, of other frames, sizes or kinds.
        """
        whole = self.folder / f"{name}.npy"
        if whole.is_file():
            array = _read(whole, num_axes=4)
            found = len(array)
            frames: Iterator[NDArray[np.generic]] = iter(array)
        else:
            paths = arrays_of(self.folder / name)
            found = len(paths)
            frames = (_read(path, num_axes=3) for path in paths)
        if found != num_frames:
            raise UserError(
                f"{self.folder} has features of {found} frames of {name}, which has {num_frames}: "
                f"{name}.npy or {name}/*.npy must hold one per frame"
            )
        shape: tuple[int, ...] | None = None
        for index, frame in enumerate(frames):
            shape = shape or frame.shape
            if frame.shape != shape:
                raise UserError(f"{name}: frame {index} has features {frame.shape}, others {shape}")
            with np.errstate(over="ignore"):  # infinities are refused by who reads them
                values = np.array(frame, np.float32)
            yield torch.from_numpy(values).to(self.device)


def arrays_of(folder: Path) -> list[Path]:
    """The .npy files of a folder in the order of frames."""
    return in_frame_order(p for p in folder.glob("*.npy") if not is_system_leftover(p.name))


def _read(path: Path, *, num_axes: int) -> NDArray[np.generic]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: no array of numbers can be read ({error})") from None
    axes = {3: "(D, h, w)", 4: "(T, D, h, w)"}[num_axes]
    if array.ndim != num_axes or array.dtype.kind != "f":
        raise UserError(f"{path}: {axes} floats are needed, got {array.shape} {array.dtype}")
    return array


LAB_PATCH_PIXELS = 4
LAB_PATCH_TEMPERATURE = 0.005  # chosen on drift-straight, like the preset of this library

_KEPT_BYTES = 2**30  # of features of one sequence in memory; what is beyond waits in a file
_READ_AHEAD = 2  # windows; chosen


class Extractor(TypingProtocol):
    """Clips to features: called with (3, T, H, W), answers (T, D, h, w) float.

    `input` says whether the clip is normalised `lab` or uint8 `rgb`.
    """

    stride: int  # pixels per cell
    is_per_frame: bool  # whether a frame's features depend on that frame alone
    input: Literal["lab", "rgb"]
    device: torch.device

    def __call__(self, clip: Tensor) -> Tensor: ...

    def describe(self) -> dict[str, object]:
        """Plain types for JSON: which features these are."""
        ...


class EncoderFeatures:
    """One stage of an encoder as per-frame features, or several joined by `+`.

    `stage` None takes the encoder's own `track_stage`, else the finest stage of stride 4 or more. Of several stages each is
    brought to unit length and to the finest grid among them, then they are concatenated. `time` says what becomes of
    temporal strides (see Protocol). Raises UserError for an unknown stage.
    """

    input: Literal["lab", "rgb"] = "lab"

    def __init__(
        self,
        encoder: Encoder,
        *,
        stage: str | None = None,
        device: torch.device | str = "cpu",
        time: str = "trained",
    ) -> None:
        self._given = encoder
        if time != "trained":
            encoder = without_temporal_stride(encoder, dilate=time == "dilated")
        self.encoder = encoder.eval().to(device)
        self.device = torch.device(device)
        self.time = time
        stages = encoder.stages
        self.stage = stage or encoder.track_stage or _default_stage(stages)
        self._parts = self.stage.split("+")
        unknown = [part for part in self._parts if part not in stages]
        if unknown:
            raise UserError(
                f"stage {'+'.join(unknown)!r} is unknown; this encoder has {', '.join(stages)}"
            )
        self.stride = min(stages[part].spatial_stride for part in self._parts)
        self.channels = sum(stages[part].channels for part in self._parts)
        self.is_per_frame = set(self._parts) <= set(encoder.frame_wise_stages)
        names = list(stages)
        # Stages behind the last one read get no rows: they would be computed for nobody.
        last = max(names.index(part) for part in self._parts)
        self._rows = {name: int(names.index(name) <= last) for name in names}

    def in_time(self, time: str) -> "EncoderFeatures":
        """The same features with temporal strides as a protocol wants them."""
        if time == self.time:
            return self
        return EncoderFeatures(self._given, stage=self.stage, device=self.device, time=time)

    @torch.no_grad()
    def __call__(self, clip: Tensor) -> Tensor:
        """See Extractor; a stage of temporal stride s repeats each feature s times."""
        maps = self.encoder(clip[None], self._rows)
        parts = []
        for part in self._parts:
            data = maps[part].data[0].transpose(0, 1)  # (T', C, h, w)
            if maps[part].temporal_stride > 1:
                data = data.repeat_interleave(maps[part].temporal_stride, 0)
            parts.append(data[: clip.shape[1]].float())
        if len(parts) == 1:
            return parts[0]
        size = max((part.shape[2:] for part in parts), key=lambda shape: shape.numel())
        joined = [functional.normalize(part, dim=1) for part in parts]
        return torch.cat(
            [
                part
                if part.shape[2:] == size
                else functional.interpolate(part, size, mode="bilinear", align_corners=False)
                for part in joined
            ],
            1,
        )

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
    input: Literal["lab", "rgb"] = "lab"

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
    source: FrameSource, extractor: Extractor, protocol: Protocol, *, name: str = ""
) -> Iterator[Tensor]:
    """The features (D, h, w) of each frame in order, centred and normalised as the protocol says.

    `name` is that of the sequence, under which stored features are found.

    Centring needs the mean over the sequence before the first frame: features up to 1 GiB are kept in memory, those beyond
    in a temporary file, so that no frame is encoded twice. Raises UserError for given features that are not finite.
    """
    if isinstance(extractor, StoredFeatures):
        yield from prepared(_finite(extractor.of(name, source.num_frames), name), protocol)
        return
    if isinstance(extractor, EncoderFeatures):
        extractor = extractor.in_time(protocol.time)
    raw = _raw_features(source, extractor, protocol)
    if not isinstance(extractor, EncoderFeatures | LabPatches):  # somebody else's
        raw = _finite(raw, name)
    yield from prepared(raw, protocol)


def _finite(raw: Iterator[Tensor], name: str) -> Iterator[Tensor]:
    """The same features; raises UserError for NaN and infinities, of which masks would be made all the same."""
    for index, feature in enumerate(raw):
        if not feature.isfinite().all():
            raise UserError(
                f"{name or 'sequence'}: the features of frame {index} are not all finite numbers"
            )
        yield feature


def prepared(raw: Iterator[Tensor], protocol: Protocol) -> Iterator[Tensor]:
    """Raw features (D, h, w) per frame, centred and normalised as the protocol says."""
    mean: Tensor | float = 0.0
    if protocol.centre:
        mean, raw = _mean_over(raw)
    for feature in raw:
        centred = feature - mean
        yield functional.normalize(centred, dim=0) if protocol.normalize else centred


def _mean_over(features: Iterator[Tensor]) -> tuple[Tensor, Iterator[Tensor]]:
    """The mean (D, 1, 1) over frames and cells, and the features once more."""
    total, num_frames = None, 0
    kept = _Kept()
    for feature in features:
        frame_mean = feature.double().mean((1, 2), keepdim=True)
        total = frame_mean if total is None else total + frame_mean
        num_frames += 1
        kept.add(feature)
    assert total is not None
    return (total / num_frames).float(), kept.features()


class _Kept:
    """Features of a sequence: the first GiB in memory, the rest in a file that nobody else sees."""

    def __init__(self) -> None:
        self._in_memory: list[Tensor] = []
        self._num_bytes = self._num_in_file = 0
        self._file: IO[bytes] | None = None

    def add(self, feature: Tensor) -> None:
        """Holds one more, (D, h, w) float32."""
        self._num_bytes += feature.nbytes
        if self._num_bytes <= _KEPT_BYTES:
            self._in_memory.append(feature)
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - read again by `features`
        self._file.write(feature.float().cpu().numpy().tobytes())
        self._num_in_file += 1
        self._shape, self._device = feature.shape, feature.device

    def features(self) -> Iterator[Tensor]:
        """All of them, once, in order; nothing is kept behind."""
        self._in_memory.reverse()
        while self._in_memory:
            yield self._in_memory.pop()
        if self._file is None:
            return
        with self._file:
            self._file.seek(0)
            for _ in range(self._num_in_file):
                values = np.frombuffer(self._file.read(4 * self._shape.numel()), np.float32)
                yield torch.from_numpy(values.copy()).view(self._shape).to(self._device)


def _raw_features(
    source: FrameSource, extractor: Extractor, protocol: Protocol
) -> Iterator[Tensor]:
    size = input_size(source.native_size, protocol, extractor.stride)
    per_frame = extractor.is_per_frame
    clips = _clips(source, windows(source.num_frames, protocol, is_per_frame=per_frame), size)
    for window, frames in RunAhead(clips, depth=_READ_AHEAD):
        clip = frames.transpose(0, 1).to(extractor.device)  # (3, T, H, W)
        if extractor.input == "lab":
            clip = encoder_input(clip, dim=0)
        if protocol.grey:
            clip = _grey(clip, extractor.input)
        features = extractor(clip)
        if protocol.mirror and not isinstance(extractor, LabPatches):
            features = (features + extractor(clip.flip(-1)).flip(-1)) / 2
        # A copy: a slice would keep the features of the whole window alive.
        yield from features[window.start : window.stop].clone()


def _grey(clip: Tensor, kind: Literal["lab", "rgb"]) -> Tensor:
    """Without colour: a and b of Lab zeroed; luma of RGB (ITU-R BT.601) in all three channels."""
    if kind == "lab":
        return torch.cat([clip[:1], torch.zeros_like(clip[1:])])
    weights = torch.tensor([0.299, 0.587, 0.114], device=clip.device)[:, None, None, None]
    luma = (clip.float() * weights).sum(0, keepdim=True).round().to(clip.dtype)
    return luma.expand_as(clip)


def _clips(
    source: FrameSource, all_windows: Iterator[Window], size: tuple[int, int]
) -> Iterator[tuple[Window, Tensor]]:
    """Each window with its frames, (T, 3, H, W) uint8; what the last one has is not read again."""
    held: dict[int, Tensor] = {}
    for window in all_windows:
        wanted = dict.fromkeys(window.frames)
        missing = [index for index in wanted if index not in held]
        if missing:
            held |= dict(zip(missing, source.read(missing, size), strict=True))
        held = {index: held[index] for index in wanted}
        yield window, torch.stack([held[index] for index in window.frames])


def _default_stage(stages: dict[str, StageInfo]) -> str:
    """The deepest of the finest stages of stride 4 or more; finer ones cost 16 times as much attention."""
    coarse = {name: info for name, info in stages.items() if info.spatial_stride >= 4} or stages
    finest = min(info.spatial_stride for info in coarse.values())
    return [name for name, info in coarse.items() if info.spatial_stride == finest][-1]
