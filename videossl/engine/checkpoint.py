"""Checkpoints: plain types and tensors, written atomically, loaded with `weights_only=True`, checked by their CRC-32s.

A checkpoint carries the run's config and its encoder's description, so that `restore_encoder(path)` needs nothing else.
"""

import logging
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import torch

from videossl.config import saved_config
from videossl.errors import StorageFull, UserError
from videossl.io.output_files import writing
from videossl.models.encoder import Encoder
from videossl.models.encoder_file import (
    is_encoder_file,
    read_encoder,
    read_weights,
    untrained_encoder,
)
from videossl.models.encoder_sources import (
    checkpoints,
    find_checkpoint,
    shipped_or_given,
    step_of,
)

log = logging.getLogger("videossl")

FORMAT = 1
BEST_NAME = "best.pt"


def save_checkpoint(
    folder: Path, state: Mapping[str, Any], *, step: int, keep: int, is_best: bool = False
) -> Path:
    """Writes `step_<step>.pt` under a temporary name, renames it, and drops all but the newest `keep`.

    `is_best` makes it `best.pt` as well, which stays when the other name is dropped. Where there is no room, the oldest
    are given up for it, but never the newest.

    Raises UserError if the disk refuses, StorageFull where it is full: the newest checkpoint is untouched.
    """
    path = folder / f"step_{step:08d}.pt"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    # What is ahead of this run was passed over as damaged when it was resumed, and counts for nothing.
    ahead = [other for other in checkpoints(folder) if step_of(other) > step]
    spare = [*ahead, *[other for other in checkpoints(folder) if step_of(other) < step][:-1]]
    while True:
        try:
            _write_whole(path, {"format": FORMAT, "step": step, **state})
            break
        except StorageFull as error:
            if not spare:
                raise StorageFull(
                    f"checkpoint {error}; earlier checkpoints are untouched"
                ) from error
            log.warning("there is no room for %s: %s is given up for it", path, spare[0].name)
            spare.pop(0).unlink()
    if is_best:
        with writing(folder / BEST_NAME):
            _also_as(folder / BEST_NAME, path)
    for other in ahead:
        other.unlink(missing_ok=True)
    for old in checkpoints(folder)[:-keep]:
        old.unlink()
    return path


class _Heard:
    """A file that remembers why it was not written: torch's zip writer says something else."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _write_whole(path: Path, state: Mapping[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    try:
        with writing(path), temporary.open("wb") as file:
            heard = _Heard(file)
            try:
                torch.save(state, heard)  # type: ignore[arg-type]
            except RuntimeError as error:
                raise heard.error or error from None
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _also_as(name: Path, path: Path) -> None:
    """A second name of a file, put in the place of what had the name before."""
    temporary = name.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:  # a file system without hard links: a copy is the same to whoever reads it
        shutil.copyfile(path, temporary)
    temporary.replace(name)


def drop_unfinished(folder: Path) -> None:
    """Removes what a process that was killed had not finished writing."""
    for path in folder.glob("*.tmp"):
        path.unlink(missing_ok=True)


def load_newest(folder: Path, *, is_main: bool = True) -> tuple[Path, dict[str, Any]] | None:
    """The newest sound checkpoint of a folder and its state; None where there is no checkpoint.

    Damaged ones are passed over with one warning of the main rank. Raises UserError if all are damaged.
    """
    problems: list[str] = []
    for path in reversed(checkpoints(folder)):
        try:
            state = load_checkpoint(path)
        except UserError as error:
            problems.append(str(error))
            continue
        if problems and is_main:
            log.warning("%s; going on from %s", "; ".join(problems), path.name)
        return path, state
    if problems:
        raise UserError(
            f"no checkpoint is sound: {'; '.join(problems)}; delete {folder} to start again"
        )
    return None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state of a checkpoint file on the CPU; raises UserError if it is damaged or of another kind."""
    if is_encoder_file(path):
        raise UserError(
            f"{path} is an exported encoder, without its tasks and their training: give the run or a checkpoint of it"
        )
    try:
        state = read_weights(path)
    except ValueError as error:
        raise UserError(f"checkpoint {path} is damaged or not a checkpoint ({error})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(
            f"checkpoint {path} was not written by this version of videossl (format {FORMAT} expected)"
        )
    if isinstance(state.get("config"), dict):
        state["config"] = saved_config(state["config"])
    return state


def load_newest_or_named(path: Path) -> tuple[Path, dict[str, Any]]:
    """The newest sound checkpoint of a run folder, or the file itself, and its state; raises UserError if there is none."""
    found = find_checkpoint(path)
    if path.is_dir():
        newest = load_newest(found.parent)
        assert newest is not None
        return newest
    return found, load_checkpoint(found)


def restore_encoder(path: str | Path, *, untrained_seed: int | None = None) -> Encoder:
    """The encoder of a run folder, checkpoint file, exported encoder file or shipped name, in evaluation mode.

    With `untrained_seed` the same architecture with fresh weights of that seed: the row to compare with. Raises UserError
    if there is no sound checkpoint.
    """
    path = shipped_or_given(path)
    if is_encoder_file(path):
        find_checkpoint(path)
        return read_encoder(path, untrained_seed=untrained_seed)
    return encoder_of_state(*load_newest_or_named(path), untrained_seed=untrained_seed)


def encoder_of_state(
    path: Path, state: Mapping[str, Any], *, untrained_seed: int | None = None
) -> Encoder:
    """The encoder of a loaded checkpoint, as `restore_encoder`; `path` is what errors name."""
    try:
        described = state["encoder"]
        weights = weights_below(state["model"], "encoder.")
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"checkpoint {path} does not describe its encoder: {error}") from error
    try:
        if untrained_seed is not None:
            return untrained_encoder(described, untrained_seed)
        encoder = Encoder.of_description(described)
        encoder.load_state_dict(weights)
    except (UserError, RuntimeError) as error:
        raise UserError(
            f"checkpoint {path} does not fit its own encoder: {str(error).splitlines()[0]}"
        ) from error
    return encoder.eval()


def weights_below(weights: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Those of one part of a model, by their names in it."""
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


class CheckpointWriter:
    """Writes one checkpoint at a time to `folder`, keeping the newest `keep` and the best.

    A full disk costs that checkpoint: it is said, the newest one stays, and training goes on. `finish` raises UserError
    if the last one asked for is not there, and every method where the folder is gone or refuses for another reason.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[Path] | None = None
        self._failure: UserError | None = None

    def save(self, state: Mapping[str, Any], *, step: int, is_best: bool = False) -> None:
        """Copies the state and returns; waits first if the one before is still being written."""
        self._settle()
        if not self.folder.is_dir():  # made again, it would be the folder of no run
            raise UserError(f"{self.folder} cannot be written: it is gone")
        self._writing = self._thread.submit(
            save_checkpoint,
            self.folder,
            _on_cpu(state),
            step=step,
            keep=self.keep,
            is_best=is_best,
        )

    def finish(self) -> None:
        """Waits for what is being written; raises UserError if the last checkpoint could not be."""
        self._settle()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Waits for what is being written and ends the thread."""
        self._settle()
        self._thread.shutdown()

    def _settle(self) -> None:
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            writing.result()
            self._failure = None
        except StorageFull as error:
            self._failure = error
            log.warning("%s; training goes on", error)


def _on_cpu(value: Any) -> Any:
    """A copy whose tensors share no memory with the model, which is trained on meanwhile."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _on_cpu(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_on_cpu(item) for item in value)
    return value
