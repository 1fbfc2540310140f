"""TensorBoard's event file, written at once: its own writer is a thread, which dies with a traceback on a full disk."""

import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard import summary

from videossl.whole_file import WholeRecords


class EventFile:
    """One event file in `folder`, of a run that goes on after `step`: later points of earlier files no longer count.

    Each method raises OSError if the disk refuses.
    """

    def __init__(self, folder: Path, *, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 1000}.{socket.gethostname()}.{os.getpid()}"
        self._file = WholeRecords(folder / name)
        self._records = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))
        if step:
            self._write(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def scalar(self, name: str, value: float, step: int) -> None:
        """One point of a curve."""
        self._add(summary.scalar(name, value), step)

    def image(self, name: str, picture: Tensor, step: int) -> None:
        """A picture (3, H, W) uint8."""
        self._add(summary.image(name, picture, dataformats="CHW"), step)

    def close(self) -> None:
        """Ends the file."""
        self._file.close()

    def _add(self, content: Summary, step: int) -> None:
        self._write(Event(step=step, summary=content))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
