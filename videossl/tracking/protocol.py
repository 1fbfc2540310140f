"""How labels are propagated: every setting of a protocol, this library's and the published ones as presets."""

import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Literal, get_args, get_origin

from videossl.errors import UserError

MAX_SIDE = 16384  # of input_hw; chosen: a frame of it takes 3 GiB as floats


@dataclass(frozen=True)
class Protocol:
    """How labels travel from the first frame on. Lengths are in feature cells unless said.

    `first_copies` says how the first frame counts besides being kept: `once` not at all, `recent` also as one of the last
    frames, `padded` also as every frame before it, `queried` as `padded`, but read with what itself copies from them.
    `label_downsample` is a mean over cells (`area`), torch's `bilinear`, the pixel in the middle (`nearest`) or in the top
    left `corner`, or the bilinear mean of the ids as numbers, cut to whole ones (`index`, as the CorrFlow code has it).

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
    anchor_frames: tuple[int, ...] = (0,)  # with `memory_offsets`: read whenever they are past
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
    label_downsample: Literal["area", "bilinear", "nearest", "corner", "index"] = "area"
    hard_labels: bool = False  # the memory keeps winners instead of shares
    hard_at: Literal["cells", "frame"] = "cells"  # winners of cells, or the mask brought down again
    label_upsample: Literal["bilinear", "nearest"] = "bilinear"
    norm_mask: bool = False  # each object's map stretched to [0, 1] before the winner is taken
    norm_mask_at: Literal["pixels", "cells"] = (
        "pixels"  # after going up; or before, memory included
    )
    decision_at: Literal["frame", "input"] = "frame"  # "input" then goes nearest to the frame
    decision: Literal["share", "expected_iou"] = "share"  # the largest wins; or see `decision`
    decision_power: float = 1.0  # of shares, before expected_iou takes them for probabilities
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
        for name in ("decision_power", "temperature"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be > 0 and finite, got {value}")

    def _check_memory(self) -> None:
        if self.memory_offsets is not None and any(n < 1 for n in self.memory_offsets):
            raise ValueError(f"memory_offsets must be >= 1, got {self.memory_offsets}")
        if min(self.anchor_frames, default=0) < 0:
            raise ValueError(f"anchor_frames must be >= 0, got {self.anchor_frames}")
        if self.memory_offsets is not None:
            if 0 not in self.anchor_frames:  # the second frame would have nothing to read
                raise ValueError(f"anchor_frames must hold 0, got {self.anchor_frames}")
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
        if self.norm_mask or self.decision_at == "input":
            raise ValueError(
                "refine_radius needs norm_mask false and decision_at frame: set those, or refine_radius=none"
            )

    def as_dict(self) -> dict[str, object]:
        """Plain types for JSON."""
        return asdict(self)


IMAGE_MODEL_PREFIX = "torchvision:"  # of baselines that are image models of torchvision
PRESETS: dict[str, Protocol] = {
    # Centring matters most for untrained encoders (J 33.8 -> 51.5), so that a gain over them is not an artefact of their
    # mean feature.
    "videossl": Protocol(
        source="this library: docs/results.md has what each setting was chosen by",
        short_side=360,
        mirror=True,
        centre=True,
        context_frames=15,
        radius=18,
        distance_sigma=8.0,
        temperature=0.02,
        decision="expected_iou",
        decision_power=2.0,
        refine_radius=8,
        refine_epsilon=1e-4,
    ),
    "vondrick": Protocol(
        source="Vondrick et al., ECCV 2018, arXiv:1806.09594, section 4",
        input_hw=(256, 256),
        grey=True,
        normalize=False,
        context_frames=1,
        radius=None,
        top_k=None,
        temperature=0.5,
    ),
    # The network's own softmax: products times sqrt(512) over each frame. Labels are stretched at cells, and kept so.
    "timecycle": Protocol(
        source="Wang, Jabri, Efros, CVPR 2019, arXiv:1903.07593; code xiaolonw/TimeCycle test_davis.py",
        input_hw=(320, 320),
        first_copies="queried",
        radius=None,
        top_k=5,
        top_k_of="frame",
        renormalize=False,
        temperature=512**-0.5,
        label_downsample="bilinear",
        norm_mask=True,
        norm_mask_at="cells",
        decision_at="input",
    ),
    # The encoder sees L alone.
    "uvc": Protocol(
        source="Li et al., NeurIPS 2019, arXiv:1909.11895; code Liusifei/UVC test.py",
        short_side=480,
        long_side_multiple=64,
        grey=True,
        normalize=False,
        radius=None,
        top_k=5,
        top_k_of="frame",
        renormalize=False,
        temperature=1.0,
        label_downsample="nearest",
        norm_mask=True,
        decision_at="input",
    ),
    # The code crops sides to multiples of 8; here frames are resized to whole cells.
    "corrflow": Protocol(
        source="Lai, Xie, BMVC 2019, arXiv:1905.00875; code zlai0/CorrFlow benchmark.py, colorizer.py",
        short_side=480,
        normalize=False,
        context_frames=1,
        keep_first=False,
        radius=6,
        top_k=None,
        temperature=1.0,
        label_downsample="index",
        hard_labels=True,
        hard_at="frame",
    ),
    # {0, 5} and t - 1, t - 3, t - 5, raw products, hard labels at every fourth pixel.
    "mast": Protocol(
        source="Lai, Lu, Xie, CVPR 2020, arXiv:2002.07793; code zlai0/MAST benchmark.py, colorizer.py",
        short_side=480,
        normalize=False,
        memory_offsets=(1, 3, 5),
        anchor_frames=(0, 5),
        align_after=15,
        radius=12,
        top_k=None,
        temperature=1.0,
        label_downsample="corner",
        hard_labels=True,
        hard_at="frame",
    ),
    # Short side 480 is native on DAVIS 480p. The code's reflection padding is not copied: frames are resized to whole
    # cells. Its first query is the first frame itself, whose labels are then forced to the given ones.
    "crw": Protocol(
        source="Jabri et al., NeurIPS 2020, arXiv:2006.14613; code ajabri/videowalk test.py",
        short_side=480,
        context_frames=20,
        first_copies="padded",
        first_unmasked=True,
        window="circle",
        temperature=0.05,
        label_downsample="bilinear",
    ),
    # neighbor_range 24: the code halves it and takes a circle (spatial_neighbor, mode="circle"). For ResNet-50: radius 18.
    "vfs": Protocol(
        source="Xu, Wang, ICCV 2021, arXiv:2103.17263; code xvjiarui/VFS vanilla_tracker.py, configs r18",
        short_side=480,
        context_frames=20,
        first_copies="recent",
        window="circle",
        temperature=0.07,
        label_downsample="nearest",
        norm_mask=True,
    ),
    "dino": Protocol(
        source="Caron et al., ICCV 2021, arXiv:2104.14294; code facebookresearch/dino eval_video_segmentation.py",
        short_side=480,
        long_side_multiple=64,
        top_k=5,
        temperature=0.1,
        label_downsample="nearest",
        norm_mask=True,
        decision_at="input",
    ),
    # 480x880 as published; the released script floors the long side of such frames once more, to 832.
    "rsp": Protocol(
        source="Jang et al., ICML 2024, arXiv:2406.07398; code huiwon-jang/RSP eval_video_segmentation_davis.py",
        input_hw=(480, 880),
        context_frames=30,
        radius=30,
        top_k=7,
        temperature=0.1,
        label_downsample="nearest",
        norm_mask=True,
        decision_at="input",
    ),
}


def preset(name: str, overrides: Mapping[str, str] | None = None) -> Protocol:
    """A preset with some settings replaced, each given as text (`{"top_k": "5", "radius": "none"}`).

    Raises UserError for a preset, setting or value that does not exist, with what is allowed.
    """
    if name not in PRESETS:
        raise UserError(f"preset {name!r} is unknown; allowed: {', '.join(PRESETS)}")
    settings = asdict(PRESETS[name])
    kinds = {field.name: field.type for field in fields(Protocol)}
    for key, text in (overrides or {}).items():
        if key not in kinds or key == "source":
            allowed = ", ".join(kind for kind in kinds if kind != "source")
            raise UserError(f"protocol setting {key!r} is unknown; allowed: {allowed}")
        settings[key] = _parse(key, text, kinds[key])
    if overrides:
        settings["source"] += f", changed: {', '.join(sorted(overrides))}"
    try:
        return Protocol(**settings)
    except ValueError as error:
        raise UserError(f"protocol: {error}") from None


def parse_overrides(settings: Sequence[str]) -> dict[str, str]:
    """What `--set KEY=VALUE ...` asks for, as `preset` takes it; of a key given twice the last value holds.

    Raises UserError for a setting without `=`.
    """
    pairs = [setting.partition("=") for setting in settings]
    for key, equals, _ in pairs:
        if not equals:
            raise UserError(f"--set takes KEY=VALUE, got {key!r}")
    return {key.strip(): value.strip() for key, _, value in pairs}


def _parse(key: str, text: str, kind: object) -> object:
    if get_origin(kind) is Literal:
        choices = get_args(kind)
    elif kind is bool:
        choices = ("true", "false")
    else:
        options = get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
        if text.lower() in ("none", "null") and types.NoneType in options:
            return None
        if get_origin(options[0]) is tuple:
            return _parse_numbers(key, text)
        number = options[0]
        assert number in (int, float)
        try:
            return number(text)
        except ValueError:
            wanted = f"{number.__name__}{' or none' if types.NoneType in options else ''}"
            raise UserError(f"protocol setting {key} must be {wanted}, got {text!r}") from None
    if text not in choices:
        raise UserError(f"protocol setting {key} must be one of {', '.join(choices)}, got {text!r}")
    return text == "true" if kind is bool else text


def _parse_numbers(key: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(
            f"protocol setting {key} must be numbers such as 1,3,5, got {text!r}"
        ) from None
