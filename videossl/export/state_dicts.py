"""Weights of pytorchvideo's and torchvision's video models in our encoders, and ours in theirs. Heads stay behind.

Their weights read normalised RGB, which is part of the encoder made of them (`videossl.models.architectures`). Weights
that were trained here read Lab, and do so in their models too: give those `videossl.color.encoder_input` of the frames.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from videossl.errors import UserError
from videossl.export.loading import Loaded, check_sha256, fetched, file_sha256, is_url, public_url
from videossl.export.video_encoder import ClipForm, VideoEncoder
from videossl.io.output_files import whole_file
from videossl.models.encoder import STAGES, Encoder, EncoderSpec
from videossl.models.encoder_file import read_weights

Library = Literal["pytorchvideo", "torchvision"]
# Keys under which training code wraps a state dict: PySlowFast and pytorchvideo's hub, Lightning, others.
_WRAPPERS = ("model_state", "state_dict", "model")
# Modules that hold the network: DistributedDataParallel, then PySlowFast's models of pytorchvideo and Lightning's.
_HOLDERS = ("module.", "model.")
_S3D_FIRST_LAYERS = (
    2,
    4,
    7,
    13,
    16,
)  # of `features`: where res2..res5 begin and end, as in architectures.s3d


@dataclass(frozen=True)
class Counterpart:
    """The model of another library that an encoder is: its part of each of ours, its head, its input as published."""

    library: Library
    parts: Mapping[str, str]  # prefix of their keys: prefix of ours
    heads: tuple[str, ...]  # prefixes of their keys
    clip: ClipForm

    @property
    def colours(self) -> str:
        """See `videossl.models.architectures`."""
        return f"rgb_{self.library}"


def _counterparts() -> dict[str, Counterpart]:
    stages = {f"blocks.{index}.": f"blocks.{stage}." for index, stage in enumerate(STAGES, 1)}
    nets, net_heads = {"blocks.0.": "stem.", **stages}, ("blocks.5.",)
    layers = {f"layer{index}.": f"blocks.{stage}." for index, stage in enumerate(STAGES, 1)}
    resnets = {"stem.": "stem.", **layers}
    s3d = {f"features.{index}.": f"stem.{index}." for index in range(_S3D_FIRST_LAYERS[0])}
    for stage, first, end in zip(STAGES, _S3D_FIRST_LAYERS, _S3D_FIRST_LAYERS[1:], strict=False):
        s3d |= {f"features.{i}.": f"blocks.{stage}.{i - first}." for i in range(first, end)}
    # Clips as in pytorchvideo's hub, of 30 frames per second, and in torchvision's weights, of 15.
    by_hub = {
        "slow_r50": ClipForm(8, 8 / 30, 256, 256),
        "x3d_s": ClipForm(13, 6 / 30, 182, 182),
        "csn_r101": ClipForm(32, 2 / 30, 256, 256),
    }
    resnet_clip = ClipForm(16, 1 / 15, 128, 112)
    return {
        **{n: Counterpart("pytorchvideo", nets, net_heads, clip) for n, clip in by_hub.items()},
        "r3d_18": Counterpart("torchvision", resnets, ("fc.",), resnet_clip),
        "r2plus1d_18": Counterpart("torchvision", resnets, ("fc.",), resnet_clip),
        "s3d": Counterpart("torchvision", s3d, ("classifier.",), ClipForm(128, 1 / 15, 256, 224)),
    }


COUNTERPARTS = _counterparts()


def counterpart_of(name: str) -> Counterpart:
    """Raises UserError for an encoder that no other library has."""
    if name not in COUNTERPARTS:
        raise UserError(
            f"encoder {name!r} is no model of another library; those are {', '.join(COUNTERPARTS)}"
        )
    return COUNTERPARTS[name]


def import_weights(name: str, state: Mapping[str, Any]) -> tuple[Encoder, list[str]]:
    """An encoder with the weights of its counterpart's state dict, in evaluation mode, and the head's keys left out.

    It has the published strides, and ends where the weights end. Raises UserError that names the first key that is lacking,
    not known or of another shape.
    """
    theirs, weights, dropped = counterpart_of(name), {}, []
    for key, value in state.items():
        plain = key
        for holder in _HOLDERS:
            plain = plain.removeprefix(holder)
        if plain.startswith(theirs.heads):
            dropped.append(plain)
            continue
        prefix = next((p for p in theirs.parts if plain.startswith(p)), None)
        if prefix is None or not isinstance(value, Tensor):
            raise UserError(f"{key!r} is no weight of {theirs.library}'s {name}")
        weights[theirs.parts[prefix] + plain.removeprefix(prefix)] = value
    found = [stage for stage in STAGES if any(k.startswith(f"blocks.{stage}.") for k in weights)]
    if not found:
        raise UserError(
            f"these are no weights of {theirs.library}'s {name}: no stage is among them"
        )
    spec = EncoderSpec(name, found[-1], keep_time=False, colours=theirs.colours)
    encoder = Encoder(spec)
    _fill(encoder, weights, theirs)
    return encoder.eval(), dropped


def export_weights(encoder: Encoder, *, prefix: str = "") -> dict[str, Tensor]:
    """The encoder's weights under its counterpart's keys, without a head; load them with strict=False.

    `prefix` stands in front of each key: `model.` for a module that holds the network as `self.model`. Raises UserError for
    an encoder without batch normalisation, which their models have.
    """
    theirs, state = counterpart_of(encoder.spec.name), encoder.state_dict()
    if encoder.spec.normalization != "batch":
        raise UserError(
            f"an encoder of normalization {encoder.spec.normalization!r} is no model of {theirs.library}: export it as "
            "safetensors"
        )
    return {prefix + _their_key(key, theirs): value.cpu() for key, value in state.items()}


def _fill(encoder: Encoder, weights: Mapping[str, Tensor], theirs: Counterpart) -> None:
    expected = encoder.state_dict()
    for key, value in expected.items():
        if key not in weights and not key.endswith("num_batches_tracked"):  # older files lack these
            raise UserError(f"the weights lack {_their_key(key, theirs)!r}")
        if key in weights and weights[key].shape != value.shape:
            raise UserError(
                f"{_their_key(key, theirs)!r} has shape {tuple(weights[key].shape)}, not {tuple(value.shape)}"
            )
    for key in weights:
        if key not in expected:
            raise UserError(f"{_their_key(key, theirs)!r} is no weight of {encoder.spec.name}")
    encoder.load_state_dict({**expected, **weights})


def _their_key(key: str, theirs: Counterpart) -> str:
    prefix, ours = next(item for item in theirs.parts.items() if key.startswith(item[1]))
    return prefix + key.removeprefix(ours)


def load_weights(
    source: str | Path, name: str, *, stage: str | None = None, sha256: str | None = None
) -> Loaded:
    """A video encoder of another library's weights file (or its URL), with that library's preprocessing as published.

    Nothing in the file is executed. Raises UserError if it is damaged, holds anything but tensors and plain types, or is of
    another model.
    """
    theirs = counterpart_of(name)
    path = fetched(str(source), sha256=sha256) if is_url(source) else Path(source)
    check_sha256(path, sha256, name=str(source))  # before anything in it is read
    state = _read(path)
    try:
        encoder, dropped = import_weights(name, state)
    except UserError as error:
        raise UserError(f"--weights {source}: {error}") from error
    facts = {
        "kind": "weights",
        "file": Path(public_url(str(source))).name,
        "sha256": file_sha256(path),
        "library": theirs.library,
        "dropped": dropped,
    }
    return Loaded(VideoEncoder(encoder, theirs.clip, stage=stage).eval(), path, {"facts": facts})


def write_weights(path: Path, encoder: Encoder, *, library: str, prefix: str = "") -> None:
    """Writes `export_weights` for torch.load. Raises UserError if the library has no such model, or the disk refuses."""
    weights = export_weights(encoder, prefix=prefix)
    if (own := counterpart_of(encoder.spec.name).library) != library:
        raise UserError(f"encoder {encoder.spec.name!r} is a model of {own}, not of {library}")
    with whole_file(path) as partial:
        torch.save(weights, partial)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        state = read_weights(path)
    except ValueError as error:
        raise UserError(
            f"weights {path} cannot be read without executing them, or are damaged ({error})"
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise UserError(f"weights {path} hold no state dict")
    return state
