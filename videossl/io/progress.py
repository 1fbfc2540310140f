"""Long work: its progress in lines, and an iterator whose next items a thread makes while the last is used."""

import queue
import sys
import threading
from collections.abc import Iterable, Iterator, Sized
from typing import Generic, TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from videossl.workers import signals

Item = TypeVar("Item")
NUM_PLAIN_LINES = 10  # chosen: a line every tenth reads well in a log and says that the loop lives


def track(
    iterable: Iterable[Item],
    *,
    description: str,
    total: int | None = None,
    stream: TextIO | None = None,
) -> Iterator[Item]:
    """Yields the items and shows how far the loop is, on `stream` (standard error by default).

    `total` is taken from `len(iterable)` where that exists. Without it the terminal shows a count and plain output says
    only the number at the end.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    stream = sys.stderr if stream is None else stream
    if line := signals.ignored_line():
        print(line, file=stream, flush=True)
    iterable = _stoppable(iterable)
    if stream.isatty():
        return _with_bar(iterable, description, total, stream)
    return _with_lines(iterable, description, total, stream)


def _stoppable(iterable: Iterable[Item]) -> Iterator[Item]:
    for item in iterable:
        signals.check()
        yield item


def _with_bar(
    iterable: Iterable[Item], description: str, total: int | None, stream: TextIO
) -> Iterator[Item]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=stream)) as progress:
        task = progress.add_task(description, total=total)
        for item in iterable:
            yield item
            progress.advance(task)


def _with_lines(
    iterable: Iterable[Item], description: str, total: int | None, stream: TextIO
) -> Iterator[Item]:
    done = 0
    for item in iterable:
        yield item
        done += 1
        if total and done * NUM_PLAIN_LINES // total > (done - 1) * NUM_PLAIN_LINES // total:
            print(f"{description}: {done}/{total}", file=stream, flush=True)
    if not total:
        print(f"{description}: {done}", file=stream, flush=True)


_POLL_SECONDS = 0.1  # between looks whether the reader has left; chosen


class _End:
    """The last thing in the queue: why there is no more."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


class RunAhead(Generic[Item]):
    """The same items in the same order, up to `depth` of them made in advance by a thread that starts at once.

    What making them raises is raised here, in its place. The thread ends when the reader leaves: on `close`, or when
    nobody holds this any more.
    """

    def __init__(self, items: Iterable[Item], *, depth: int) -> None:
        self._made: queue.Queue[Item | _End] = queue.Queue(depth)
        self._has_left = threading.Event()
        # The thread must not hold this object, or nobody would ever let go of it.
        arguments = (items, self._made, self._has_left)
        threading.Thread(target=_make, args=arguments, daemon=True, name="run-ahead").start()

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        if self._has_left.is_set():
            raise StopIteration
        item = self._made.get()
        if not isinstance(item, _End):
            return item
        self.close()
        if item.error is not None:
            raise item.error
        raise StopIteration

    def close(self) -> None:
        """No more is wanted."""
        self._has_left.set()

    def __del__(self) -> None:
        self.close()


def _make(
    items: Iterable[Item], made: "queue.Queue[Item | _End]", has_left: threading.Event
) -> None:
    def put(item: Item | _End) -> bool:
        while not has_left.is_set():
            try:
                made.put(item, timeout=_POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    try:
        for item in items:
            if not put(item):
                return
    except BaseException as error:  # handed to the reader, whose loop it ends
        put(_End(error))
    else:
        put(_End())
