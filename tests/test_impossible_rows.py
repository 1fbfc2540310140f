"""A row of a manifest that no video can have costs that video, and nothing else."""

from dataclasses import replace

import pytest

from videossl.catalog.pack_settings import PackSettings
from videossl.catalog.packing import pack_videos
from videossl.data.dataset import ClipDataset
from videossl.data.loader import StepPositions, frame_batches
from videossl.data.manifest import Manifest, read_manifest
from videossl.errors import VideoDecodeError
from videossl.types import ClipSpec

IMPOSSIBLE = {
    "frames": {"num_frames": 2**40},
    "times": {"end_seconds": 1e300, "usable_end_seconds": 1e300},
    "nan": {"begin_seconds": float("nan")},
    "rate": {"fps": 1e300},
    "key frames": {"key_frames": (0, 2**30)},
    "deltas": {"tick_deltas": (1, 2)},
}


def damaged(path, change: dict) -> Manifest:
    entries = list(read_manifest(path))[:4]
    return Manifest.from_entries([replace(entries[0], cuts=(1.0,), **change), *entries[1:]])


@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_the_loader_goes_on_without_it(kind, video_folder):
    manifest = damaged(video_folder, IMPOSSIBLE[kind])
    with pytest.raises(VideoDecodeError, match="of no possible video: scan it again"):
        manifest[0].index()
    spec = ClipSpec(num_clips=1, num_frames=2, seconds_between_frames=0.1, crop_size=16)
    data = ClipDataset(manifest, [spec], seed=0, short_side=16)
    steps = StepPositions(0, 4, rank=0, world_size=1, videos_per_rank=2)
    for batch in frame_batches(data, steps, num_workers=0, timeout_seconds=30):
        assert 0 not in batch.video_ids.tolist()


@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_the_others_are_packed(kind, video_folder, tmp_path):
    manifest = damaged(video_folder, IMPOSSIBLE[kind])
    settings = PackSettings(short_side=16, min_shot_seconds=0.1)
    summary = pack_videos(manifest, tmp_path, settings, num_workers=1)
    assert summary.num_files == 3
