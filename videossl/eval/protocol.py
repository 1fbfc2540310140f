"""Every setting of label propagation in one record, and the published protocols as presets.

Numbers under different protocols cannot be compared: the record goes into each result.
"""

import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Literal, get_args, get_origin

from videossl.errors import UserError


@dataclass(frozen=True)
class Protocol:
    """How labels travel from the first frame on. Lengths are in feature cells unless said.

    Raises ValueError for settings out of range.
    """

    source: str  # where the values come from
    short_side: int | None  # pixels of the frames the encoder sees; None = native
    long_side_multiple: int | None = (
        None  # the long side is floored to it; None = nearest multiple of the stride
    )
    window_frames: int = 8  # frames per pass of a 3D encoder; windows overlap by half
    grey: bool = False  # a and b of Lab zeroed
    centre: bool = False  # features minus their mean over the sequence, before the L2 norm
    normalize: bool = True  # features to unit length
    context_frames: int = 7  # the last n frames with their predictions
    keep_first: bool = True  # the first frame with its true mask stays in the memory
    memory_offsets: tuple[int, ...] | None = (
        None  # frames before the target that are read, instead of the last n
    )
    kept_frames: tuple[int, ...] = (0,)  # with `memory_offsets`: read whenever they are past
    align_after: int | None = (
        None  # frames older than this are searched coarsely first (MAST); needs `memory_offsets`
    )
    repeat_first: bool = (
        False  # frames before the first are copies of it, as if the video began still
    )
    first_unmasked: bool = False  # the kept first frame is searched whole
    radius: int | None = 12  # None = everywhere
    window: Literal["square", "circle"] = "square"  # |d| <= radius, or Euclidean d < radius
    top_k: int | None = 10  # of the whole memory; None = all
    temperature: float = 0.07
    label_down: Literal["area", "bilinear", "nearest"] = "area"  # first mask to cells
    hard_labels: bool = False  # the memory keeps the winner of each cell instead of shares
    label_up: Literal["bilinear", "nearest"] = "bilinear"  # cells to pixels
    min_max: bool = False  # each object's map stretched to [0, 1] before the winner is taken
    decide_at: Literal["frame", "input"] = (
        "frame"  # the winner is taken at this size; input then goes nearest to frame
    )

    def __post_init__(self) -> None:
        at_least_one = (
            "short_side",
            "long_side_multiple",
            "window_frames",
            "context_frames",
            "top_k",
        )
        for name in at_least_one:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if self.radius is not None and self.radius < 1:
            raise ValueError(f"radius must be >= 1 or none, got {self.radius}")
        if self.memory_offsets is not None and any(n < 1 for n in self.memory_offsets):
            raise ValueError(f"memory_offsets must be >= 1, got {self.memory_offsets}")
        if self.align_after is not None:
            if self.align_after < 1:
                raise ValueError(f"align_after must be >= 1 or none, got {self.align_after}")
            if self.memory_offsets is None or self.radius is None or self.top_k is not None:
                raise ValueError("align_after needs memory_offsets, a radius, and top_k none")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be > 0, got {self.temperature}")

    def as_dict(self) -> dict[str, object]:
        """Plain types for JSON."""
        return asdict(self)


PRESETS: dict[str, Protocol] = {
    # Chosen on drift-straight alone, at 240 pixels, for encoders of stride 4 trained for minutes; centring matters most
    # for untrained encoders (J 33.8 -> 51.5), so that a gain over them is not an artefact of their mean feature.
    "videossl": Protocol(
        source="this library: chosen on the DAVIS sequence drift-straight",
        short_side=240,
        centre=True,
        temperature=0.02,
    ),
    # Short side 480 is native on DAVIS 480p. The code's reflection padding is not copied: frames are resized to a
    # multiple of the stride.
    "crw": Protocol(
        source="Jabri et al., NeurIPS 2020, arXiv:2006.14613; code ajabri/videowalk test.py",
        short_side=480,
        context_frames=20,
        repeat_first=True,
        first_unmasked=True,
        window="circle",
        temperature=0.05,
        label_down="bilinear",
    ),
    "dino": Protocol(
        source="Caron et al., ICCV 2021, arXiv:2104.14294; code facebookresearch/dino eval_video_segmentation.py",
        short_side=480,
        long_side_multiple=64,
        top_k=5,
        temperature=0.1,
        label_down="nearest",
        min_max=True,
        decide_at="input",
    ),
    # {0, 5} and t - 1, t - 3, t - 5, raw products, hard labels; labels are taken at every fourth pixel there, nearest here.
    "mast": Protocol(
        source="Lai, Lu, Xie, CVPR 2020, arXiv:2002.07793; code zlai0/MAST benchmark.py, colorizer.py",
        short_side=480,
        normalize=False,
        memory_offsets=(1, 3, 5),
        kept_frames=(0, 5),
        align_after=15,
        radius=12,
        top_k=None,
        temperature=1.0,
        label_down="nearest",
        hard_labels=True,
    ),
    # The paper squeezes frames to 256x256; here the aspect is kept.
    "vondrick": Protocol(
        source="Vondrick et al., ECCV 2018, arXiv:1806.09594, section 4",
        short_side=256,
        grey=True,
        normalize=False,
        context_frames=1,
        radius=None,
        top_k=None,
        temperature=0.5,
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
