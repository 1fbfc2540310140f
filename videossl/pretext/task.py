"""The contract of a pretext task: (x, y) = split(t), the lecture's definition of self-supervision.

`t` is a ClipBatch, `split` is `make_views`: inputs to encode and targets, made from the clips alone. `forward` judges the
encoded views. A task is one file with a `Config` and a class `Task(PretextTask)`; nothing else names it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from videossl.models.encoder import StageInfo
from videossl.pretext.settings import TaskConfig
from videossl.rng import RowRandom
from videossl.types import (
    ClipBatch,
    ClipSpec,
    FeatureMaps,
    Predictions,
    ShortcutInputs,
    TaskResult,
    Views,
)


def stage_keeping_time(stages: Mapping[str, StageInfo], stage: str, *, task: str) -> StageInfo:
    """The stage of a task that needs features of every frame. Raises ValueError if its temporal stride is not 1."""
    info = stages[stage]
    if info.temporal_stride != 1:
        raise ValueError(
            f"{task} needs every frame's own features, but {stage} has temporal stride "
            f"{info.temporal_stride}: set encoder.keep_time=true or read an earlier stage"
        )
    return info


def check_whole_cells(stages: Mapping[str, StageInfo], stage: str, **sizes: int) -> None:
    """Raises ValueError if one of the sizes in pixels, by its setting, is no whole number of the stage's cells."""
    stride = stages[stage].spatial_stride
    for name, size in sizes.items():
        if size % stride:
            raise ValueError(f"{name} {size} must be a multiple of {stage}'s stride {stride}")


class PretextTask(nn.Module, ABC):
    """One self-supervised question about clips.

    `clip_spec` says what must be decoded, `stage` which encoder stage is read. Sub-classes set both in `__init__`.
    """

    Config: ClassVar[type[TaskConfig]]
    clip_spec: ClipSpec
    stage: str
    wants_tracking: ClassVar[bool] = (
        False  # its stage is the one whose features correspond between frames
    )

    # What a guess is told, where it is not one of so many answers: "the batch's commonest colour class".
    chance_is: ClassVar[str] = ""

    momentum: float | None = (
        None  # of the encoder's slow copy, which `Views.slow_inputs` go through
    )

    def __init__(self, config: TaskConfig, stages: Mapping[str, StageInfo]) -> None:
        super().__init__()
        self.stage = config.stage

    def prepare(self, batch: ClipBatch, seed: int) -> None:
        """Fits what must be known of the data before training (colour classes); the same on every rank. Default: nothing."""

    @abstractmethod
    def make_views(self, batch: ClipBatch, rng: RowRandom) -> Views:
        """Inputs to encode and targets, without gradient, on the batch's device.

        All randomness comes from `rng`, whose rows are the batch's videos.
        """

    @abstractmethod
    def forward(self, features: dict[str, FeatureMaps], targets: dict[str, Tensor]) -> TaskResult:
        """Head, loss and metrics from the features of each view of `make_views`, at `stage`."""

    def after_step(self, skipped: Tensor) -> None:
        """Called after each optimiser step; `skipped` (a bool scalar on the device) is true if it did not count. Default:
        nothing."""

    def forget_videos(self) -> None:
        """Called before clips of another manifest are judged: rows remembered are none of its. Default: nothing."""

    def predictions(
        self, features: dict[str, FeatureMaps], targets: dict[str, Tensor]
    ) -> Predictions | None:
        """The answer to each question, without gradient: what `videossl pretext-eval` judges. Default: metrics alone."""
        return None

    def shortcut_inputs(self, views: Views) -> ShortcutInputs | None:
        """The frames that each question shows, which `videossl audit` fits shortcut baselines to. Default: none."""
        return None

    def draw(self, views: Views, features: dict[str, FeatureMaps]) -> dict[str, Tensor]:
        """Pictures by name, (3, H, W) uint8, of a few of the views and what the task answers. Default: none."""
        return {}
