"""Every setting of label propagation in one record.

Numbers under different protocols cannot be compared: the record goes into each result.
"""

import math
from dataclasses import asdict, dataclass
from typing import Literal

MAX_SIDE = 16384  # of input_hw; chosen: a frame of it takes 3 GiB as floats


@dataclass(frozen=True)
class Protocol:
    """How labels travel from the first frame on. Lengths are in feature cells unless said.

    `first_copies` says how the first frame counts besides being kept: `once` not at all, `recent` also as one of the last
    frames, `padded` also as every frame before it, `queried` as `padded`, but read with what itself copies from them.
    `label_down` is a mean over cells (`area`), torch's `bilinear`, the pixel in the middle (`nearest`) or in the top left
    `corner`, or the bilinear mean of the ids as numbers, cut to whole ones (`index`, as the CorrFlow code has it).

    Raises ValueError for settings out of range.
    """

    source: str  # where the values come from
    # What the encoder sees.
    short_side: int | None = None  # pixels of the frames; None = native
    long_side_multiple: int | None = None  # the long side is floored to it; None = nearest cell
    input_hw: tuple[int, ...] | None = None  # exactly this size instead, whatever the aspect
    grey: bool = False  # a and b of Lab zeroed
    # What a frame's features are, of a 3D encoder.
    clip: Literal["sliding", "causal", "static"] = (
        "sliding"  # windows around a frame, up to it, of it
    )
    window_frames: int = 8  # frames per pass
    window_step: int | None = None  # frames between sliding windows; None = half a window
    time: Literal["trained", "dense", "dilated"] = (
        "trained"  # temporal strides kept, cut, cut and kernels dilated
    )
    mirror: bool = False  # the mean with those of the mirrored frame; not of raw Lab patches
    centre: bool = False  # features minus their mean over the sequence, before the L2 norm
    normalize: bool = True  # features to unit length
    # Which frames are read.
    context_frames: int = 7  # the last n frames with their predictions
    keep_first: bool = True  # the first frame with its true mask stays in the memory
    first_copies: Literal["once", "recent", "padded", "queried"] = "once"
    memory_offsets: tuple[int, ...] | None = None  # read these before the target, not the last n
    kept_frames: tuple[int, ...] = (0,)  # with `memory_offsets`: read whenever they are past
    align_after: int | None = None  # frames older than this are searched coarsely first (MAST)
    # Where a cell looks, and how it weighs what it finds.
    first_unmasked: bool = False  # the kept first frame is searched whole
    radius: int | None = 12  # None = everywhere
    window: Literal["square", "circle"] = "square"  # |d| <= radius, or Euclidean d < radius
    distance_sigma: float | None = None  # cells; weights fall off as a Gaussian of the distance
    top_k: int | None = 10  # None = all
    top_k_of: Literal["memory", "frame"] = "memory"  # or of each frame, then the mean over frames
    renormalize: bool = True  # weights among the k; else among all cells seen, the rest lost
    temperature: float = 0.07
    # Labels down to cells and up to pixels.
    label_down: Literal["area", "bilinear", "nearest", "corner", "index"] = "area"
    hard_labels: bool = False  # the memory keeps winners instead of shares
    hard_at: Literal["cells", "frame"] = "cells"  # winners of cells, or the mask brought down again
    label_up: Literal["bilinear", "nearest"] = "bilinear"
    min_max: bool = False  # each object's map stretched to [0, 1] before the winner is taken
    min_max_at: Literal["pixels", "cells"] = "pixels"  # after going up; or before, memory included
    decide_at: Literal["frame", "input"] = "frame"  # "input" then goes nearest to the frame
    decide_by: Literal["share", "expected_j"] = "share"  # the largest wins; or see `decision`
    decide_power: float = 1.0  # of shares, before expected_j takes them for probabilities
    refine_radius: int | None = None  # of the guided filter that draws shares to the frame's edges
    refine_epsilon: float = 0.001  # its ridge, on colours in [0, 1]
    refine_side: int = 240  # pixels of the short side at which the filter is fitted
    palette: Literal["davis", "grey"] = "davis"  # colours of the index PNGs written

    def __post_init__(self) -> None:
        self._check_ranges()
        self._check_memory()
        self._check_refinement()
        if self.top_k is None and (self.top_k_of == "frame" or not self.renormalize):
            raise ValueError("top_k_of frame and renormalize false need a top_k")
        if self.top_k_of == "frame" and self.first_unmasked:
            raise ValueError("top_k_of frame cannot be with first_unmasked")
        if self.distance_sigma is not None and (self.top_k is None or self.first_unmasked):
            raise ValueError(
                "distance_sigma needs a top_k and first_unmasked false: set those, or distance_sigma=none"
            )

    def _check_ranges(self) -> None:
        at_least_one = (
            "short_side",
            "long_side_multiple",
            "window_frames",
            "window_step",
            "context_frames",
            "top_k",
        )
        for name in at_least_one:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if self.radius is not None and self.radius < 1:
            raise ValueError(f"radius must be >= 1 or none, got {self.radius}")
        if self.input_hw is not None and (len(self.input_hw) != 2 or min(self.input_hw) < 1):
            raise ValueError(f"input_hw must be two sizes in pixels, got {self.input_hw}")
        if self.input_hw is not None and max(self.input_hw) > MAX_SIDE:
            raise ValueError(f"input_hw must be up to {MAX_SIDE} pixels, got {self.input_hw}")
        if self.distance_sigma is not None and not 0 < self.distance_sigma < math.inf:
            raise ValueError(
                f"distance_sigma must be > 0 and finite, or none, got {self.distance_sigma}"
            )
        for name in ("decide_power", "temperature"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be > 0 and finite, got {value}")

    def _check_memory(self) -> None:
        if self.memory_offsets is not None and any(n < 1 for n in self.memory_offsets):
            raise ValueError(f"memory_offsets must be >= 1, got {self.memory_offsets}")
        if min(self.kept_frames, default=0) < 0:
            raise ValueError(f"kept_frames must be >= 0, got {self.kept_frames}")
        if self.memory_offsets is not None:
            if 0 not in self.kept_frames:  # the second frame would have nothing to read
                raise ValueError(f"kept_frames must hold 0, got {self.kept_frames}")
            if self.first_copies == "queried":
                raise ValueError("first_copies queried cannot be with memory_offsets")
        if self.align_after is not None:
            if self.align_after < 1:
                raise ValueError(f"align_after must be >= 1 or none, got {self.align_after}")
            if self.memory_offsets is None or self.radius is None or self.top_k is not None:
                raise ValueError("align_after needs memory_offsets, a radius, and top_k none")
            if self.window != "square" or self.first_unmasked:
                raise ValueError("align_after needs window square and first_unmasked false")

    def _check_refinement(self) -> None:
        if self.refine_radius is None:
            return
        in_range = self.refine_side >= 16 and 0 < self.refine_epsilon < math.inf
        if self.refine_radius < 1 or not in_range:
            raise ValueError(
                f"refine_radius must be >= 1 or none, refine_side >= 16 and refine_epsilon > 0, got "
                f"{self.refine_radius}, {self.refine_side} and {self.refine_epsilon}"
            )
        if self.min_max or self.decide_at == "input":
            raise ValueError(
                "refine_radius needs min_max false and decide_at frame: set those, or refine_radius=none"
            )

    def as_dict(self) -> dict[str, object]:
        """Plain types for JSON."""
        return asdict(self)
