from dataclasses import replace

import numpy as np
import pytest
import torch

from videossl.data.dataset import ClipDataset, collate
from videossl.data.loader import StepPositions, frame_batches
from videossl.data.manifest import Manifest, read_manifest
from videossl.decode.backends import open_video
from videossl.errors import UserError
from videossl.types import ClipSpec

WINDOW = ClipSpec(3, 2, 1 / 12, 32, min_gap_seconds=0.2, window_seconds=1.0)
CLIP = ClipSpec(1, 4, 1 / 12, 24)


@pytest.fixture
def dataset(video_folder) -> ClipDataset:
    return ClipDataset(read_manifest(video_folder), [WINDOW, CLIP], seed=3, short_side=48)


def test_an_epoch_shows_every_video_once_and_epochs_differ(dataset):
    length = len(dataset)
    epochs = [[dataset.row_at(epoch * length + i) for i in range(length)] for epoch in range(3)]
    assert all(sorted(rows) == list(range(length)) for rows in epochs)
    assert len({tuple(rows) for rows in epochs}) > 1


def test_the_frames_are_those_of_the_stated_times(dataset):
    sample = dataset[0]
    row = int(sample.video_ids)
    with open_video(dataset.manifest[row].path, short_side=48) as reader:
        for spec in (WINDOW, CLIP):
            times = sample.pts_seconds[spec]
            assert times.shape == (spec.num_clips, spec.num_frames)
            wanted = reader.frames_shown_at(times.flatten().tolist()).data
            got = sample.frames[spec].flatten(0, 1)
            height, width = wanted.shape[-2:]
            # A square of the longer side: it must be one of the squares of the frames at those times.
            offsets = [
                o for o in range(width - 48 + 1) if torch.equal(wanted[..., o : o + 48], got)
            ]
            assert height == 48
            assert len(offsets) == 1


def test_a_sample_is_a_function_of_its_position(dataset, video_folder):
    again = ClipDataset(read_manifest(video_folder), [CLIP, WINDOW, CLIP], seed=3, short_side=48)
    assert torch.equal(dataset[5].frames[CLIP], again[5].frames[CLIP])
    assert not torch.equal(
        dataset[5].pts_seconds[CLIP], dataset[5 + len(dataset)].pts_seconds[CLIP]
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ranks_together_show_what_one_process_shows(dataset, num_workers):
    def ids(rank: int, world_size: int, first: int = 0) -> list[list[int]]:
        positions = StepPositions(
            first, 4, rank=rank, world_size=world_size, videos_per_rank=4 // world_size
        )
        batches = frame_batches(dataset, positions, num_workers=num_workers, timeout_seconds=60)
        return [batch.video_ids.tolist() for batch in batches]

    whole = ids(0, 1)
    parts = [ids(rank, 2) for rank in (0, 1)]
    assert whole == [a + b for a, b in zip(*parts, strict=True)]
    assert ids(0, 1, first=2) == whole[2:], "a resumed loader goes on where the other stopped"


def test_threads_and_processes_decode_the_same(dataset, monkeypatch):
    from videossl.data import loader

    positions = StepPositions(0, 2, rank=0, world_size=1, videos_per_rank=3)
    threaded = list(loader._threaded_batches(dataset, positions, num_threads=2))
    plain = [collate([dataset[i] for i in step]) for step in positions]
    for a, b in zip(threaded, plain, strict=True):
        assert torch.equal(a.frames[WINDOW], b.frames[WINDOW])


def test_a_broken_video_is_replaced_the_same_way_everywhere(dataset, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    entries = list(dataset.manifest)
    first = dataset.row_at(0)
    entries[first] = replace(entries[first], path=str(tmp_path / "broken.mp4"))
    hurt = ClipDataset(Manifest.from_entries(entries), [CLIP], seed=3, short_side=48)
    samples = [hurt[0], hurt[0]]
    assert [f.path for f in samples[0].failures] == [str(tmp_path / "broken.mp4")]
    assert int(samples[0].video_ids) != dataset.row_at(0)
    assert torch.equal(samples[0].frames[CLIP], samples[1].frames[CLIP])


def test_a_row_that_contradicts_itself_costs_one_video(dataset):
    """Its frames lie where its times do not: a damaged manifest, or a fault of the scan that wrote it."""
    entries = list(dataset.manifest)
    shift = 100 * entries[0].tick_denominator // entries[0].tick_numerator
    late = entries[0].last_tick + shift
    entries[0] = replace(entries[0], first_tick=entries[0].first_tick + shift, last_tick=late)
    damaged = ClipDataset(Manifest.from_entries(entries), [WINDOW, CLIP], seed=3, short_side=48)
    position = next(p for p in range(len(damaged)) if damaged.row_at(p) == 0)
    sample = damaged[position]
    (failure,) = sample.failures
    assert failure.path == entries[0].path
    assert "contradicts itself" in failure.reason
    assert int(sample.video_ids) != 0


def test_a_small_video_is_enlarged_to_the_asked_side(video_folder):
    dataset = ClipDataset(read_manifest(video_folder), [CLIP], seed=0, short_side=300)
    frames = dataset[0].frames[CLIP]
    assert frames.shape == (1, 4, 3, 300, 300)
    assert frames.dtype == torch.uint8
    assert np.ptp(frames.numpy()) > 50


def test_no_usable_video_fails_and_says_why(video_folder):
    endless = ClipSpec(1, 1000, 1.0, 32)
    with pytest.raises(
        UserError,
        match=r"no usable video among \d+: 0 broken or left out, \d+ with less than 999\.00 s",
    ):
        ClipDataset(read_manifest(video_folder), [endless], seed=0, short_side=48)


def test_a_spec_that_contradicts_itself_fails():
    with pytest.raises(ValueError, match=r"window_seconds 0.1 cannot hold 3 clips"):
        ClipSpec(3, 2, 0.1, 32, min_gap_seconds=0.2, window_seconds=0.1)
