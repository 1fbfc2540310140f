"""P1: videos without an arrow of time, exactly. A probe that tells their direction has found a trace of codec or loader.

Raw frames must be at chance or the probe itself is wrong, and so must files by our encoder with windows where the sampling
rules put them, whatever the probe. The same files with windows at their head show what the rules keep out.
"""

import hashlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from videossl.audit.classifier import Cheater
from videossl.audit.findings import Cheat, measure
from videossl.audit.probes import PROBES, Probe
from videossl.color import encoder_input
from videossl.config import SamplingRules
from videossl.data import synthetic
from videossl.data.sampling import VideoTimes, draw_clip_times, usable_shots
from videossl.data.synthetic import FRAMES_PER_SECOND, Frames, render_reversible, reversible_frames
from videossl.decode.backends import open_video
from videossl.decode.index import read_index
from videossl.decode.reader import VideoReader
from videossl.io import pictures
from videossl.io.progress import track
from videossl.rng import fold, generator
from videossl.types import ClipSpec, Questions

NUM_FRAMES, SIZE = 48, 112
WINDOW = ClipSpec(1, 16, 1 / FRAMES_PER_SECOND, SIZE)
WINDOWS_PER_VIDEO = 4  # at random starts
ROWS = {
    "raw": "raw frames, random windows",
    "rules": "our encoder, windows by the sampling rules",
    "head": "our encoder, windows at the first frame, rules off",
}
RAMP = next(probe for probe in PROBES if probe.needs_direction)
OTHERS = [probe for probe in PROBES if probe is not RAMP]


def control_rows(folder: Path, *, num_videos: int, seed: int) -> list[Cheat]:
    """Renders the set into `folder`, or takes what an earlier call has rendered there, and tries the probes on it.

    The probe of quality and change on all three kinds of windows, then the others on those by the sampling rules.
    """
    folder.mkdir(parents=True, exist_ok=True)
    features: dict[tuple[str, Probe], list[np.ndarray]] = {(name, RAMP): [] for name in ROWS}
    features |= {("rules", probe): [] for probe in OTHERS}
    for video in track(range(num_videos), description="control set"):
        for name, shown in _windows(folder, fold(seed, "control", video)):
            for probe in PROBES:
                if (name, probe) in features:
                    features[name, probe].append(_both_ways(shown, probe))
    return [_row(name, probe, parts, seed) for (name, probe), parts in features.items()]


def _windows(folder: Path, seed: int) -> Iterator[tuple[str, Tensor]]:
    """One video's windows (windows, T, 3, H, W), forward, by row."""
    path = folder / f"{_recipe()}_{seed:016x}.mp4"
    if not path.exists():
        render_reversible(path, seed=seed, num_frames=NUM_FRAMES, size=SIZE)
    raw = reversible_frames(seed, num_frames=NUM_FRAMES, size=SIZE)
    random = generator(seed, "control windows")
    starts = torch.randint(
        0, NUM_FRAMES - WINDOW.num_frames + 1, (WINDOWS_PER_VIDEO,), generator=random
    )
    yield "raw", _shown(raw, starts.tolist())
    index = read_index(path)
    video = VideoTimes(
        begin=index.info.begin_seconds,
        end=index.info.end_seconds,
        fps=index.info.fps,
        motion=index.info.motion,
        key_seconds=index.pts_seconds[index.is_key],
    )
    rules = SamplingRules()
    with open_video(path, index=index) as reader:
        decoded = reader.frames_at(range(reader.num_frames)).data.permute(0, 2, 3, 1).numpy()
        shots = usable_shots(video, rules)
        drawn = [
            _first_shown(reader, draw_clip_times(video, shots, WINDOW, rules, random))
            for _ in range(WINDOWS_PER_VIDEO)
        ]
    yield "rules", _shown(decoded, drawn)
    yield "head", _shown(decoded, [0])


def _first_shown(reader: VideoReader, times: torch.Tensor) -> int:
    return int(reader.indices_shown_at([float(times[0, 0])])[0])


def _shown(frames: Frames, starts: list[int]) -> Tensor:
    clips = np.stack([frames[start : start + WINDOW.num_frames] for start in starts])
    return encoder_input(torch.from_numpy(clips).movedim(-1, 2))


def _both_ways(shown: Tensor, probe: Probe) -> np.ndarray:
    """(2, windows, D): what a probe sees forward and backward."""
    nowhere = torch.zeros(len(shown), dtype=torch.int64)
    ways = [
        probe.features(Questions(way, nowhere, nowhere, 2)).numpy()
        for way in (shown, shown.flip(1))
    ]
    return np.stack(ways)


def _row(name: str, probe: Probe, parts: list[np.ndarray], seed: int) -> Cheat:
    """Learned on the first half of the videos, judged on the second.

    Not by cross-validation: if the halves happen to agree, both are answered above chance, and no interval says so.
    """
    half = len(parts) // 2
    train, test = (np.concatenate(side, 1) for side in (parts[:half], parts[half:]))
    cheater = Cheater(np.concatenate(list(train)), np.repeat([1, 0], train.shape[1]))
    right = np.concatenate([cheater.answer(test[0]) == 1, cheater.answer(test[1]) == 0])
    videos = np.tile(np.repeat(np.arange(len(parts) - half), parts[0].shape[1]), 2)
    interval, verdict = measure(
        right.astype(float), np.ones(len(right)), videos, chance=0.5, seed=seed
    )
    return Cheat(
        "P1",
        f"direction by {probe.name}: {ROWS[name]}",
        interval,
        0.5,
        verdict,
        num_questions=len(right),
        num_videos=len(parts) - half,
        form="control",
        is_demonstration=name == "head",
    )


def _recipe() -> str:
    """Names what files were rendered by: those of another version are not taken for this one's."""
    text = inspect.getsource(synthetic) + inspect.getsource(pictures)
    return hashlib.sha256(f"{text} {NUM_FRAMES} {SIZE}".encode()).hexdigest()[:12]
