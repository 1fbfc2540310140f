"""Encoder files: safetensors whose header says all that rebuilds the encoder. Nothing in one is ever executed.

The header's metadata holds one JSON object under `videossl`: {"format", "version", "encoder": `Encoder.describe()` with
what else its writer knows, "weights_sha256", "facts"}. A file may hold besides, under `task.`, the weights of the pretext
task that made the encoder track: what adapting it to a video goes on with; "task": {"name", "weights_sha256"} names it.
"""

import hashlib
import json
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from videossl.errors import UserError
from videossl.models.encoder import Encoder

SUFFIX = ".safetensors"
FILE_FORMAT = 1
RECORD_KEY = "videossl"
TASK_PREFIX = "task."


def is_encoder_file(path: str | Path) -> bool:
    """Whether the name says that it is one."""
    return Path(path).suffix == SUFFIX


def read_record(path: str | Path) -> dict[str, Any]:
    """What the header says, without the weights. Raises UserError if the file is cut, damaged or another's."""
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(RECORD_KEY)
    except (SafetensorError, OSError) as error:
        raise _broken(path, error) from error
    if text is None:
        raise UserError(
            f"{path} is safetensors without {RECORD_KEY!r} in its header: not written by `videossl export`"
        )
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _broken(path, error) from error
    if not isinstance(record, dict) or record.get("format") != FILE_FORMAT:
        raise UserError(
            f"encoder file {path} was not written by this version of videossl (format {FILE_FORMAT} expected)"
        )
    if not isinstance(record.get("encoder"), dict) or not isinstance(record.get("facts"), dict):
        raise UserError(f"encoder file {path} does not describe its encoder")
    return record


def read_encoder(path: str | Path, *, untrained_seed: int | None = None) -> Encoder:
    """The encoder of a file, in evaluation mode; with `untrained_seed` the same with fresh weights of that seed.

    Raises UserError if the file is damaged or its tensors are not those of the encoder that it names.
    """
    record = read_record(path)
    try:
        if untrained_seed is not None:
            return untrained_encoder(record["encoder"], untrained_seed)
        encoder = Encoder.of_description(record["encoder"])
        weights = _checked_weights(path, encoder)
    except UserError as error:
        raise UserError(f"encoder file {path}: {error}") from error
    except (SafetensorError, OSError) as error:
        raise _broken(path, error) from error
    if weights_digest(weights) != record.get("weights_sha256"):
        raise UserError(
            f"encoder file {path} is damaged: the SHA-256 of its weights is not the one in its header"
        )
    encoder.load_state_dict(weights)
    return encoder.eval()


def read_task_weights(path: str | Path) -> tuple[str, dict[str, Tensor]] | None:
    """The name and the weights of the pretext task of a file; None for a file without one. Raises UserError if damaged."""
    task = read_record(path).get("task")
    if task is None:
        return None
    try:
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if name.startswith(TASK_PREFIX)]  # noqa: SIM118
            weights = {name.removeprefix(TASK_PREFIX): file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise _broken(path, error) from error
    if not isinstance(task, dict) or weights_digest(weights) != task.get("weights_sha256"):
        raise UserError(f"encoder file {path} is damaged: the weights of its task are not its own")
    return str(task.get("name")), weights


def untrained_encoder(described: Mapping[str, Any], seed: int) -> Encoder:
    """The encoder of a description with weights of that seed, in evaluation mode; torch's own generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Encoder.of_description(described).eval()


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes of CPU tensors, in hex: safetensors has no checksums of its own."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _checked_weights(path: str | Path, encoder: Encoder) -> dict[str, Tensor]:
    """The file's tensors, read only once names and shapes are seen to be the encoder's."""
    expected = encoder.state_dict()
    with safe_open(path, "pt") as file:
        found = {name for name in file.keys() if not name.startswith(TASK_PREFIX)}  # noqa: SIM118
        for name in sorted(found ^ expected.keys()):
            what = "lacks" if name in expected else "has besides"
            raise UserError(f"it {what} the tensor {name!r} of {encoder.spec.name}")
        for name, tensor in expected.items():
            shape = tuple(file.get_slice(name).get_shape())
            if shape != tuple(tensor.shape):
                raise UserError(f"tensor {name!r} has shape {shape}, not {tuple(tensor.shape)}")
        weights = {name: file.get_tensor(name) for name in expected}
    for name, tensor in weights.items():
        if tensor.dtype != expected[name].dtype:
            raise UserError(f"tensor {name!r} is {tensor.dtype}, not {expected[name].dtype}")
    return weights


def _broken(path: str | Path, error: Exception) -> UserError:
    cause = " ".join(str(error).split())[:120]
    return UserError(f"encoder file {path} is damaged or not safetensors ({cause})")


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
