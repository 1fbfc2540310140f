"""Clips per second of every way to decode the same clips of the same files, on one core.

    python tools/bench_decode.py FOLDER [--files 100] [--rounds 3]

Work: 3 clips of 16 frames, every 4th frame, at places that are a function of the file's name, short side 128. A way that
fails on a file is said; rates are over the files that all ways read. The ways take turns file by file, so that a busy
machine slows all of them alike, and the median of the rounds counts.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
import torch
from torchvision.transforms.v2 import functional as transforms

from videossl.data.entry import VideoEntry
from videossl.data.manifest import read_manifest
from videossl.decode.backends import available_backends, open_video
from videossl.decode.container import AS_ANY_METADATA
from videossl.decode.reader import resized_shape

SHORT_SIDE = 128
NUM_CLIPS, NUM_FRAMES, FRAME_STEP = 3, 16, 4
TRAINING_FPS = 7.5  # every 4th frame of 30 a second
LARGE_SIDE = 360  # from here on a file counts as large


@dataclass
class Work:
    """One video and the seconds of its clips, counted from its first frame."""

    entry: VideoEntry
    clips: list[np.ndarray]
    packed: VideoEntry | None = None
    packed_slow: VideoEntry | None = None  # at TRAINING_FPS
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def times(self, entry: VideoEntry) -> list[list[float]]:
        """Seconds of each clip on the clock of `entry`, this video or a copy of it."""
        last = entry.end_seconds - 1e-3
        return [(entry.begin_seconds + clip).clip(max=last).tolist() for clip in self.clips]

    def union(self, entry: VideoEntry) -> list[float]:
        return sorted({time for clip in self.times(entry) for time in clip})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--files", type=int, default=None, help="as many, spread over the folder")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    for name, reason in available_backends().items():
        if reason:
            print(f"no rows of {name}: {reason}")
    with tempfile.TemporaryDirectory() as folder:
        works = prepare(args.folder, Path(folder), args.files)
        ways = {k: way for k, way in WAYS.items() if not available_backends()[backend_of(k)]}
        failed = measure(works, ways, args.rounds)
    report(works, ways, failed)
    return 0


def prepare(source: str, folder: Path, num_files: int | None) -> list[Work]:
    """Scans the folder and packs it twice, by the commands that users run."""
    run("scan", source, "-o", f"{folder}/raw.parquet")
    size = ("--short-side", str(SHORT_SIDE), "--min-shot", "0")
    run("pack", f"{folder}/raw.parquet", "-o", f"{folder}/packed", *size)
    run("pack", f"{folder}/raw.parquet", "-o", f"{folder}/slow", *size, "--fps", str(TRAINING_FPS))
    packed, slow = (by_source(f"{folder}/{name}") for name in ("packed", "slow"))
    entries = [e for e in read_manifest(f"{folder}/raw.parquet") if e.is_ok and e.num_frames > 1]
    if num_files is not None:
        entries = entries[:: max(1, len(entries) // num_files)][:num_files]
    return [Work(e, draw_clips(e), packed.get(e.path), slow.get(e.path)) for e in entries]


def run(*arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "videossl", *arguments], check=True, stdout=subprocess.DEVNULL
    )


def draw_clips(entry: VideoEntry) -> list[np.ndarray]:
    """Every FRAME_STEP-th frame of a run of frames, closer together in videos too short for it."""
    step = min(FRAME_STEP, (entry.num_frames - 1) / (NUM_FRAMES - 1)) / entry.fps
    room = entry.end_seconds - entry.begin_seconds - step * (NUM_FRAMES - 1) - 1e-3
    random = np.random.default_rng(zlib.crc32(Path(entry.path).name.encode()))
    starts = random.uniform(0, max(room, 0.0), NUM_CLIPS)
    return [start + step * np.arange(NUM_FRAMES) for start in starts]


# --- the ways: each takes a Work and decodes all of its clips ---


def torchcodec_full_size(work: Work) -> None:
    """What a first script does: open per clip, decode at full size, resize."""
    from torchcodec.decoders import VideoDecoder

    size = list(shape_of(work.entry))
    for clip in work.times(work.entry):
        decoder = VideoDecoder(work.entry.path, num_ffmpeg_threads=1)
        transforms.resize(decoder.get_frames_played_at(clip).data, size)


def torchcodec_at_size(work: Work) -> None:
    for clip in work.times(work.entry):
        torchcodec_frames(work.entry.path, clip, shape_of(work.entry))


def torchcodec_union(work: Work) -> None:
    torchcodec_frames(work.entry.path, work.union(work.entry), shape_of(work.entry))


def decord_at_size(work: Work) -> None:
    import decord

    height, width = shape_of(work.entry)
    for clip in work.times(work.entry):
        reader = decord.VideoReader(work.entry.path, width=width, height=height, num_threads=1)
        frames = (np.array(clip) - work.entry.begin_seconds) * work.entry.fps + 1e-3
        reader.get_batch(frames.astype(int).clip(max=len(reader) - 1)).asnumpy()


def pyav_at_size(work: Work) -> None:
    """PyAV as its documentation shows it: seek to the key frame before, decode on, keep what is wanted."""
    height, width = shape_of(work.entry)
    for clip in work.times(work.entry):
        kept: list[np.ndarray] = []
        with av.open(work.entry.path, **AS_ANY_METADATA) as container:
            stream = container.streams.best("video")
            stream.thread_type = "NONE"
            container.seek(int(clip[0] / stream.time_base), stream=stream)
            shown = None
            for frame in container.decode(stream):
                while len(kept) < len(clip) and shown is not None and frame.time > clip[len(kept)]:
                    picture = shown.reformat(width=width, height=height, format="rgb24")
                    kept.append(picture.to_ndarray())
                shown = frame
                if len(kept) == len(clip):
                    break


def videossl_union(work: Work) -> None:
    read_with_videossl(work, work.entry)


def packed_videossl(work: Work) -> None:
    read_with_videossl(work, work.packed)


def slow_videossl(work: Work) -> None:
    read_with_videossl(work, work.packed_slow)


def packed_torchcodec(work: Work) -> None:
    read_with_torchcodec(work, work.packed)


def slow_torchcodec(work: Work) -> None:
    read_with_torchcodec(work, work.packed_slow)


def packed_sequential(work: Work) -> None:
    decode_everything(work.packed)


def slow_sequential(work: Work) -> None:
    decode_everything(work.packed_slow)


def read_with_videossl(work: Work, entry: VideoEntry | None) -> None:
    assert entry is not None, "not packed"
    with open_video(entry.source, short_side=SHORT_SIDE, index=entry.index()) as reader:
        reader.frames_at(reader.indices_shown_at(work.union(entry)).unique())


def read_with_torchcodec(work: Work, entry: VideoEntry | None) -> None:
    assert entry is not None, "not packed"
    torchcodec_frames(entry.source.read(), work.union(entry), None)


def decode_everything(entry: VideoEntry | None) -> None:
    """The ceiling: every frame in order, no choice to make."""
    assert entry is not None, "not packed"
    with av.open(entry.source.open()) as container:
        container.streams.video[0].thread_type = "NONE"
        for _ in container.decode(video=0):
            pass


def torchcodec_frames(
    source: str | bytes, times: list[float], size: tuple[int, int] | None
) -> None:
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    resize = [] if size is None else [Resize(size)]
    VideoDecoder(source, num_ffmpeg_threads=1, transforms=resize).get_frames_played_at(times)


WAYS: dict[str, Callable[[Work], None]] = {
    "raw, torchcodec, full size then resize, open per clip": torchcodec_full_size,
    "raw, torchcodec at size, open per clip": torchcodec_at_size,
    "raw, decord at size, open per clip": decord_at_size,
    "raw, PyAV at size, open per clip": pyav_at_size,
    "raw, torchcodec at size, union of clips": torchcodec_union,
    "raw, videossl": videossl_union,
    "packed, torchcodec, union of clips": packed_torchcodec,
    "packed, videossl": packed_videossl,
    "packed, every frame in order, no pictures made": packed_sequential,
    "packed at 7.5 fps, torchcodec, union of clips": slow_torchcodec,
    "packed at 7.5 fps, videossl": slow_videossl,
    "packed at 7.5 fps, every frame in order, no pictures made": slow_sequential,
}


def backend_of(way: str) -> str:
    return next((name for name in ("torchcodec", "decord") if name in way), "pyav")


def shape_of(entry: VideoEntry) -> tuple[int, int]:
    return resized_shape(entry.height, entry.width, SHORT_SIDE)


def by_source(folder: str) -> dict[str, VideoEntry]:
    """The packed copies, by the file that each was made of."""
    found = {}
    at = {
        (Path(entry.path).name, entry.offset): entry
        for entry in read_manifest(f"{folder}/manifest.parquet")
    }
    for shard in sorted(Path(folder).glob("*.tar")):
        with tarfile.open(shard) as tar:
            members = {member.name: member for member in tar}
            for name, member in members.items():
                if name.endswith(".json"):
                    source = json.load(tar.extractfile(member))["source"]  # type: ignore[arg-type]
                    video = members[name.replace(".json", ".mp4")]
                    found[source] = at[shard.name, video.offset_data]
    return found


def measure(
    works: list[Work], ways: dict[str, Callable[[Work], None]], num_rounds: int
) -> dict[str, set[str]]:
    """Fills `Work.seconds`; returns the files that each way fails on."""
    failed: dict[str, set[str]] = {name: set() for name in ways}
    for number in range(
        num_rounds + 1
    ):  # the first round warms up the page cache and finds what fails
        for work in works:
            for name, way in ways.items():
                if work.entry.path in failed[name]:
                    continue
                started = time.perf_counter()
                try:
                    way(work)
                except Exception as error:  # whatever another library raises is a row of the table
                    failed[name].add(work.entry.path)
                    print(f"{name} fails on {Path(work.entry.path).name}: {first_line(error)}")
                    continue
                if number:
                    work.seconds.setdefault(name, []).append(time.perf_counter() - started)
        print(f"round {number} of {num_rounds} done", flush=True)
    return failed


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:100]


def report(
    works: list[Work], ways: dict[str, Callable[[Work], None]], failed: dict[str, set[str]]
) -> None:
    unread = set().union(*failed.values())
    common = [work for work in works if work.entry.path not in unread]
    large = [work for work in common if min(work.entry.width, work.entry.height) >= LARGE_SIDE]
    print(f"\nclips/s over {len(common)} files that every way reads, of {len(works)}")
    print(f"{'':60} {'all':>8} {f'{len(large)} of >= {LARGE_SIDE} px':>18}  fails on")
    for name in ways:
        rates = [rate(group, name) for group in (common, large)]
        print(f"{name:60} {rates[0]:8.1f} {rates[1]:18.1f}  {len(failed[name])}")
    print()
    best = max(
        ("raw, torchcodec at size", "raw, decord", "raw, PyAV"),
        key=lambda prefix: rate(common, full_name(ways, prefix)),
    )
    ratios = [
        ("raw, videossl", best),
        ("raw, videossl", "raw, torchcodec, full size"),
        ("packed, videossl", "raw, decord"),
        ("packed, videossl", "packed, torchcodec"),
        ("packed at 7.5 fps, videossl", "raw, decord"),
    ]
    for one, other in ratios:
        a, b = full_name(ways, one), full_name(ways, other)
        values = [rate(group, a) / rate(group, b) for group in (common, large) if group]
        print(f"{one} / {other}: {', large files: '.join(f'{value:.2f}x' for value in values)}")


def full_name(ways: dict[str, Callable[[Work], None]], prefix: str) -> str:
    return next((name for name in ways if name.startswith(prefix)), prefix)


def rate(works: list[Work], way: str) -> float:
    """Clips per second over these files, of the median round of each."""
    seconds = [statistics.median(work.seconds[way]) for work in works if way in work.seconds]
    return NUM_CLIPS * len(seconds) / sum(seconds) if seconds else float("nan")


if __name__ == "__main__":
    raise SystemExit(main())
