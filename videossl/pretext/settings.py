"""The settings of every pretext task, on one page: `tasks.<name>.<key>` of a config.

Nothing here needs torch, so that a mistyped key is told before torch is loaded. A task's file says what the settings mean
together and which paper they are from.
"""

from itertools import pairwise
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Stage = Literal["res2", "res3", "res4", "res5"]
Loss = Literal[
    "info_nce",
    "nce",
    "n_pair",
    "contrastive",
    "triplet",
    "lifted_structured",
    "soft_nearest_neighbour",
]


Negatives = Literal["easy", "spatial", "hard"]


class TaskConfig(BaseModel):
    """What every task's configuration has."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(1.0, gt=0, description="factor of this task's loss in the sum")
    stage: Stage = Field("res5", description="encoder stage whose features the task reads")


class ArrowOfTimeConfig(TaskConfig):
    num_frames: int = Field(8, ge=2)
    seconds_between_frames: float = Field(1 / 15, gt=0)
    crop_size: int = Field(112, ge=16, description="pixels, square")
    num_clips: int = Field(
        1,
        ge=1,
        description="of each video; clips of the same shape and window as another task's are shared with it",
    )
    min_gap_seconds: float = Field(0.0, ge=0, description="between the starts of several clips")
    window_seconds: float = Field(0.0, ge=0, description="all of several clips lie inside")
    num_groups: int = Field(
        2, ge=1, description="parts of a clip that are pooled apart; T-CAM's T = 2"
    )
    cells: int = Field(
        2, ge=1, description="cells per side of the grid that the head sees of each group"
    )
    fusion: Literal["grid", "tcam"] = Field(
        "grid", description="of the groups: a grid of means, or T-CAM's convolutions"
    )
    stabilize: bool = Field(
        False, description="take the camera's motion out; needs OpenCV, and an odd num_frames"
    )
    stabilize_margin: int = Field(
        8, ge=1, description="pixels decoded around the crop, which a camera's motion may use up"
    )
    hidden_dim: int = Field(256, ge=1, description="width of the head's hidden layer")
    dropout: float = Field(0.5, ge=0, lt=1)
    min_motion: float = Field(
        0.02,
        ge=0,
        description="mean |difference| of neighbouring frames (normalised L) below which a clip is left out",
    )


class ClipOrderConfig(TaskConfig):
    num_clips: int = Field(3, ge=2, le=4, description="3 in VCOP, 4 in OPN")
    num_frames: int = Field(16, ge=1, description="of a clip; 1 in OPN")
    seconds_between_frames: float = Field(1 / 30, gt=0)
    min_gap_seconds: float = Field(
        0.8, gt=0, description="between the starts of neighbouring clips: VCOP's 16 + 8 frames"
    )
    window_seconds: float = Field(3.0, gt=0, description="all clips lie inside")
    crop_size: int = Field(112, ge=16, description="pixels, square")
    clip_jitter: int = Field(
        8, ge=0, description="each clip's crop is moved by up to this many pixels"
    )
    split_channels: bool = Field(
        False, description="each clip shows one of red, green, blue, as grey"
    )
    merge_reversals: bool = Field(False, description="an order and its reverse are one answer")
    cells: int = Field(1, ge=1, description="cells per side of the grid that the head sees")
    hidden_dim: int = Field(512, ge=1, description="width of the head's hidden layer")
    dropout: float = Field(0.5, ge=0, lt=1)


class ColorizationConfig(TaskConfig):
    stage: Stage = Field(
        "res3", description="a stage that keeps time; its cells are what is matched"
    )
    hide: Literal["both", "one"] = "both"
    predict: Literal["classes", "values"] = "classes"
    num_references: int = Field(3, ge=1)
    frame_gaps: tuple[int, ...] = Field(
        (1,), min_length=1, description="frames between neighbours, one drawn per video"
    )
    seconds_between_frames: float = Field(
        1 / 6, gt=0, description="the paper samples 6 frames a second"
    )
    crop_size: int = Field(256, ge=16, description="pixels, square, of what the encoder sees")
    frame_jitter: int = Field(
        16, ge=0, description="each frame's crop is moved by up to this many pixels"
    )
    num_classes: int = Field(16, ge=2)
    embed_dim: int = Field(64, ge=1, description="channels of the features compared")
    similarity: Literal["cosine", "dot"] = Field(
        "cosine", description="of features: the papers compare raw products"
    )
    temperature: float = Field(
        0.07, gt=0, description="of the similarity; 1 in the papers, with raw products"
    )
    radius: int | None = Field(
        None, ge=1, description="cells a pointer may move; null sees the whole frame"
    )
    moving_difference: float = Field(
        0.2,
        ge=0,
        description="|difference| to the last reference (normalised L) from which a cell counts as moving",
    )


class ContrastiveConfig(TaskConfig):
    mode: Literal["simclr", "moco"] = "simclr"
    loss: Loss = "info_nce"
    num_frames: int = Field(8, ge=1)
    seconds_between_frames: float = Field(1 / 15, gt=0)
    crop_size: int = Field(112, ge=16, description="pixels, square")
    min_gap_seconds: float = Field(0.3, gt=0, description="between the starts of the two clips")
    window_seconds: float = Field(2.4, gt=0, description="both clips lie inside")
    temperature: float = Field(0.1, gt=0, description="of the cosine similarity; CVRL's 0.1")
    hidden_dim: int = Field(512, ge=1, description="width of the projection's hidden layer")
    embed_dim: int = Field(128, ge=2, description="channels compared; SimCLR's 128")
    queue_size: int = Field(4096, ge=1, description="keys that are negatives, of mode moco")
    momentum: float = Field(0.99, ge=0, le=1, description="of the slow copy, of mode moco")

    @model_validator(mode="after")
    def _queue_asks_info_nce(self) -> "ContrastiveConfig":
        if self.mode == "moco" and self.loss != "info_nce":
            raise ValueError(f"mode moco goes with loss info_nce, got {self.loss}")
        return self


class CorrespondenceFlowConfig(TaskConfig):
    stage: Stage = Field(
        "res3", description="a stage that keeps time; its cells are what is matched"
    )
    seconds_between_frames: float = Field(1 / 6, gt=0)
    crop_size: int = Field(256, ge=16, description="pixels, square, of what the encoder sees")
    frame_jitter: int = Field(
        16, ge=0, description="each frame's crop is moved by up to this many pixels"
    )
    channel_dropout: float = Field(
        0.7, ge=0, le=1, description="probability that channels are hidden"
    )
    num_classes: int = Field(16, ge=2)
    embed_dim: int = Field(64, ge=1, description="channels of the features compared")
    similarity: Literal["cosine", "dot"] = Field("cosine", description="the paper's is dot")
    temperature: float = Field(0.07, gt=0, description="of the similarity; the paper's is 1")
    radius: int | None = Field(
        6, ge=1, description="cells a pointer may move; null: the whole frame"
    )
    cycle_weight: float = Field(0.1, ge=0)
    sampling_from: float = Field(0.9, ge=0, le=1, description="share of true classes at first")
    sampling_to: float = Field(0.6, ge=0, le=1, description="and after `sampling_steps` batches")
    sampling_steps: int = Field(10_000, ge=1)
    moving_difference: float = Field(
        0.2, ge=0, description="|difference| (normalised L) from which a cell counts as moving"
    )


class CpcConfig(TaskConfig):
    num_blocks: int = Field(8, ge=2, description="that a clip is cut into")
    num_predicted: int = Field(3, ge=1, description="of them, the last ones")
    block_frames: int = Field(5, ge=1)
    seconds_between_frames: float = Field(1 / 10, gt=0)
    crop_size: int = Field(128, ge=16, description="pixels, square")
    negatives: tuple[Negatives, ...] = Field(("easy", "spatial", "hard"), min_length=1)
    grey_share: float = Field(
        0.5, ge=0, le=1, description="of frames that are shown without colour"
    )
    embed_dim: int = Field(256, ge=1, description="channels of context, prediction and features")
    kernel: int = Field(
        1, ge=1, description="cells a side that the context sees of each block; odd"
    )

    @model_validator(mode="after")
    def _asks_something(self) -> "CpcConfig":
        if self.num_predicted >= self.num_blocks:
            raise ValueError(
                f"num_predicted {self.num_predicted} must leave some of num_blocks {self.num_blocks} to be seen"
            )
        if self.negatives == ("hard",) and self.num_predicted < 2:
            raise ValueError("hard negatives alone need num_predicted >= 2, got 1")
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {self.kernel}")
        return self


class ExemplarConfig(TaskConfig):
    num_classes: int = Field(8000, ge=2, description="the paper's best; see the module")
    num_variants: int = Field(
        2, ge=2, description="transformations of each video's patch in a batch"
    )
    num_frames: int = Field(1, ge=1, description="of a patch")
    seconds_between_frames: float = Field(1 / 15, gt=0)
    crop_size: int = Field(32, ge=16, description="pixels, square, of a patch")
    context: float = Field(3.0, gt=1, description="side of the decoded square, in patches")
    max_scale: float = Field(1.4, ge=1, le=2, description="and its inverse: of what a patch covers")
    shift: float = Field(0.2, ge=0, description="in patches, each way")
    rotation_degrees: float = Field(20.0, ge=0, le=45, description="each way")
    contrast: float = Field(
        2.0, ge=1, description="and its inverse: of L about its mean, and of a, b"
    )
    gamma: float = Field(2.0, ge=1, description="and its inverse: the power of L")
    hue_degrees: float = Field(36.0, ge=0, description="each way")
    temperature: float = Field(0.1, gt=0, description="of the cosine similarity")
    hidden_dim: int = Field(512, ge=1, description="width of the projection's hidden layer")
    embed_dim: int = Field(128, ge=2, description="channels compared")


class ImageColorizationConfig(TaskConfig):
    stage: Stage = Field("res4", description="encoder stage whose cells are coloured")
    crop_size: int = Field(128, ge=16, description="pixels, square")
    bin_size: float = Field(10.0, gt=0, description="of the grid over a and b, Lab units")
    num_neighbours: int = Field(5, ge=1, description="bins that share a true colour")
    sigma: float = Field(5.0, gt=0, description="of their weights and of the smoothing, Lab units")
    uniform_share: float = Field(0.5, gt=0, le=1, description="lambda: 1 weighs all colours alike")
    temperature: float = Field(
        0.38, gt=0, description="of the annealed mean in pictures and errors"
    )
    hidden_dim: int = Field(256, ge=1, description="width of the head's hidden layer")


class OddOneOutConfig(TaskConfig):
    num_clips: int = Field(6, ge=3, description="sub-clips, one of them odd")
    num_frames: int = Field(6, ge=3, description="of a sub-clip; the paper's best")
    seconds_between_frames: float = Field(1 / 15, gt=0)
    min_gap_seconds: float = Field(
        0.2, gt=0, description="between the starts of neighbouring sub-clips, which may overlap"
    )
    window_seconds: float = Field(2.4, gt=0, description="all sub-clips lie inside")
    crop_size: int = Field(112, ge=16, description="pixels, square")
    clip_jitter: int = Field(
        0, ge=0, description="each frame's crop is moved by up to this many pixels"
    )
    cells: int = Field(2, ge=1, description="cells per side of the grid that the head sees")
    hidden_dim: int = Field(256, ge=1, description="width of the head's hidden layer")
    dropout: float = Field(0.5, ge=0, lt=1)


class OrderVerificationConfig(TaskConfig):
    num_frames: int = Field(4, ge=1, description="frames of a sub-clip")
    seconds_between_frames: float = Field(1 / 15, gt=0)
    min_gap_seconds: float = Field(
        0.3, gt=0, description="between the starts of neighbouring sub-clips"
    )
    window_seconds: float = Field(
        2.4, gt=0, description="all sub-clips lie inside; the paper's 60 frames and more"
    )
    tau_max_seconds: float | None = Field(
        None, gt=0, description="from b to d at most, the paper's 60 frames; null: window_seconds"
    )
    tau_min_seconds: float = Field(
        0.5, gt=0, description="from a to b and d to e at least, the paper's 15 frames"
    )
    crop_size: int = Field(112, ge=16, description="pixels, square")
    clip_jitter: int = Field(
        0, ge=0, description="each sub-clip's crop is moved by up to this many pixels"
    )
    split_channels: bool = Field(
        False, description="each sub-clip shows one of red, green, blue, as grey"
    )
    positive_share: float = Field(
        0.5, gt=0, lt=1, description="weight of ordered tuples; the paper's best is 0.25"
    )
    min_difference: float = Field(
        0.05,
        ge=0,
        description="mean |difference| (normalised L, 8x8) of outsider and middle below which a tuple is left out",
    )
    cells: int = Field(
        2,
        ge=1,
        description="cells per side of the grid that the head sees; the paper's fc6 sees all",
    )
    hidden_dim: int = Field(256, ge=1, description="width of the head's hidden layer")
    dropout: float = Field(0.5, ge=0, lt=1)


class PlaybackSpeedConfig(TaskConfig):
    speeds: tuple[int, ...] = Field((1, 2), min_length=2, description="1x, 2x: SpeedNet's")
    num_frames: int = Field(8, ge=2, description="of a shown clip, at any speed")
    seconds_between_frames: float = Field(1 / 15, gt=0, description="of the decoded frames")
    frame_gaps: tuple[int, ...] = Field(
        (1,),
        min_length=1,
        description="decoded frames between shown ones at 1x, one drawn per video",
    )
    crop_size: int = Field(112, ge=16, description="pixels, square, of what the encoder sees")
    max_scale: float = Field(
        1.5,
        ge=1,
        le=2,
        description="a shown clip is cut at 1 to so many times its size, and resized",
    )
    hidden_dim: int = Field(256, ge=1, description="width of the head's hidden layer")
    dropout: float = Field(0.5, ge=0, lt=1)
    min_motion: float = Field(
        0.02,
        ge=0,
        description="mean |difference| of decoded neighbours (normalised L) below which a clip is left out",
    )

    @field_validator("speeds", "frame_gaps")
    @classmethod
    def _rises(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if values[0] < 1 or any(b <= a for a, b in pairwise(values)):
            raise ValueError(f"must be whole numbers >= 1 that rise, got {values}")
        return values


class RandomWalkConfig(TaskConfig):
    stage: Stage = Field(
        "res3", description="a stage that keeps time; its mean over a patch is a node"
    )
    num_frames: int = Field(4, ge=2, description="from the first to the last and back")
    seconds_between_frames: float = Field(1 / 8, gt=0, description="the code's 8 frames a second")
    crop_size: int = Field(256, ge=16, description="pixels, square, that the grid covers")
    patch_size: int = Field(64, ge=8, description="pixels, square, of what the encoder sees")
    grid: int = Field(
        7, ge=2, description="patches a side, evenly spaced: 49, half over each other, in the paper"
    )
    frame_jitter: int = Field(
        16, ge=0, description="each frame's grid is moved by up to this many pixels"
    )
    patch_area: tuple[float, float] = Field(
        (0.7, 0.9), description="least and most of a patch that is shown, enlarged; [1, 1]: all"
    )
    embed_dim: int = Field(128, ge=1, description="channels of a node")
    temperature: float = Field(0.05, gt=0, description="of the cosines")
    edge_dropout: float = Field(0.1, ge=0, lt=1, description="probability, in training")

    @model_validator(mode="after")
    def _has_nodes_apart(self) -> "RandomWalkConfig":
        room = self.crop_size - self.patch_size
        if room < self.grid - 1:
            raise ValueError(
                f"crop_size {self.crop_size} leaves {self.grid} patches of {self.patch_size} pixels a side no pixel between "
                f"their edges: raise it to {self.patch_size + self.grid - 1} or more, or lower patch_size or grid"
            )
        least, most = self.patch_area
        if not 0 < least <= most <= 1:
            raise ValueError(
                f"patch_area must be [least, most] with 0 < least <= most <= 1, got [{least:g}, {most:g}]"
            )
        return self


class RelativePositionConfig(TaskConfig):
    cells: Literal["frame", "space-time"] = "frame"
    colour: Literal["keep", "drop", "project"] = "drop"
    crop_size: int = Field(96, ge=16, description="pixels, square, of one patch")
    gap: int = Field(48, ge=0, description="pixels between patches; half a patch in the paper")
    jitter: int = Field(7, ge=0, description="each patch is moved by up to this many pixels")
    num_frames: int = Field(1, ge=1, description="of each patch")
    seconds_between_frames: float = Field(1 / 15, gt=0)
    time_gap: int = Field(2, ge=0, description="frames between cells that follow each other")
    time_jitter: int = Field(1, ge=0, description="each cell is moved by up to this many frames")
    grid: int = Field(
        2, ge=1, description="cells per side of a patch's features that the head sees"
    )
    hidden_dim: int = Field(512, ge=1, description="width of the head's hidden layer")
    dropout: float = Field(0.5, ge=0, lt=1)

    @model_validator(mode="after")
    def _keeps_patches_apart(self) -> "RelativePositionConfig":
        gaps = {"gap": (self.gap, self.jitter), "time_gap": (self.time_gap, self.time_jitter)}
        for name, (gap, jitter) in gaps.items():
            if gap < 2 * jitter:
                raise ValueError(
                    f"{name} {gap} must be at least twice the jitter {jitter}: patches that overlap show where they are"
                )
        return self


class SimcseConfig(TaskConfig):
    mode: Literal["unsupervised", "supervised"] = "unsupervised"
    hard_negative: Literal["none", "reversed", "shuffled"] = Field(
        "reversed", description="of mode supervised"
    )
    num_frames: int = Field(8, ge=1)
    seconds_between_frames: float = Field(1 / 15, gt=0)
    crop_size: int = Field(112, ge=16, description="pixels, square")
    min_gap_seconds: float = Field(
        0.3, gt=0, description="between the starts of the two clips, of mode supervised"
    )
    window_seconds: float = Field(2.4, gt=0, description="both clips lie inside")
    dropout: float = Field(0.1, gt=0, lt=1, description="the paper's best")
    temperature: float = Field(0.05, gt=0, description="of the cosine similarity; the paper's")
    hidden_dim: int = Field(512, ge=1, description="width of the layer that masks act on")
    embed_dim: int = Field(128, ge=2, description="channels compared")

    @model_validator(mode="after")
    def _has_an_order(self) -> "SimcseConfig":
        asks = self.mode == "supervised" and self.hard_negative != "none"
        if asks and self.num_frames < 2:
            raise ValueError(f"one frame cannot be {self.hard_negative}: raise num_frames")
        return self


CONFIGS: dict[str, type[TaskConfig]] = {
    "arrow_of_time": ArrowOfTimeConfig,
    "clip_order": ClipOrderConfig,
    "colorization": ColorizationConfig,
    "contrastive": ContrastiveConfig,
    "correspondence_flow": CorrespondenceFlowConfig,
    "cpc": CpcConfig,
    "exemplar": ExemplarConfig,
    "image_colorization": ImageColorizationConfig,
    "odd_one_out": OddOneOutConfig,
    "order_verification": OrderVerificationConfig,
    "playback_speed": PlaybackSpeedConfig,
    "random_walk": RandomWalkConfig,
    "relative_position": RelativePositionConfig,
    "simcse": SimcseConfig,
}
