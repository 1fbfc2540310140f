"""Runs an iterator ahead of its reader in a thread: what comes next is made while what came is used."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

_POLL_SECONDS = 0.1  # between looks whether the reader has left; chosen


class _End:
    """The last thing in the queue: why there is no more."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def run_ahead(items: Iterable[Item], *, depth: int) -> Iterator[Item]:
    """The same items in the same order, up to `depth` of them made in advance by a thread that starts at once.

    What making them raises is raised here, in its place. A reader that leaves early stops the thread.
    """
    made: queue.Queue[Item | _End] = queue.Queue(depth)
    has_left = threading.Event()

    def put(item: Item | _End) -> bool:
        while not has_left.is_set():
            try:
                made.put(item, timeout=_POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def make() -> None:
        try:
            for item in items:
                if not put(item):
                    return
        except BaseException as error:  # handed to the reader, whose loop it ends
            put(_End(error))
        else:
            put(_End())

    thread = threading.Thread(target=make, daemon=True, name="run-ahead")
    thread.start()
    return _read(made, has_left, thread)


def _read(
    made: "queue.Queue[Item | _End]", has_left: threading.Event, thread: threading.Thread
) -> Iterator[Item]:
    try:
        while True:
            item = made.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        has_left.set()
        thread.join()
