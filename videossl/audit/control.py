"""P1: videos without an arrow of time, exactly. A probe that tells their direction has found a trace of codec or loader.

Three rows: raw frames, which must be at chance or the probe itself is wrong; files by our encoder with windows where the
sampling rules put them; and the same files with windows at their head, which shows what the rules keep out.
"""

import hashlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from videossl import video_writer
from videossl.audit.classifier import Cheater
from videossl.audit.findings import Cheat, measure
from videossl.audit.probes import quality_and_change_ramp
from videossl.color import encoder_input
from videossl.data import reversible
from videossl.data.reversible import (
    FRAMES_PER_SECOND,
    Frames,
    render_reversible,
    reversible_frames,
)
from videossl.data.sampling import SamplingRules, VideoTimes, draw_clip_times, usable_shots
from videossl.decode.backends import open_video
from videossl.decode.info import read_index
from videossl.decode.reader import VideoReader
from videossl.progress import track
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


def control_rows(folder: Path, *, num_videos: int, seed: int) -> list[Cheat]:
    """Renders the set into `folder`, or takes what an earlier call has rendered there, and tries the scalar probe on it."""
    folder.mkdir(parents=True, exist_ok=True)
    features: dict[str, list[np.ndarray]] = {name: [] for name in ROWS}
    for video in track(range(num_videos), description="control set"):
        for name, shown in _windows(folder, fold(seed, "control", video)):
            features[name].append(shown)
    return [_row(name, parts, seed) for name, parts in features.items()]


def _windows(folder: Path, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Features (windows, D) of one video's windows, forward, by row."""
    path = folder / f"{_recipe()}_{seed:016x}.mp4"
    if not path.exists():
        render_reversible(path, seed=seed, num_frames=NUM_FRAMES, size=SIZE)
    raw = reversible_frames(seed, num_frames=NUM_FRAMES, size=SIZE)
    random = generator(seed, "control windows")
    starts = torch.randint(
        0, NUM_FRAMES - WINDOW.num_frames + 1, (WINDOWS_PER_VIDEO,), generator=random
    )
    yield "raw", _ramps(raw, starts.tolist())
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
    yield "rules", _ramps(decoded, drawn)
    yield "head", _ramps(decoded, [0])


def _first_shown(reader: VideoReader, times: torch.Tensor) -> int:
    return int(reader.indices_shown_at([float(times[0, 0])])[0])


def _ramps(frames: Frames, starts: list[int]) -> np.ndarray:
    clips = np.stack([frames[start : start + WINDOW.num_frames] for start in starts])
    shown = encoder_input(torch.from_numpy(clips).movedim(-1, 2))  # (Q, T, 3, H, W)
    nowhere = torch.zeros(len(clips), dtype=torch.int64)
    features: np.ndarray = quality_and_change_ramp(Questions(shown, nowhere, nowhere, 2)).numpy()
    return features


def _row(name: str, parts: list[np.ndarray], seed: int) -> Cheat:
    """Learned on the first half of the videos, judged on the second.

    Not by cross-validation: if the halves happen to agree, both are answered above chance, and no interval says so.
    """
    half = len(parts) // 2
    train, test = np.concatenate(parts[:half]), np.concatenate(parts[half:])
    cheater = Cheater(np.concatenate([train, -train]), np.repeat([1, 0], len(train)))
    right = np.concatenate([cheater.answer(test) == 1, cheater.answer(-test) == 0]).astype(float)
    videos = np.tile(np.repeat(np.arange(len(parts) - half), len(parts[0])), 2)
    interval, verdict = measure(right, np.ones(len(right)), videos, chance=0.5, seed=seed)
    title = f"direction by quality and change: {ROWS[name]}"
    count = len(parts) - half
    return Cheat("P1", title, interval, 0.5, verdict, len(right), count, form="control")


def _recipe() -> str:
    """Names what files were rendered by: those of another version are not taken for this one's."""
    text = inspect.getsource(reversible) + inspect.getsource(video_writer)
    return hashlib.sha256(f"{text} {NUM_FRAMES} {SIZE}".encode()).hexdigest()[:12]
