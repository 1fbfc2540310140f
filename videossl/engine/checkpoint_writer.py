"""Checkpoints are written by a thread: training waits for a copy of the state, not for the disk."""

import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from videossl.engine.checkpoint import save_checkpoint
from videossl.errors import StorageFull, UserError

log = logging.getLogger("videossl")


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
