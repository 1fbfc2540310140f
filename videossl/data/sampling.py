"""Which seconds of a video are shown: pure functions of its facts and of a generator; nothing is decoded here.

What the codec marks is kept out: the first frame and the end of a file, clips that start on a key frame, windows with a
cut in them. Each rule can be switched off, to measure what it keeps out.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from videossl.config import SamplingRules
from videossl.decode.index import usable_seconds
from videossl.rng import fold
from videossl.types import ClipSpec

NUM_CANDIDATES = 16  # places drawn for a window, of which one is kept; chosen


@dataclass(frozen=True)
class VideoTimes:
    """What planning must know of one video, in seconds on its own clock."""

    begin: float  # of the file
    end: float
    fps: float
    motion: Sequence[float] = ()  # in equal parts of the file; empty where unknown
    key_seconds: np.ndarray = field(default_factory=lambda: np.empty(0))  # ascending
    cuts: Sequence[float] = ()  # the first frame of each new shot, ascending


def usable_shots(video: VideoTimes, rules: SamplingRules) -> list[tuple[float, float]]:
    """The parts [begin, end] of a video that windows may lie in, none of them empty; there may be none."""
    if rules.skip_ends:
        begin, end = usable_seconds(video.begin, video.end, video.fps)
    else:
        begin, end = video.begin, video.end - (1 / video.fps if video.fps > 0 else 0.0)
    edges = [begin, end]
    if rules.avoid_cuts:
        edges = [begin, *(cut for cut in video.cuts if begin < cut < end), end]
    # A shot's last frame is shown until the cut: times stay half a frame before it, clear of rounding.
    guard = 0.5 / video.fps if video.fps > 0 else 0.0
    shots = [(a, b if b == end else b - guard) for a, b in itertools.pairwise(edges)]
    return [(a, b) for a, b in shots if b > a]


def plan_clip_times(
    video: VideoTimes,
    specs: Sequence[ClipSpec],
    rules: SamplingRules,
    generator: torch.Generator,
) -> dict[ClipSpec, Tensor]:
    """{spec: (K, T) float64 seconds}, the longest windows first and the shorter ones inside the first of them.

    A decoder must run through a window from its key frame anyway: what lies inside the window costs nothing more.
    Raises ValueError if no shot can hold the longest spec.
    """
    shots = usable_shots(video, rules)
    shortest = max(spec.min_span_seconds for spec in specs)
    times: dict[ClipSpec, Tensor] = {}
    for spec in sorted(set(specs), key=lambda s: (-s.max_span_seconds, s)):
        times[spec] = draw_clip_times(video, shots, spec, rules, generator)
        if len(times) == 1:
            first, last = float(times[spec].min()), float(times[spec].max())
            if last - first >= shortest:
                shots = [(first, last)]
    return times


def draw_clip_times(
    video: VideoTimes,
    shots: Sequence[tuple[float, float]],
    spec: ClipSpec,
    rules: SamplingRules,
    generator: torch.Generator,
) -> Tensor:
    """(K, T) float64 seconds of the frames of each clip, clips in order of time, all inside one shot.

    Raises ValueError if every shot is shorter than `spec.min_span_seconds`.
    """
    longest = max((end - begin for begin, end in shots), default=0.0)
    if longest < spec.min_span_seconds:
        raise ValueError(
            f"{longest:.3f} s of video cannot hold {spec.min_span_seconds:.3f} s of clips"
        )
    offsets = _clip_offsets(longest, spec, generator)  # (K,)
    window = offsets[-1] + spec.clip_seconds
    fitting = np.array([(a, b) for a, b in shots if b - a >= window])
    candidates = _candidates(fitting[:, 0], fitting[:, 1] - fitting[:, 0] - window, generator)
    weights = _weights(video, candidates, offsets, window, rules)
    chosen = int(torch.multinomial(torch.from_numpy(weights), 1, generator=generator))
    begin, end = next((a, b) for a, b in fitting if a <= candidates[chosen] <= b)
    frames = np.arange(spec.num_frames) * spec.seconds_between_frames
    # Rounding must not push the last frame past the shot.
    return torch.from_numpy((candidates[chosen] + offsets[:, None] + frames).clip(begin, end))


def window_motion(video: VideoTimes, starts: np.ndarray, window: float) -> np.ndarray:
    """(N,) mean of the motion bins that each window [start, start + window] touches; 0 where none is known."""
    total = video.end - video.begin
    if not len(video.motion) or total <= 0:
        return np.zeros(len(starts))
    bins = len(video.motion)
    sums = np.concatenate([[0.0], np.cumsum(video.motion)])
    first = ((starts - video.begin) / total * bins).astype(int).clip(0, bins - 1)
    last = ((starts + window - video.begin) / total * bins).astype(int).clip(0, bins - 1)
    return (sums[last + 1] - sums[first]) / (last + 1 - first)


def starts_on_key_frame(video: VideoTimes, seconds: np.ndarray) -> np.ndarray:
    """Whether the frame shown at each time is a key frame; all False where frames are mostly key frames."""
    keys = video.key_seconds
    frame = 1 / video.fps if video.fps > 0 else 0.0
    if not len(keys) or 2 * len(keys) * frame > video.end - video.begin:  # coded frame by frame
        return np.zeros(seconds.shape, dtype=bool)
    # Half a frame more on each side: times are rounded, and the rate is an average.
    after = np.searchsorted(keys, seconds + 0.5 * frame, side="right") - 1
    return (after >= 0) & (seconds - keys[after.clip(0)] < 1.5 * frame)


def _clip_offsets(seconds: float, spec: ClipSpec, generator: torch.Generator) -> np.ndarray:
    """(K,) starts relative to the first: gaps of at least `min_gap_seconds`, uniform over all that fit the window; or each
    gap uniform in its own range, the ranges shortened alike where `seconds` are too few for their upper ends."""
    if spec.num_clips == 1:
        return np.zeros(1)
    if spec.gap_ranges:
        least, most = np.array(spec.gap_ranges).T
        room, wanted = seconds - spec.min_span_seconds, (most - least).sum()
        share = min(1.0, room / wanted) if wanted > 0 else 0.0
        gaps = least + _uniform(spec.num_clips - 1, generator) * (most - least) * share
        return np.concatenate([[0.0], np.cumsum(gaps)])
    slack = min(spec.window_seconds, seconds) - spec.min_span_seconds
    # Cuts of the slack at sorted uniform points; the last is the window's own random shortening.
    cuts = _uniform(spec.num_clips - 1, generator)
    cuts.sort()
    gaps = np.arange(1, spec.num_clips) * spec.min_gap_seconds
    return np.concatenate([[0.0], gaps + cuts * slack])


def _candidates(begins: np.ndarray, rooms: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """(NUM_CANDIDATES,) starts, uniform over all the room that the shots leave."""
    points = _uniform(NUM_CANDIDATES, generator)
    if len(begins) == 1:
        return begins[0] + points * rooms[0]
    ends = np.cumsum(np.maximum(rooms, 1e-9))
    shot = np.searchsorted(ends, points * ends[-1], side="right").clip(0, len(begins) - 1)
    return begins[shot] + (points * ends[-1] - (ends[shot] - rooms[shot])).clip(0, rooms[shot])


def _weights(
    video: VideoTimes,
    candidates: np.ndarray,
    offsets: np.ndarray,
    window: float,
    rules: SamplingRules,
) -> np.ndarray:
    """How likely each candidate is: in proportion to its motion, and 0 where a clip would start on a key frame."""
    allowed = np.ones(len(candidates))
    if rules.avoid_key_frames:
        on_key = starts_on_key_frame(video, candidates[:, None] + offsets).any(axis=1)
        if not on_key.all():
            allowed[on_key] = 0.0
    if rules.weight_motion:
        weights = allowed * window_motion(video, candidates, window)
        if weights.sum() > 0:
            return weights
    return allowed


def _uniform(count: int, generator: torch.Generator) -> np.ndarray:
    return torch.rand(count, generator=generator, dtype=torch.float64).numpy()


FEISTEL_ROUNDS = 4
_MULTIPLIER_1 = 0x9E3779B97F4A7C15
_MULTIPLIER_2 = 0xBF58476D1CE4E5B9
_BITS_64 = 2**64 - 1


class Permutation:
    """A pseudo-random permutation of range(length) for these keys: a Feistel network that walks cycles.

    The network permutes a power of four at most 4 times the length; values outside the range go in again, so at most 4
    turns are needed on average (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002, section 4).
    """

    def __init__(self, length: int, *keys: int | str, seed: int) -> None:
        if not 1 <= length <= 2**62:
            raise ValueError(f"a permutation needs a length from 1 to 2**62, got {length}")
        self.length = length
        self._half_bits = max(1, ((length - 1).bit_length() + 1) // 2)
        self._keys = [fold(seed, "permutation", *keys, r) for r in range(FEISTEL_ROUNDS)]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> int:
        """The element at a position. Raises IndexError outside [0, length)."""
        if not 0 <= position < self.length:
            raise IndexError(f"position {position} is outside [0, {self.length})")
        half_bits, mask = self._half_bits, (1 << self._half_bits) - 1
        value = position
        while True:
            left, right = value >> half_bits, value & mask
            for key in self._keys:
                # A multiply-xor-shift mix (the finaliser of splitmix64): cheap, and enough for shuffling.
                mixed = ((right ^ key) * _MULTIPLIER_1) & _BITS_64
                mixed = ((mixed ^ (mixed >> 29)) * _MULTIPLIER_2) & _BITS_64
                left, right = right, left ^ ((mixed >> 32) & mask)
            value = (left << half_bits) | right
            if value < self.length:
                return value

    def take(self, positions: np.ndarray) -> np.ndarray:
        """(N,) int64 elements at (N,) integer positions: what `[...]` gives for each. Raises IndexError outside."""
        values = np.asarray(positions, dtype=np.int64)
        if len(values) and not (values.min() >= 0 and values.max() < self.length):
            raise IndexError(f"positions must be in [0, {self.length})")
        values = self._turn(values.astype(np.uint64))
        outside = np.flatnonzero(values >= self.length)
        while len(outside):
            again = self._turn(values[outside])
            values[outside] = again
            outside = outside[again >= self.length]
        return values.astype(np.int64)

    def _turn(self, values: np.ndarray) -> np.ndarray:
        half_bits = np.uint64(self._half_bits)
        mask = np.uint64((1 << self._half_bits) - 1)
        left, right = values >> half_bits, values & mask
        for key in self._keys:
            mixed = (right ^ np.uint64(key)) * np.uint64(_MULTIPLIER_1)
            mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(_MULTIPLIER_2)
            left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
        return (left << half_bits) | right
