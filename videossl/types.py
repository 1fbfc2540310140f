"""What travels between the layers.

Axes: B videos, K clips per video, N rows through the encoder, T frames, C channels, H W pixels, h w cells,
D embedding, M memory frames, O objects.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, order=True)
class ClipSpec:
    """What a pretext task wants decoded of each video: K clips of T frames, in order, inside one window.

    The clips start at random times inside a window of at most `window_seconds`, neighbouring starts at least
    `min_gap_seconds` apart. With one clip both are 0.

    Raises ValueError for counts below 1 and for a window too short to hold the clips.
    """

    num_clips: int
    num_frames: int
    seconds_between_frames: float
    crop_size: int  # pixels, square
    min_gap_seconds: float = 0.0  # between the starts of neighbouring clips
    window_seconds: float = (
        0.0  # from the first frame of the first clip to the last frame of the last
    )

    def __post_init__(self) -> None:
        if min(self.num_clips, self.num_frames, self.crop_size) < 1:
            raise ValueError(f"num_clips, num_frames and crop_size must be >= 1, got {self}")
        if self.seconds_between_frames <= 0:
            raise ValueError(f"seconds_between_frames must be > 0, got {self}")
        if self.num_clips > 1 and self.window_seconds < self.min_span_seconds - 1e-9:
            raise ValueError(
                f"window_seconds {self.window_seconds:g} cannot hold {self.num_clips} clips that need "
                f"{self.min_span_seconds:g} s: widen window_seconds or lower min_gap_seconds"
            )

    @property
    def clip_seconds(self) -> float:
        """From the first to the last frame of one clip."""
        return (self.num_frames - 1) * self.seconds_between_frames

    @property
    def min_span_seconds(self) -> float:
        """The shortest window that holds all clips: what a video must offer to be usable."""
        return (self.num_clips - 1) * self.min_gap_seconds + self.clip_seconds


@dataclass(frozen=True)
class ClipBatch:
    """The clips of B videos on the training device, in normalised Lab (see `videossl.color`).

    `clips[spec]` is (B, K, 3, T, H, W) float; equal specs share one tensor object. `pts_seconds[spec]` is (B, K, T)
    float64, `video_ids` (B,) int64: rows of the manifest. Raises ValueError if the shapes disagree.
    """

    clips: Mapping[ClipSpec, Tensor]
    pts_seconds: Mapping[ClipSpec, Tensor]
    video_ids: Tensor

    def __post_init__(self) -> None:
        for spec, clip in self.clips.items():
            num_videos = len(self.video_ids)
            expected = (
                num_videos,
                spec.num_clips,
                3,
                spec.num_frames,
                spec.crop_size,
                spec.crop_size,
            )
            if tuple(clip.shape) != expected:
                raise ValueError(f"clips of {spec} must be {expected}, got {tuple(clip.shape)}")
            times = tuple(self.pts_seconds[spec].shape)
            if times != (num_videos, spec.num_clips, spec.num_frames):
                raise ValueError(f"pts_seconds of {spec} must be (B, K, T), got {times}")

    def __len__(self) -> int:
        return len(self.video_ids)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{tuple(clip.shape)}" for clip in self.clips.values())
        return f"ClipBatch({len(self)} videos; clips {shapes})"


@dataclass(frozen=True)
class FeatureMaps:
    """One encoder stage: (N, C, T, h, w) features and how many input frames and pixels one cell covers."""

    data: Tensor
    temporal_stride: int
    spatial_stride: int

    def __getitem__(self, rows: slice) -> "FeatureMaps":
        return FeatureMaps(self.data[rows], self.temporal_stride, self.spatial_stride)

    def __repr__(self) -> str:
        return f"FeatureMaps({tuple(self.data.shape)}, strides {self.temporal_stride}, {self.spatial_stride})"


@dataclass(frozen=True)
class Views:
    """What a task wants encoded, and what it needs to judge the answer.

    `inputs[name]` is (N, 3, T, H, W); names are the task's own. `targets` holds tensors on the same device. A view that
    *is* a tensor object another task also asks for is encoded once.
    """

    inputs: dict[str, Tensor]
    targets: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskResult:
    """A task's answer on its rows: a scalar loss with gradient, and detached scalar metrics on the device.

    Each metric is a mean over the local rows; `chance` is what guessing without looking scores on `accuracy`.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    chance: float

    def __post_init__(self) -> None:
        if self.loss.ndim != 0:
            raise ValueError(f"a task's loss must be a scalar, got shape {tuple(self.loss.shape)}")
        if any(metric.requires_grad for metric in self.metrics.values()):
            raise ValueError("a task's metrics must be detached: they would keep the graph alive")
