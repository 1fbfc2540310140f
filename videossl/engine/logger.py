"""What a run says: lines on the log and in train.log, metrics.jsonl, TensorBoard, and a bar on a terminal.

Only the main rank writes. A line is written every `log_every` steps: nothing is read from the device in between.
"""

import json
import logging
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from videossl.engine.event_file import EventFile
from videossl.errors import StorageFull, UserError
from videossl.whole_file import WholeRecords, whole_file, writing

log = logging.getLogger("videossl")


class _LogFile(logging.FileHandler):
    """train.log, which says once that it cannot be written, and then is silent."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self._is_silent = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._is_silent:
            self._is_silent = True
            log.warning("%s cannot be written: %s", self.baseFilename, sys.exc_info()[1])

    def close(self) -> None:
        with suppress(OSError):  # what it still holds does not fit either, which has been said
            super().close()


class RunLogger:
    """Writes a run's folder; on ranks other than the main one it does nothing.

    A full disk costs what could not be written, and one warning per file: training goes on. Raises UserError where the
    folder is gone, or refuses for another reason.
    """

    def __init__(self, out: Path, *, is_main: bool, first_step: int, total_steps: int) -> None:
        self.is_main = is_main
        self._bar: Progress | None = None
        if not is_main:
            return
        self._out = out
        self._refused: set[str] = set()
        metrics = out / "metrics.jsonl"
        _drop_after(metrics, first_step)
        with writing(metrics):
            self._jsonl = WholeRecords(metrics)
        with writing(out / "tb"):
            self._tensorboard = EventFile(out / "tb", step=first_step)
        with writing(out / "train.log"):
            self._file = _LogFile(out / "train.log")
        log.addHandler(self._file)
        if sys.stderr.isatty():
            columns = (
                TextColumn("train"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(file=sys.stderr))
            self._bar_task = self._bar.add_task("train", total=total_steps, completed=first_step)
            self._bar.start()

    def advance(self, step: int) -> None:
        """Moves the bar."""
        if self._bar is not None:
            self._bar.update(self._bar_task, completed=step)

    def write(self, step: int, line: str, values: Mapping[str, Any], prefix: str = "") -> None:
        """One line for people, one JSON object for programs, one point per number for TensorBoard."""
        if not self.is_main:
            return
        self.say(line)
        if not self._out.is_dir():  # files that are open would take what nobody will read
            raise UserError(f"{self._out} cannot be written: it is gone")
        record = json.dumps(_without_nan({"step": step, **values})) + "\n"
        with self._tried("metrics.jsonl"):
            self._jsonl.write(record.encode())
        with self._tried("tb"):
            for name, value in flatten(values):
                self._tensorboard.scalar(prefix + name, value, step)

    def draw(self, step: int, tag: str, pictures: Mapping[str, Tensor]) -> None:
        """Pictures (3, H, W) uint8 for TensorBoard."""
        if self.is_main:
            with self._tried("tb"):
                for name, picture in pictures.items():
                    self._tensorboard.image(f"{tag}/{name}", picture, step)

    def say(self, line: str) -> None:
        """A line for people only."""
        if not self.is_main:
            return
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False)
            self._file.handle(log.makeRecord("videossl", logging.INFO, "", 0, line, (), None))
        else:
            log.info(line)

    @contextmanager
    def _tried(self, name: str) -> Iterator[None]:
        try:
            with writing(self._out / name):
                yield
        except StorageFull as error:
            if name not in self._refused:
                self._refused.add(name)
                log.warning("%s; training goes on", error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self.is_main:
            return
        if self._bar is not None:
            self._bar.stop()
        self._jsonl.close()
        self._tensorboard.close()
        log.removeHandler(self._file)
        self._file.close()


def _drop_after(path: Path, step: int) -> None:
    """Drops the records of steps that a killed run had made after its last checkpoint: they are made again."""
    if not path.exists():
        return
    with writing(path):
        lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if _step_of(line) <= step]
    if kept != lines:
        with whole_file(path) as partial:
            partial.write_bytes(b"".join(kept))


def _step_of(line: bytes) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a line cut off by the kill
        return float("inf")


def _without_nan(value: Any) -> Any:
    """JSON has no nan: null, as for a metric that no sample of the interval could give."""
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """The numbers of nested mappings with their path: {"a": {"b": 1}} to [("a/b", 1.0)]."""
    flat: list[tuple[str, float]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.extend(flatten(value, f"{prefix}{name}/"))
        elif isinstance(value, int | float):
            flat.append((prefix + name, float(value)))
    return flat


def describe_tasks(tasks: Mapping[str, Mapping[str, float]]) -> str:
    """`order_verification loss 0.693 acc 0.51 (chance 0.50, cheat 0.54)  arrow_of_time ...`."""
    return "  ".join(
        f"{name} loss {m['loss']:.3f} acc {m['accuracy']:.3f} ({describe_bars(m)})"
        for name, m in tasks.items()
    )


def describe_bars(metrics: Mapping[str, float]) -> str:
    """What an accuracy must be above: chance, and the cheapest cheat where one is known."""
    cheat = f", cheat {metrics['cheat']:.2f}" if "cheat" in metrics else ""
    return f"chance {metrics['chance']:.2f}{cheat}"
