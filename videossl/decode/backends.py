"""`open_video`: which backend reads which file, decided in one place and said in the log."""

import functools
import logging
from collections.abc import Callable
from typing import Literal, get_args

import torch

from videossl.decode import decord_reader, torchcodec_reader
from videossl.decode.decord_reader import DecordReader
from videossl.decode.info import VideoDecodeError
from videossl.decode.pyav_reader import PyavReader
from videossl.decode.reader import VideoReader
from videossl.decode.torchcodec_reader import TorchcodecReader
from videossl.errors import UserError

Backend = Literal["auto", "torchcodec", "pyav", "decord"]
READERS: dict[str, Callable[..., VideoReader]] = {
    "torchcodec": TorchcodecReader,
    "pyav": PyavReader,
    "decord": DecordReader,
}

logger = logging.getLogger("videossl")


def open_video(
    path: str,
    *,
    device: str = "cpu",
    backend: Backend = "auto",
    short_side: int | None = None,
) -> VideoReader:
    """Opens one file for reading frames, scaled so that its short side is at most `short_side` pixels.

    `auto` reads with torchcodec where it loads, else with PyAV, and reads with PyAV on the processor the files that
    torchcodec would get wrong. Raises VideoDecodeError for a file that cannot be decoded, UserError for a backend or a
    device that this machine lacks.
    """
    name = resolve_backend(backend, device)
    try:
        return READERS[name](path, device=device, short_side=short_side)
    except VideoDecodeError as error:
        if backend != "auto" or name == "pyav" or torch.device(device).type != "cpu":
            raise
        reader = PyavReader(path, device=device, short_side=short_side)  # raises if PyAV cannot
        _say_once(f"videos such as {path} are read with PyAV: {error.cause}", reason=error.cause)
        return reader


def resolve_backend(backend: Backend, device: str = "cpu") -> str:
    """The name of the backend that reads: "torchcodec", "pyav" or "decord".

    Raises UserError for an unknown name, and where the backend or the device cannot be had here.
    """
    if backend not in get_args(Backend):
        allowed = ", ".join(get_args(Backend))
        raise UserError(f"unknown decode backend {backend!r}: use one of {allowed}")
    reasons = available_backends()
    if torch.device(device).type != "cpu":
        return _resolve_for_device(backend, device, reasons["torchcodec"])
    if backend != "auto":
        if reasons[backend]:
            raise UserError(f"the {backend} backend does not load: {reasons[backend]}")
        return backend
    if reasons["torchcodec"]:
        _say_once(f"decoding with PyAV: {reasons['torchcodec']}")
        return "pyav"
    _say_once("decoding with torchcodec")
    return "torchcodec"


@functools.cache
def available_backends() -> dict[str, str]:
    """Each backend's name and why it does not load here, an empty string where it does."""
    return {
        "torchcodec": torchcodec_reader.load_error(),
        "pyav": "",
        "decord": decord_reader.load_error(),
    }


def _resolve_for_device(backend: str, device: str, torchcodec_error: str) -> str:
    if backend not in ("auto", "torchcodec"):
        raise UserError(
            f"the {backend} backend decodes on the cpu only, not on {device}: "
            "use backend=torchcodec or device=cpu"
        )
    reason = torchcodec_error or torchcodec_reader.cuda_error(device)
    if reason:
        raise UserError(f"cannot decode on {device}: {reason}; use device=cpu")
    return "torchcodec"


_reasons_said: set[str] = set()


def _say_once(message: str, *, reason: str | None = None) -> None:
    """Logs the message the first time its reason (the message itself by default) comes up in this process."""
    reason = message if reason is None else reason
    if reason not in _reasons_said:
        _reasons_said.add(reason)
        logger.info(message)
