"""What travels between the layers.

Axes: B videos, K clips per video, N rows through the encoder, T frames, C channels, H W pixels, h w cells,
D embedding, M memory frames, O objects.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, order=True)
class ClipSpec:
    """What a pretext task wants decoded of each video: K clips of T frames, in order, inside one window.

    The clips start at random times inside a window of at most `window_seconds`, neighbouring starts at least
    `min_gap_seconds` apart. With one clip both are 0. Or each gap between neighbouring starts has a range of its own,
    `gap_ranges` of (least, most) seconds, which then stand for both.

    Raises ValueError for counts below 1, for a window too short to hold the clips and for ranges that are none.
    """

    num_clips: int
    num_frames: int
    seconds_between_frames: float
    crop_size: int  # pixels, square
    min_gap_seconds: float = 0.0  # between the starts of neighbouring clips
    window_seconds: float = (
        0.0  # from the first frame of the first clip to the last frame of the last
    )
    gap_ranges: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        if min(self.num_clips, self.num_frames, self.crop_size) < 1:
            raise ValueError(f"num_clips, num_frames and crop_size must be >= 1, got {self}")
        if self.seconds_between_frames <= 0:
            raise ValueError(f"seconds_between_frames must be > 0, got {self}")
        if self.gap_ranges:
            if len(self.gap_ranges) != self.num_clips - 1:
                raise ValueError(
                    f"{self.num_clips} clips have {self.num_clips - 1} gaps, got {len(self.gap_ranges)} gap_ranges"
                )
            if any(not 0 <= least <= most for least, most in self.gap_ranges):
                raise ValueError(
                    f"gap_ranges must be (least, most) with 0 <= least <= most, got {self.gap_ranges}"
                )
        elif self.num_clips > 1 and self.window_seconds < self.min_span_seconds - 1e-9:
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
        if self.gap_ranges:
            return sum(least for least, _ in self.gap_ranges) + self.clip_seconds
        return (self.num_clips - 1) * self.min_gap_seconds + self.clip_seconds

    @property
    def max_span_seconds(self) -> float:
        """The longest window that the clips may take."""
        if self.gap_ranges:
            return sum(most for _, most in self.gap_ranges) + self.clip_seconds
        return max(self.window_seconds, self.clip_seconds)


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

    `inputs[name]` is (N, 3, T, H, W); names are the task's own. `reversals` names further views, each with the name of the
    input that it shows backward in time. `slow_inputs` go through the encoder's slow copy, if the task has a `momentum`.
    `targets` holds tensors on the same device. A view that *is* a tensor object another task also asks for is encoded once.
    """

    inputs: dict[str, Tensor]
    targets: dict[str, Tensor] = field(default_factory=dict)
    reversals: dict[str, str] = field(default_factory=dict)
    slow_inputs: dict[str, Tensor] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The names of all views that the encoder itself sees."""
        return [*self.inputs, *self.reversals]

    def clips(self, name: str) -> Tensor:
        """The clips of a view, reversed ones too: (N, 3, T, H, W)."""
        if name in self.reversals:
            return self.inputs[self.reversals[name]].flip(2)
        return self.inputs[name]


@dataclass(frozen=True)
class TaskResult:
    """A task's answer on its rows: a scalar loss with gradient, and the sums behind its metrics, detached, on the device.

    A metric's sums are (2, G): sums and counts per group, made by `metric_sum`. Adding them over batches and ranks and
    then taking `metric_mean` gives the exact mean over all of them. `accuracy` and `chance` are always among them: chance
    is what the best guess that does not look at the input scores on `accuracy`. `shortcut_baseline` is what the cheapest
    known rule without a network scores on it, where there is one.
    """

    loss: Tensor
    metric_sums: dict[str, Tensor]

    def __post_init__(self) -> None:
        if self.loss.ndim != 0:
            raise ValueError(f"a task's loss must be a scalar, got shape {tuple(self.loss.shape)}")
        for name, value in self.metric_sums.items():
            if value.requires_grad or value.ndim != 2 or len(value) != 2:
                raise ValueError(
                    f"the sums of metric {name!r} must be detached and (2, G), got {tuple(value.shape)}"
                )
        if missing := {"accuracy", "chance"} - self.metric_sums.keys():
            raise ValueError(f"a task must give the metrics {sorted(missing)}")


@dataclass(frozen=True)
class Predictions:
    """What a task answers to each of the Q questions it asks of a batch, detached: what evaluation judges.

    `scores` (Q, A) are larger for the likelier of A answers, `labels` (Q,) int64 is the right one, `videos` (Q,) int64 the
    batch row that a question is about, `weights` (Q,) its weight, 0 leaves it out (None: all 1). `baselines[name]` (Q,)
    int64 is the answer of a rule without a network, `numbers[name]` (Q,) whatever else is worth a mean, `subsets[name]`
    (Q,) bool marks questions that are also judged by themselves. `chance` (Q,) is what a guess scores where answers are
    candidates of a batch, not classes. Raises ValueError if the numbers of rows disagree.
    """

    scores: Tensor
    labels: Tensor
    videos: Tensor
    weights: Tensor | None = None
    baselines: dict[str, Tensor] = field(default_factory=dict)
    numbers: dict[str, Tensor] = field(default_factory=dict)
    subsets: dict[str, Tensor] = field(default_factory=dict)
    chance: Tensor | None = None

    def __post_init__(self) -> None:
        if self.scores.ndim != 2 or self.scores.requires_grad:
            raise ValueError(f"scores must be detached and (Q, A), got {tuple(self.scores.shape)}")
        rows = {"labels": self.labels, "videos": self.videos}
        rows |= {**self.baselines, **self.numbers, **self.subsets}
        rows |= {} if self.weights is None else {"weights": self.weights}
        rows |= {} if self.chance is None else {"chance": self.chance}
        for name, values in rows.items():
            if tuple(values.shape) != (len(self.scores),):
                raise ValueError(f"{name} must be ({len(self.scores)},), got {tuple(values.shape)}")


@dataclass(frozen=True)
class ShortcutInputs:
    """What each of the Q questions of a batch shows, so that rules without a network can try to answer them.

    `frames` (Q, F, 3, H, W) are the frames in the order shown, normalised Lab, as the encoder sees them; `labels` (Q,) int64
    the right answer among `num_answers`; `videos` (Q,) int64 the batch row. Raises ValueError if the shapes disagree.
    """

    frames: Tensor
    labels: Tensor
    videos: Tensor
    num_answers: int

    def __post_init__(self) -> None:
        if self.frames.ndim != 5 or self.frames.shape[2] != 3:
            raise ValueError(f"frames must be (Q, F, 3, H, W), got {tuple(self.frames.shape)}")
        if not len(self.frames) == len(self.labels) == len(self.videos):
            raise ValueError(
                f"{len(self.frames)} questions have {len(self.labels)} labels and {len(self.videos)} videos"
            )


def metric_sum(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """(2, 1): the weighted sum of `values` and the sum of the weights (1 each if not given)."""
    values = values.detach().float()
    weights = (
        torch.ones_like(values) if weights is None else weights.detach().float().expand_as(values)
    )
    return torch.stack([(values * weights).sum(), weights.sum()]).unsqueeze(1)


def metric_sum_by_class(values: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """(2, num_classes): sums and counts of `values` by class; its `metric_mean` weighs every class alike."""
    values, classes = values.detach().float().flatten(), classes.flatten()
    sums = values.new_zeros(2, num_classes)
    sums[0].index_add_(0, classes, values)
    sums[1].index_add_(0, classes, torch.ones_like(values))
    return sums


def metric_mean(tallied: Tensor) -> float:
    """The mean over the groups that were seen of sum / count; nan if none was."""
    sums, counts = tallied.double().cpu()
    seen = counts > 0
    return float((sums[seen] / counts[seen]).mean()) if bool(seen.any()) else float("nan")
