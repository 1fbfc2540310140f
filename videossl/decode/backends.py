"""`open_video`: which backend reads which video, decided in one place."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import torch

from videossl.decode import decord_reader, torchcodec_reader
from videossl.decode.decord_reader import DecordReader
from videossl.decode.index import VideoIndex
from videossl.decode.pyav_reader import PyavReader
from videossl.decode.reader import VideoReader
from videossl.decode.source import VideoSource
from videossl.decode.torchcodec_reader import TorchcodecReader
from videossl.errors import UserError

Backend = Literal["auto", "torchcodec", "pyav", "decord"]
READERS: dict[str, Callable[..., VideoReader]] = {
    "torchcodec": TorchcodecReader,
    "pyav": PyavReader,
    "decord": DecordReader,
}


def open_video(
    source: str | Path | VideoSource,
    *,
    device: str = "cpu",
    backend: Backend = "auto",
    short_side: int | None = None,
    index: VideoIndex | None = None,
) -> VideoReader:
    """Opens one video for reading frames, scaled so that its short side is at most `short_side` pixels.

    `auto` reads with PyAV on the processor, where it decodes the fewest frames, and with torchcodec on a GPU. `index` of
    a scan saves reading all packets again. Raises VideoDecodeError for a video that cannot be decoded, UserError for a
    backend or a device that this machine lacks.
    """
    name = resolve_backend(backend, device)
    return READERS[name](source, device=device, short_side=short_side, index=index)


def resolve_backend(backend: Backend, device: str = "cpu") -> str:
    """The name of the backend that reads: "torchcodec", "pyav" or "decord".

    Raises UserError for an unknown name, and where the backend or the device cannot be had here.
    """
    if backend not in get_args(Backend):
        allowed = ", ".join(get_args(Backend))
        raise UserError(f"unknown decode backend {backend!r}: use one of {allowed}")
    if torch.device(device).type != "cpu":
        return _resolve_for_device(backend, device)
    if backend == "auto":
        return "pyav"  # without asking for the others: to import torchcodec takes seconds
    if reason := available_backends()[backend]:
        raise UserError(f"the {backend} backend does not load: {reason}")
    return backend


@functools.cache
def available_backends() -> dict[str, str]:
    """Each backend's name and why it does not load here, an empty string where it does."""
    return {
        "torchcodec": torchcodec_reader.load_error(),
        "pyav": "",
        "decord": decord_reader.load_error(),
    }


def _resolve_for_device(backend: str, device: str) -> str:
    if backend not in ("auto", "torchcodec"):
        raise UserError(
            f"the {backend} backend decodes on the cpu only, not on {device}: "
            "use backend=torchcodec or device=cpu"
        )
    reason = torchcodec_reader.cuda_error(device) or available_backends()["torchcodec"]
    if reason:
        raise UserError(f"cannot decode on {device}: {reason}; use device=cpu")
    return "torchcodec"
