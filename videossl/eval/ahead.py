"""Runs an iterator ahead of its reader in a thread: what comes next is made while what came is used."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")

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
