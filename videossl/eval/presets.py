"""This library's protocol and the published ones as presets, and how `--set` changes them."""

import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Literal, get_args, get_origin

from videossl.errors import UserError
from videossl.eval.protocol import Protocol

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
        decide_by="expected_j",
        decide_power=2.0,
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
        label_down="bilinear",
        min_max=True,
        min_max_at="cells",
        decide_at="input",
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
        label_down="nearest",
        min_max=True,
        decide_at="input",
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
        label_down="index",
        hard_labels=True,
        hard_at="frame",
    ),
    # {0, 5} and t - 1, t - 3, t - 5, raw products, hard labels at every fourth pixel.
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
        label_down="corner",
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
        label_down="bilinear",
    ),
    # neighbor_range 24: the code halves it and takes a circle (spatial_neighbor, mode="circle"). For ResNet-50: radius 18.
    "vfs": Protocol(
        source="Xu, Wang, ICCV 2021, arXiv:2103.17263; code xvjiarui/VFS vanilla_tracker.py, configs r18",
        short_side=480,
        context_frames=20,
        first_copies="recent",
        window="circle",
        temperature=0.07,
        label_down="nearest",
        min_max=True,
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
    # 480x880 as published; the released script floors the long side of such frames once more, to 832.
    "rsp": Protocol(
        source="Jang et al., ICML 2024, arXiv:2406.07398; code huiwon-jang/RSP eval_video_segmentation_davis.py",
        input_hw=(480, 880),
        context_frames=30,
        radius=30,
        top_k=7,
        temperature=0.1,
        label_down="nearest",
        min_max=True,
        decide_at="input",
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
