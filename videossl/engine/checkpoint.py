"""Checkpoints: plain types and tensors, written atomically, loaded with `weights_only=True`.

A checkpoint carries the run's config and its encoder's description, so that `load_encoder(path)` needs nothing else.
"""

import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from videossl.errors import UserError
from videossl.models.encoder import Encoder, EncoderSpec

FORMAT = 1
# What torch.load was seen to raise for a cut, overwritten or foreign file.
_DAMAGE = (
    RuntimeError,
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    KeyError,
    AttributeError,
    OSError,
    zipfile.BadZipFile,
)
CHECKPOINT_NAME = re.compile(r"step_(\d+)\.pt")


def save_checkpoint(folder: Path, state: dict[str, Any], *, step: int, keep: int) -> Path:
    """Writes `step_<step>.pt` under a temporary name, renames it, and drops all but the newest `keep`.

    Raises UserError if the disk refuses, leaving the earlier checkpoints as they are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step:08d}.pt"
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, "step": step, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"checkpoint {path} cannot be written: {error}; earlier checkpoints are untouched"
        ) from error
    for old in checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    found = [path for path in folder.glob("step_*.pt") if CHECKPOINT_NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(CHECKPOINT_NAME.fullmatch(path.name)[1]))  # type: ignore[index]


def find_checkpoint(path: str | Path) -> Path:
    """The newest checkpoint of a run folder, or the file itself; raises UserError if there is none."""
    path = Path(path)
    if path.is_dir():
        found = checkpoints(path / "checkpoints") or checkpoints(path)
        if not found:
            raise UserError(
                f"{path} holds no checkpoint: give a run folder with checkpoints/step_*.pt, or such a file"
            )
        return found[-1]
    if not path.exists():
        raise UserError(
            f"checkpoint {path} does not exist: give a run folder or a checkpoints/step_*.pt file"
        )
    return path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state of a checkpoint file on the CPU; raises UserError if it is damaged or of another kind."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        cause = str(error).split("\n")[0][:120]
        raise UserError(
            f"checkpoint {path} is damaged or not a checkpoint ({type(error).__name__}: {cause})"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(
            f"checkpoint {path} was not written by this version of videossl (format {FORMAT} expected)"
        )
    return state


def load_encoder(path: str | Path, *, untrained_seed: int | None = None) -> Encoder:
    """The encoder of a run folder or checkpoint file, in evaluation mode.

    With `untrained_seed` the same architecture with fresh weights of that seed: the row to compare with. Raises UserError
    if there is no sound checkpoint.
    """
    found = find_checkpoint(path)
    state = load_checkpoint(found)
    try:
        described = state["encoder"]
        spec, track_stage = EncoderSpec(**described["spec"]), described["track_stage"]
        weights = {
            key.removeprefix("encoder."): value
            for key, value in state["model"].items()
            if key.startswith("encoder.")
        }
    except (KeyError, TypeError) as error:
        raise UserError(f"checkpoint {found} does not describe its encoder: {error}") from error
    if untrained_seed is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(untrained_seed)
            return Encoder(spec, track_stage=track_stage).eval()
    encoder = Encoder(spec, track_stage=track_stage)
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(
            f"checkpoint {found} does not fit its own encoder: {str(error).splitlines()[0]}"
        ) from error
    return encoder.eval()
