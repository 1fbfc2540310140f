"""Which videos and which times: pure functions of keys and of a video's facts; nothing is decoded here.

The order of videos is a keyed permutation evaluated per index, so its position is one integer and costs no memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from videossl.rng import fold
from videossl.types import ClipSpec

# Both ends of a file are marked by its codec (a logistic regression on frame statistics tells forward from backward with
# 94-100 % there), so the first frame and the last second, or tenth of a short file, are never shown.
END_MARGIN_SECONDS = 1.0
END_MARGIN_SHARE = 0.1
FEISTEL_ROUNDS = 4


@dataclass(frozen=True)
class UsableSpan:
    """The seconds [begin, end] of a file that clips may lie in, and how much moves in equal bins of the whole file."""

    begin: float
    end: float
    file_begin: float
    file_end: float
    motion: Sequence[float]

    @property
    def seconds(self) -> float:
        return self.end - self.begin


def usable_span(begin: float, end: float, fps: float, motion: Sequence[float]) -> UsableSpan:
    """What is left of the file [begin, end) without its first frame and its end; may be empty (seconds <= 0)."""
    frame = 1 / fps if fps > 0 else 0.0
    margin = min(END_MARGIN_SECONDS, END_MARGIN_SHARE * (end - begin)) if end > begin else 0.0
    return UsableSpan(begin + frame, end - max(margin, frame), begin, end, motion)


def permuted_index(position: int, length: int, *keys: int | str, seed: int) -> int:
    """The `position`-th element of a keyed permutation of range(length): a Feistel network that walks cycles.

    Raises ValueError outside [0, length).
    """
    if not 0 <= position < length:
        raise ValueError(f"position {position} is outside [0, {length})")
    half_bits = max(1, ((length - 1).bit_length() + 1) // 2)
    mask = (1 << half_bits) - 1
    round_keys = [fold(seed, "permutation", *keys, r) for r in range(FEISTEL_ROUNDS)]
    value = position
    while True:  # leaves the network's domain, at most 4x the length, for the range: 4 turns at most on average
        left, right = value >> half_bits, value & mask
        for key in round_keys:
            # A multiply-xor-shift mix (the finaliser of splitmix64): cheap, and enough for shuffling.
            mixed = ((right ^ key) * 0x9E3779B97F4A7C15) & (2**64 - 1)
            mixed = ((mixed ^ (mixed >> 29)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
            left, right = right, left ^ ((mixed >> 32) & mask)
        value = (left << half_bits) | right
        if value < length:
            return value


def draw_clip_times(span: UsableSpan, spec: ClipSpec, generator: torch.Generator) -> Tensor:
    """(K, T) float64 seconds of the frames of each clip, clips in order of time.

    The window's length is as drawn by `_clip_offsets`, its place is drawn with weight to where the file moves. Raises
    ValueError if the span is shorter than `spec.min_span_seconds`.
    """
    if span.seconds < spec.min_span_seconds:
        raise ValueError(
            f"{span.seconds:.3f} s of video cannot hold {spec.min_span_seconds:.3f} s of clips"
        )
    offsets = _clip_offsets(span.seconds, spec, generator)  # (K,)
    window = float(offsets[-1]) + spec.clip_seconds
    begin = span.begin + _motion_weighted_place(span, window, generator)
    frames = torch.arange(spec.num_frames, dtype=torch.float64) * spec.seconds_between_frames
    # Rounding must not push the last frame past the span.
    return (begin + offsets[:, None] + frames).clamp(span.begin, span.end)


def _clip_offsets(seconds: float, spec: ClipSpec, generator: torch.Generator) -> Tensor:
    """(K,) starts relative to the first: gaps of at least `min_gap_seconds`, uniform over all that fit the window."""
    if spec.num_clips == 1:
        return torch.zeros(1, dtype=torch.float64)
    slack = min(spec.window_seconds, seconds) - spec.min_span_seconds
    # Cuts of the slack at sorted uniform points; the last is the window's own random shortening.
    cuts = (
        torch.rand(spec.num_clips - 1, generator=generator, dtype=torch.float64).sort().values
        * slack
    )
    gaps = torch.arange(1, spec.num_clips, dtype=torch.float64) * spec.min_gap_seconds
    return torch.cat([torch.zeros(1, dtype=torch.float64), gaps + cuts])


def _motion_weighted_place(span: UsableSpan, window: float, generator: torch.Generator) -> float:
    """Seconds from span.begin at which the window starts: 16 uniform candidates, one kept in proportion to its motion."""
    room = max(span.seconds - window, 0.0)
    candidates = torch.rand(16, generator=generator, dtype=torch.float64) * room
    weights = torch.tensor(
        [window_motion(span, float(c), window) for c in candidates], dtype=torch.float64
    )
    if float(weights.sum()) <= 0:
        weights = torch.ones_like(weights)
    choice = torch.multinomial(weights, 1, generator=generator)
    return float(candidates[choice])


def window_motion(span: UsableSpan, offset: float, window: float) -> float:
    """Mean of the motion bins that the window [offset, offset + window] of the span touches; 0 where none is known."""
    total = span.file_end - span.file_begin
    if not span.motion or total <= 0:
        return 0.0
    bins = len(span.motion)
    first = int((span.begin + offset - span.file_begin) / total * bins)
    last = int((span.begin + offset + window - span.file_begin) / total * bins)
    touched = span.motion[max(first, 0) : min(last, bins - 1) + 1]
    return sum(touched) / len(touched) if touched else 0.0


def plan_clip_times(
    span: UsableSpan, specs: Sequence[ClipSpec], generator: torch.Generator
) -> dict[ClipSpec, Tensor]:
    """Times of all specs' clips, the longest windows first and the shorter ones inside the first of them.

    A decoder must run through a window from its key frame anyway: what lies inside the window costs nothing more.
    """
    times: dict[ClipSpec, Tensor] = {}
    for spec in sorted(set(specs), key=lambda s: (-max(s.window_seconds, s.clip_seconds), s)):
        times[spec] = draw_clip_times(span, spec, generator)
        if len(times) == 1:
            first, last = float(times[spec].min()), float(times[spec].max())
            shortest = max(s.min_span_seconds for s in specs)
            if last - first >= shortest:
                span = UsableSpan(first, last, span.file_begin, span.file_end, span.motion)
    return times
