"""Reads what torch.save wrote: tensors and plain values, checked by their CRC-32s, with no code run."""

import pickle
import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

# What torch.load was seen to raise for a cut, overwritten or foreign file.
_DAMAGE = (
    RuntimeError,
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    ArithmeticError,
    AssertionError,
    struct.error,
    OSError,
    zipfile.BadZipFile,
)


def read_weights(path: Path) -> Any:
    """All that the file holds, on the CPU. Raises ValueError, which says why not in a line, for one that cannot be read."""
    try:
        if zipfile.is_zipfile(path):  # files from before torch 1.6 have no checksums
            _check_checksums(path)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # of pickles that others write, to report which is no user's task
            return torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        raise ValueError(_cause(error)) from error


def _check_checksums(path: Path) -> None:
    """Raises BadZipFile unless each record has its CRC-32: torch writes the checksums, and does not look."""
    with zipfile.ZipFile(path) as archive:
        if (record := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"checksum of {record} is wrong")


def _cause(error: Exception) -> str:
    """In our words where torch advises to run the code that a file holds, which it does of damaged ones too."""
    text = str(error).strip()
    if asked := re.search(r"GLOBAL (\S+)|function (\S+)", text):
        return f"it asks for {asked[1] or asked[2]}, and code in weights is never run"
    if "weights_only" in text:
        inner = re.search(r"WeightsUnpickler error:\s*([^\n]*)", text)
        text = inner[1] if inner else "it is no file of weights"
    return f"{type(error).__name__}: {text.splitlines()[0][:120]}" if text else type(error).__name__
