"""Which frames a 3D encoder sees for each frame whose features are asked for.

`sliding`: windows that overlap, of which the centres are kept, where the padding in time reaches least. `causal`: the
frames up to the one asked for, which is last, so that nothing of the future is in its features (but for the mean that
`centre` takes, which is of all frames). `static`: that frame alone, repeated: what it looks like without how it moves.
"""

from collections.abc import Iterator
from typing import NamedTuple

from videossl.eval.protocol import Protocol


class Window(NamedTuple):
    """`frames` go through the encoder in this order; of its answers those at positions [start, stop) are used."""

    frames: tuple[int, ...]
    start: int
    stop: int


def windows(num_frames: int, protocol: Protocol, *, is_per_frame: bool) -> Iterator[Window]:
    """The windows of a sequence; each frame is kept once, in order.

    With `is_per_frame`, features that see no other frame, windows are batches without overlap.
    """
    length = min(protocol.window_frames, num_frames)
    if is_per_frame:
        yield from sliding_windows(num_frames, length, length)
    elif protocol.clip == "sliding":
        yield from sliding_windows(num_frames, length, protocol.window_step)
    else:
        size = protocol.window_frames
        for frame in range(num_frames):
            if protocol.clip == "static":
                yield Window((frame,) * size, size // 2, size // 2 + 1)
            else:  # before the first frame there is the first frame
                past = tuple(max(0, frame - size + 1 + i) for i in range(size))
                yield Window(past, size - 1, size)


def sliding_windows(
    num_frames: int, window_frames: int, step: int | None = None
) -> Iterator[Window]:
    """Windows `step` frames apart, by default half a window; of each frame the window that holds it most centrally."""
    length = min(window_frames, num_frames)
    step = min(length, step or max(1, length // 2))
    starts = [*range(0, num_frames - length, step), num_frames - length]
    kept = 0
    for i, start in enumerate(starts):
        is_last = i == len(starts) - 1
        # Midway between the centres of this window and the next.
        keep_stop = num_frames if is_last else (start + starts[i + 1] + length + 1) // 2
        yield Window(tuple(range(start, start + length)), kept - start, keep_stop - start)
        kept = keep_stop
