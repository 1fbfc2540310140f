"""What decoders have done to the processes that called them, done on purpose."""

import ctypes
import faulthandler
import os
import signal
import time
from collections.abc import Callable

import pytest
import torch

from videossl.data import dataset as dataset_module
from videossl.errors import VideoDecodeError

BAD = "3.mp4"


def spin() -> None:
    while True:
        pass


def hold_the_lock() -> None:
    ctypes.PyDLL(None).sleep(1000)


def crash() -> None:
    faulthandler.disable()  # pytest's, which prints what is meant to happen here
    os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(60)


def grow() -> None:
    hoard = []
    while True:
        hoard.append(torch.ones(1 << 20))


def refuse() -> None:
    raise VideoDecodeError(BAD, "pyav", "it is broken")


def stumble() -> None:
    raise IndexError("a bug of the decoder")


def hurt(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None], bad: str = BAD) -> None:
    """Lets the decoder act in place of opening the bad video."""
    sound = dataset_module.open_video

    def open_video(source, **options):
        if str(source).endswith(f"/{bad}"):
            act()
        return sound(source, **options)

    monkeypatch.setattr(dataset_module, "open_video", open_video)
