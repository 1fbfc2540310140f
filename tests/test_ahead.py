"""An iterator run ahead in a thread: the same items, its errors, and no thread left behind."""

import threading
from collections.abc import Iterator

import pytest

from videossl.io.progress import RunAhead


def no_thread_is_left() -> bool:
    for thread in threading.enumerate():
        if thread.name == "run-ahead":
            thread.join(timeout=30)
    return not any(thread.name == "run-ahead" for thread in threading.enumerate())


@pytest.mark.parametrize("depth", [1, 3, 100])
def test_items_come_in_order(depth: int) -> None:
    assert list(RunAhead(iter(range(20)), depth=depth)) == list(range(20))
    assert no_thread_is_left()


def test_what_comes_next_is_made_before_it_is_asked_for() -> None:
    made = threading.Semaphore(0)

    def items() -> Iterator[int]:
        for number in range(3):
            made.release()
            yield number

    ahead = RunAhead(items(), depth=2)
    for _ in range(3):  # all are made though none was asked for
        assert made.acquire(timeout=30)
    assert list(ahead) == [0, 1, 2]


def test_an_error_comes_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("damaged")

    ahead = RunAhead(items(), depth=2)
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="damaged"):
        next(ahead)
    assert no_thread_is_left()


def test_a_reader_that_leaves_stops_the_thread() -> None:
    ahead = RunAhead(iter(range(10**9)), depth=2)
    assert next(ahead) == 0
    ahead.close()
    assert no_thread_is_left()
    assert list(ahead) == []


def test_a_reader_that_forgets_it_stops_the_thread() -> None:
    RunAhead(iter(range(10**9)), depth=2)
    assert no_thread_is_left()
