"""Tests whether codecs or the loader answer for a task: videos without an arrow of time (P1), and files coded anew (P7).

The control set is rendered so that forward and backward have one law. A baseline that tells the direction on it has found a
trace of codec, loader or padding. The second test judges the same clips again after coding their files differently.
"""

import hashlib
import inspect
from collections.abc import Callable, Iterator, Set
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from videossl.audit.question_baselines import RAMP, together
from videossl.audit.shortcut_baselines import (
    Check,
    Judged,
    LinearClassifier,
    ShortcutBaseline,
    judged_baseline,
)
from videossl.color import encoder_input
from videossl.config import SamplingRules
from videossl.data import synthetic
from videossl.data.dataset import ClipDataset
from videossl.data.entry import VideoEntry
from videossl.data.sampling import VideoTimes, draw_clip_times, usable_shots
from videossl.data.synthetic import FRAMES_PER_SECOND, reversible_frames
from videossl.decode.backends import open_video
from videossl.decode.index import read_index
from videossl.io import pictures
from videossl.io.pictures import write_video
from videossl.io.progress import track
from videossl.rng import fold, generator
from videossl.stats import bootstrap_over_videos
from videossl.types import ClipSpec, ShortcutInputs

NUM_FRAMES, SIZE = 48, 112
WINDOW = ClipSpec(1, 16, 1 / FRAMES_PER_SECOND, SIZE)
WINDOWS_PER_VIDEO = 4  # at random starts
WINDOWS = {
    "raw": "raw frames, random windows",
    "rules": "our encoder, windows by the sampling rules",
    "head": "our encoder, windows at the first frame, rules off",
}
# Raw frames must be at chance or the baseline itself is wrong; the head of files shows what the sampling rules keep out.
CONTROLS: dict[tuple[str, str], Callable[[ShortcutInputs], Tensor]] = {
    ("raw", RAMP.name): RAMP.features,
    ("rules", RAMP.name): RAMP.features,
    ("head", RAMP.name): RAMP.features,
    ("rules", "all probes together"): together,
}

# The two ways that differ most from files as they come: nothing is predicted from other frames; coarser.
VARIANTS: dict[str, dict[str, str]] = {"intra-only": {"g": "1"}, "CRF 28": {"crf": "28"}}
MAX_SECONDS = 60.0  # longer videos stay as they are: a test need not code hours
# Pixels at which videos are coded anew, or twice what is decoded if that is more.
MAX_SHORT_SIDE = 360
CHUNK = 32  # frames decoded at a time
MAX_LOSS = 0.03  # shortcuts: more than 3 points is a cue of the codec


def control_baselines(folder: Path, *, num_videos: int, seed: int) -> list[ShortcutBaseline]:
    """P1: the accuracy of telling forward from backward on the control set, by each of CONTROLS.

    The set is rendered into `folder`; files that an earlier call left there are taken.
    """
    folder.mkdir(parents=True, exist_ok=True)
    features: dict[tuple[str, str], list[np.ndarray]] = {control: [] for control in CONTROLS}
    for video in track(range(num_videos), description="control set"):
        shown = dict(_windows(folder, fold(seed, "control", video)))
        for (windows, name), describe in CONTROLS.items():
            features[windows, name].append(_both_ways(shown[windows], describe))
    return [_direction(*control, parts, seed) for control, parts in features.items()]


def _windows(folder: Path, seed: int) -> Iterator[tuple[str, Tensor]]:
    """One video's windows (windows, T, 3, H, W), forward, by kind."""
    frames = reversible_frames(seed, num_frames=NUM_FRAMES, size=SIZE)
    raw = encoder_input(torch.from_numpy(frames).movedim(-1, 1))
    path = folder / f"{_recipe()}_{seed:016x}.mp4"
    if not path.exists():
        write_video(path, frames, frames_per_second=FRAMES_PER_SECOND)
    random = generator(seed, "control windows")
    last = NUM_FRAMES - WINDOW.num_frames
    starts = torch.randint(0, last + 1, (WINDOWS_PER_VIDEO,), generator=random)
    yield "raw", _shown(raw, starts.tolist())
    index = read_index(path)
    info = index.info
    video = VideoTimes(
        begin=info.begin_seconds,
        end=info.end_seconds,
        fps=info.fps,
        motion=info.motion,
        key_seconds=index.pts_seconds[index.is_key],
    )
    rules = SamplingRules()
    shots = usable_shots(video, rules)
    with open_video(path, index=index) as reader:
        decoded = encoder_input(reader.frames_at(range(reader.num_frames)).data)
        drawn = [
            draw_clip_times(video, shots, WINDOW, rules, random) for _ in range(WINDOWS_PER_VIDEO)
        ]
        first = [int(reader.indices_shown_at([float(times[0, 0])])[0]) for times in drawn]
    yield "rules", _shown(decoded, first)
    yield "head", _shown(decoded, [0])


def _shown(video: Tensor, starts: list[int]) -> Tensor:
    return torch.stack([video[start : start + WINDOW.num_frames] for start in starts])


def _both_ways(shown: Tensor, describe: Callable[[ShortcutInputs], Tensor]) -> np.ndarray:
    """(2, windows, D): what a probe sees forward and backward."""
    nowhere = torch.zeros(len(shown), dtype=torch.int64)
    ways = (shown, shown.flip(1))
    return np.stack([describe(ShortcutInputs(way, nowhere, nowhere, 2)).numpy() for way in ways])


def _direction(windows: str, name: str, parts: list[np.ndarray], seed: int) -> ShortcutBaseline:
    """The baseline learned on the first half of the videos and judged on the second.

    It is not cross-validated: if the halves happen to agree, both score above chance, and no interval says so.
    """
    half = len(parts) // 2
    train, test = (np.concatenate(side, 1) for side in (parts[:half], parts[half:]))
    classifier = LinearClassifier(np.concatenate(list(train)), np.repeat([1, 0], train.shape[1]))
    right = np.concatenate([classifier.answer(test[0]) == 1, classifier.answer(test[1]) == 0])
    videos = np.tile(np.repeat(np.arange(len(parts) - half), parts[0].shape[1]), 2)
    return judged_baseline(
        *("P1", f"direction by {name}: {WINDOWS[windows]}", right, videos),
        chance=0.5,
        seed=seed,
        form="control",
        is_demonstration=windows == "head",
    )


def _recipe() -> str:
    """A digest of the code that renders, so that files of another version are not taken for this one's."""
    text = inspect.getsource(synthetic) + inspect.getsource(pictures)
    return hashlib.sha256(f"{text} {NUM_FRAMES} {SIZE}".encode()).hexdigest()[:12]


def transcoded(data: ClipDataset, folder: Path) -> tuple[dict[str, ClipDataset], set[int]]:
    """The dataset with its videos coded anew into `folder`, by variant, and the rows of which that was done.

    Only the test changes: classifiers and the model have learned on the files as they are. Clips are cut at the same frames.
    """
    every = sorted(set(map(int, data.rows)))
    rows = [row for row in every if data.manifest[row].duration_seconds <= MAX_SECONDS]
    files: dict[str, dict[int, Path]] = {name: {} for name in VARIANTS}
    short_side = max(MAX_SHORT_SIDE, 2 * data.short_side)
    for row in track(rows, description="coding held-out videos anew"):
        entry = data.manifest[row]
        for number, (name, options) in enumerate(VARIANTS.items()):
            path = folder / f"{number}_{row}.mp4"
            frames = _frames(entry, short_side)
            write_video(path, frames, frames_per_second=entry.fps, options=options)
            files[name][row] = path
    return {name: data.reading(of_variant) for name, of_variant in files.items()}, set(rows)


def _frames(entry: VideoEntry, short_side: int) -> Iterator[np.ndarray]:
    with open_video(entry.source, short_side=short_side, index=entry.index()) as reader:
        for first in range(0, reader.num_frames, CHUNK):
            chunk = range(first, min(first + CHUNK, reader.num_frames))
            yield from reader.frames_at(chunk).data.permute(0, 2, 3, 1).numpy()


def recoding_check(
    who: str, variant: str, before: Judged, after: Judged, *, coded: Set[int], seed: int = 0
) -> Check:
    """P7: what `who` loses from `before` to `after`, video by video; not clean above MAX_LOSS and beyond chance.

    Only videos `coded` anew count: the others are the same files before and after.
    """
    means, others = _by_video(before), _by_video(after)
    videos = np.array(sorted(means.keys() & others.keys() & coded))
    if not len(videos):
        return not_run(f"{who} is asked nothing about videos coded anew ({variant})")
    losses = np.array([means[video] - others[video] for video in videos])
    loss = bootstrap_over_videos(losses, np.ones(len(losses)), videos, seed=seed)
    is_clean = not (loss.estimate > MAX_LOSS and loss.low > 0)
    says = f"{who} loses {loss.estimate:+.3f} [{loss.low:+.3f}, {loss.high:+.3f}] where files are coded anew ({variant})"
    numbers = {"loss": loss.estimate, "low": loss.low, "high": loss.high, "videos": len(videos)}
    return Check("P7", f"{who}, {variant}", is_clean, says, numbers)


def not_run(why: str) -> Check:
    """The result where files could not be coded anew; it is no evidence that there is no trace of a codec."""
    return Check("P7", "files coded anew", None, f"P7 not run: {why}")


def _by_video(judged: Judged) -> dict[int, float]:
    """Each video's weighted share of right answers."""
    weights = np.ones(len(judged.videos)) if judged.weights is None else judged.weights
    names, index = np.unique(judged.videos, return_inverse=True)
    totals, sums = np.bincount(index, weights), np.bincount(index, weights * judged.right)
    return {int(v): s / t for v, s, t in zip(names, sums, totals, strict=True) if t > 0}
