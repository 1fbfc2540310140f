"""What propagation is compared with: image models of torchvision, and masks warped by dense optical flow."""

import difflib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from videossl.errors import UserError
from videossl.io.index_masks import IndexMask
from videossl.models.encoder_file import read_weights
from videossl.tracking.protocol import IMAGE_MODEL_PREFIX as PREFIX
from videossl.tracking.sequence import FrameSource

RANDOM = "random"
DEFAULT_STRIDE = 8  # chosen: coarser cells lose contours, finer layers know little

# Of ImageNet, in [0, 1] RGB, as torchvision's weights expect them.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_TRIED_HW = (128, 192)  # of the empty frame on which layers are measured: sides tell axes apart
_RANDOM_SEED = 0


# DenseNets were saved when a layer's name could hold a dot ("norm.1"); torchvision's own loading renames alike.
_DENSE_LAYER = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


@dataclass(frozen=True)
class ImageModelSpec:
    """What `torchvision:MODEL[@LAYER][:random]` asks for."""

    model: str
    layer: str | None  # None: the last block of stride 8
    is_random: bool

    @property
    def row_name(self) -> str:
        """A name for a folder of results."""
        parts = ["torchvision", self.model, self.layer, RANDOM if self.is_random else None]
        return "_".join(part for part in parts if part)


def parse_image_model(spec: str) -> ImageModelSpec:
    """The parts of `torchvision:resnet50@layer3`, or with `:random` at its end for weights drawn anew.

    Raises UserError for another form and for a model that torchvision does not have.
    """
    import torchvision  # two seconds, which most commands need not wait

    form = re.fullmatch(r"torchvision:(\w+)(?:@([\w.]+))?(:random)?", spec)
    if form is None:
        raise UserError(
            f"baseline {spec!r} has another form than torchvision:MODEL[@LAYER][:random], such as "
            "torchvision:resnet18@layer3"
        )
    known = torchvision.models.list_models(module=torchvision.models)
    model = form[1]
    if model not in known:
        near = ", ".join(difflib.get_close_matches(model, known)) or f"{len(known)} others"
        raise UserError(f"baseline {spec}: torchvision has no image model {model!r}; it has {near}")
    return ImageModelSpec(model, form[2], form[3] is not None)


def find_weights(spec: ImageModelSpec, given: Path | None = None) -> Path | None:
    """The file of weights: `given`, or one of torchvision's own in torch's hub folder, the recommended one first.

    None for random weights. Raises UserError that says where was looked.
    """
    if spec.is_random:
        return None
    if given is not None:
        if not given.is_file():
            raise UserError(f"--weights {given}: no such file")
        return given
    import torchvision

    weights = torchvision.models.get_model_weights(spec.model)
    best = getattr(weights, "DEFAULT", None)
    members = sorted(weights, key=lambda member: member is not best)
    names = list(dict.fromkeys(Path(member.url).name for member in members))
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"{PREFIX}{spec.model}: no weights on disk: {folder} has no {' or '.join(names) or 'file for it'}; put it there, "
        f"give --weights FILE, or take weights drawn anew: {PREFIX}{spec.model}:{RANDOM}"
    )


class ImageFeatures:
    """One layer of a torchvision image model; called with (3, T, H, W) uint8 RGB, answers (T, C, h, w) float.

    `weights` None draws them anew, from a seed of its own. Stride and channels are measured on an empty frame. Raises
    UserError for weights that do not fit, and for a layer that does not exist or gives no map of whole cells.
    """

    is_per_frame = True
    input: Literal["lab", "rgb"] = "rgb"

    def __init__(
        self, spec: ImageModelSpec, weights: Path | None, *, device: torch.device | str = "cpu"
    ) -> None:
        self.spec, self.weights = spec, weights
        self.device = torch.device(device)
        model = _build(spec.model)
        if weights is not None:
            _load(model, weights, spec.model)
        self.layer = spec.layer or _default_layer(model, spec.model)
        self._extractor = _extractor_of(model, self.layer, spec.model).to(self.device)
        map_ = _answer(self._extractor, self.device, spec.model)[self.layer]
        stride = _stride(map_)
        if stride is None:
            raise UserError(
                f"{PREFIX}{spec.model}: layer {self.layer} gives {_shape(map_)} for a frame of {_TRIED_HW}, which is no "
                f"map of cells (1, C, h, w); name another as {PREFIX}{spec.model}@LAYER"
            )
        self.stride, self.channels = stride, map_.shape[1]

    @torch.no_grad()
    def __call__(self, clip: Tensor) -> Tensor:
        """See Extractor."""
        return self._extractor(_normalized(clip))[self.layer].float()

    def describe(self) -> dict[str, object]:
        """See Extractor."""
        return {
            "model": f"{PREFIX}{self.spec.model}",
            "layer": self.layer,
            "weights": RANDOM if self.weights is None else self.weights.name,
            "channels": self.channels,
            "cell_pixels": self.stride,
        }


def _normalized(clip: Tensor) -> Tensor:
    """(3, T, H, W) uint8 to (T, 3, H, W) as ImageNet models expect it."""
    mean, std = (torch.tensor(v, device=clip.device)[:, None, None] for v in (_MEAN, _STD))
    return (clip.transpose(0, 1).float() / 255 - mean) / std


def _build(name: str) -> nn.Module:
    import torchvision

    # GoogLeNet's weights were made for frames in [-1, 1], to which it goes by itself when told so.
    options = {"transform_input": True} if name == "googlenet" else {}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some models warn that drawing weights takes long
        torch.manual_seed(_RANDOM_SEED)
        model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    return model.eval()


def _load(model: nn.Module, path: Path, name: str) -> None:
    try:
        state = read_weights(path)
    except ValueError as error:
        raise UserError(f"{path}: weights cannot be read ({error})") from None
    if not isinstance(state, dict):
        raise UserError(f"{path}: weights must be a state dict, got {type(state).__name__}")
    state = {_DENSE_LAYER.sub(r"\1\2", str(key)): value for key, value in state.items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:3]]
        raise UserError(f"{path}: weights do not fit {name} ({'; '.join(lines)[:300]})") from None


def _extractor_of(model: nn.Module, layer: str, name: str) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that training would trace otherwise: it never trains
            from torchvision.models.feature_extraction import create_feature_extractor

            extractor: nn.Module = create_feature_extractor(model, [layer])
    except ValueError:
        names = [n for n, _ in model.named_children()]
        raise UserError(
            f"{PREFIX}{name} has no layer {layer!r}; it has {', '.join(names)} and what they are made of"
        ) from None
    return extractor.eval()


def _default_layer(model: nn.Module, name: str) -> str:
    """The last block of stride 8: where the model looks widest before it gives up place."""
    found: list[str] = []

    def look(layer: str, answer: object) -> None:
        if _stride(answer) == DEFAULT_STRIDE:
            found.append(layer)

    hooks = [
        module.register_forward_hook(lambda _, __, answer, layer=layer: look(layer, answer))
        for layer, module in model.named_modules()
        if layer.count(".") <= 1  # deeper ones are parts of blocks
    ]
    _answer(model, torch.device("cpu"), name)
    for hook in hooks:
        hook.remove()
    if not found:
        raise UserError(
            f"{PREFIX}{name} has no layer of stride {DEFAULT_STRIDE}: name one as {PREFIX}{name}@LAYER"
        )
    return found[-1]


@torch.no_grad()
def _answer(model: nn.Module, device: torch.device, name: str) -> Any:
    """What the model makes of the empty frame."""
    empty = torch.zeros(3, 1, *_TRIED_HW, dtype=torch.uint8, device=device)
    try:
        return model(_normalized(empty))
    except (RuntimeError, AssertionError):  # of transformers made for one size
        raise UserError(f"{PREFIX}{name} does not take frames of any size") from None


def _stride(answer: object) -> int | None:
    """Pixels per cell of a map (1, C, h, w) of the empty frame; None for anything else."""
    if not isinstance(answer, Tensor) or answer.ndim != 4:
        return None
    height, width = answer.shape[2:]
    stride = _TRIED_HW[0] // height if height else 0
    return stride if (height * stride, width * stride) == _TRIED_HW else None


def _shape(answer: object) -> str:
    return str(tuple(answer.shape)) if isinstance(answer, Tensor) else type(answer).__name__


FLOW_PIXELS = 480  # short side at which flow is computed, at most; chosen: DAVIS is scored at it
_LEAST_PIXELS = 12  # OpenCV's own limit
_CHUNK_FRAMES = 16  # in memory at a time: chosen

Flow = NDArray[np.float32]  # (H, W, 2), x and y in pixels
Shares = NDArray[np.float32]  # (1 + O, H, W), background first


def require_opencv() -> Any:
    """The module cv2; raises UserError that says how to get it."""
    try:
        import cv2
    except ImportError:
        raise UserError(
            "optical flow needs OpenCV: pip install 'videossl[stabilization]' (opencv-python-headless)"
        ) from None
    return cv2


def describe_flow() -> dict[str, object]:
    """Plain types for JSON: how flow is computed here."""
    version = require_opencv().__version__
    return {"method": "DIS, preset medium", "short_side": FLOW_PIXELS, "opencv": version}


def flow_masks(
    source: FrameSource,
    first_mask: IndexMask,
    *,
    object_ids: Sequence[int],
    later_masks: Mapping[int, IndexMask] | None = None,
) -> Iterator[IndexMask]:
    """Yields a mask of object ids (H, W) per frame; the first is `first_mask` itself.

    Objects of `later_masks` join at their frames, where they are taken as given. Raises UserError without OpenCV.
    """
    later = later_masks or {}
    ids = np.array([0, *object_ids], np.uint8)
    shares = _one_hot(first_mask, ids)
    yield first_mask
    for index, flow in enumerate(backward_flows(source), start=1):
        shares = warp(shares, flow)
        if index in later:
            given = later[index] > 0
            shares[:, given] = _one_hot(later[index], ids)[:, given]
        yield ids[shares.argmax(0)]


def backward_flows(source: FrameSource) -> Iterator[Flow]:
    """From each frame but the first to the one before it, (H, W, 2) in pixels of the native size."""
    cv2 = require_opencv()
    cv2.setNumThreads(torch.get_num_threads())  # one of several processes has one
    method = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    height, width = source.native_size
    scale = min(1.0, FLOW_PIXELS / min(height, width))
    size = (
        max(_LEAST_PIXELS, round(height * scale)),
        max(_LEAST_PIXELS, round(width * scale)),
    )
    to_native = np.array([width / size[1], height / size[0]], np.float32)
    before = None
    for frame in _grey_frames(source, size):
        if before is not None:
            flow = method.calc(frame, before, None)
            if size != (height, width):
                flow = cv2.resize(flow, (width, height), interpolation=cv2.INTER_LINEAR) * to_native
            yield flow
        before = frame


def warp(shares: Shares, flow: Flow) -> Shares:
    """Shares as each pixel finds them where its flow points, bilinear; beyond the border is what lies on it."""
    cv2 = require_opencv()
    height, width = flow.shape[:2]
    x = np.arange(width, dtype=np.float32) + flow[..., 0]
    y = np.arange(height, dtype=np.float32)[:, None] + flow[..., 1]
    # Plane by plane: OpenCV takes four channels at most.
    planes = [
        cv2.remap(plane, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for plane in shares
    ]
    return np.stack(planes)


def _grey_frames(source: FrameSource, size: tuple[int, int]) -> Iterator[NDArray[np.uint8]]:
    cv2 = require_opencv()
    for start in range(0, source.num_frames, _CHUNK_FRAMES):
        indices = range(start, min(start + _CHUNK_FRAMES, source.num_frames))
        for rgb in source.read(indices, size).permute(0, 2, 3, 1).numpy():
            yield cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY)


def _one_hot(mask: IndexMask, ids: NDArray[np.uint8]) -> Shares:
    shares = (mask == ids[:, None, None]).astype(np.float32)
    shares[0] = 1 - shares[1:].sum(0)  # void and foreign ids are background
    return shares
