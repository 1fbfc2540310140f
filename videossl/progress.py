"""Progress of a long loop: a bar on a terminal, a plain line every tenth of the way elsewhere (logs, pipes, CI).

Between two items is where Ctrl-C stops the loop.
"""

import sys
from collections.abc import Iterable, Iterator, Sized
from typing import TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from videossl import interrupts

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
    if line := interrupts.ignored_line():
        print(line, file=stream, flush=True)
    iterable = _stoppable(iterable)
    if stream.isatty():
        return _with_bar(iterable, description, total, stream)
    return _with_lines(iterable, description, total, stream)


def _stoppable(iterable: Iterable[Item]) -> Iterator[Item]:
    for item in iterable:
        interrupts.check()
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
