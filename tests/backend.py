"""Readers by the name of their backend, for tests that skip where one does not load."""

from collections.abc import Callable

import pytest

from videossl.decode.backends import READERS, available_backends
from videossl.decode.reader import VideoReader


def backend_or_skip(name: str) -> Callable[..., VideoReader]:
    """The reader of that name; skips the test, with the reason, on a machine where it does not load."""
    reason = available_backends()[name]
    if reason:
        pytest.skip(f"{name} does not load here: {reason}")
    return READERS[name]
