"""Batches from worker processes: the same ones, in the same order, whatever the decoders do to their processes."""

import multiprocessing
import os
import signal
import time

import pytest
import torch
from bad_decoders import BAD, crash, grow, hold_the_lock, hurt, refuse, spin, stumble

from videossl.data import dataset as dataset_module
from videossl.data.dataset import ClipDataset, RawClips
from videossl.data.loader import (
    HELD_BATCHES,
    PREFETCHED_BATCHES,
    StepPositions,
    _threaded_batches,
    frame_batches,
)
from videossl.data.manifest import read_manifest
from videossl.errors import UserError
from videossl.types import ClipSpec

WINDOW = ClipSpec(2, 2, 1 / 12, 32, min_gap_seconds=0.2, window_seconds=1.0)
CLIP = ClipSpec(1, 4, 1 / 12, 24)
NUM_STEPS, BATCH = 6, 5


def positions(first: int = 0, last: int = NUM_STEPS) -> StepPositions:
    return StepPositions(first, last, rank=0, world_size=1, videos_per_rank=BATCH)


@pytest.fixture
def dataset(video_folder) -> ClipDataset:
    return ClipDataset(read_manifest(video_folder), [WINDOW, CLIP], seed=3, short_side=48)


def batches(dataset: ClipDataset, *, num_workers: int = 2, steps=None, **options) -> list[RawClips]:
    options = {"timeout_seconds": 1.0, "memory_gib": 0.4, **options}
    steps = positions() if steps is None else steps
    found = list(frame_batches(dataset, steps, num_workers=num_workers, **options))
    assert multiprocessing.active_children() == []
    return found


def assert_same(first: list[RawClips], second: list[RawClips]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.video_ids.tolist() == b.video_ids.tolist()
        for spec in (WINDOW, CLIP):
            assert a.frames[spec].dtype == torch.uint8
            assert torch.equal(a.frames[spec], b.frames[spec])
            assert torch.equal(a.pts_seconds[spec], b.pts_seconds[spec])


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_processes_decode_what_this_process_decodes(dataset, num_workers):
    assert_same(batches(dataset, num_workers=num_workers), batches(dataset, num_workers=0))


def test_threads_decode_what_this_process_decodes(dataset):
    assert_same(
        list(_threaded_batches(dataset, positions(), num_threads=2)),
        batches(dataset, num_workers=0),
    )


def test_a_loader_goes_on_at_any_step(dataset):
    assert_same(batches(dataset, steps=positions(4)), batches(dataset)[4:])


def test_batches_keep_their_order_when_decoding_takes_uneven_times(dataset, monkeypatch):
    wanted = batches(dataset, num_workers=0)
    hurt(monkeypatch, lambda: time.sleep(0.3))
    assert_same(batches(dataset), wanted)


@pytest.mark.parametrize(
    ("act", "kind", "cause"),
    [
        (spin, "hang", "no answer for 1 s"),
        (hold_the_lock, "hang", "no answer for 1 s"),
        (crash, "crash", "the process died of SIGSEGV"),
        (grow, "memory", "it needs more than 0.4 GiB of memory"),
        (refuse, "error", "it is broken"),
        (stumble, "error", "IndexError: a bug of the decoder"),
    ],
)
def test_a_bad_video_is_replaced_as_one_that_merely_fails(dataset, monkeypatch, act, kind, cause):
    sound = batches(dataset, num_workers=0)
    with monkeypatch.context() as patch:
        hurt(patch, refuse)
        wanted = batches(dataset, num_workers=0)
    hurt(monkeypatch, act)
    # Growing to the limit takes time, too; the other kinds do not come near the timeout.
    found = batches(dataset, timeout_seconds=1.0 if kind == "hang" else 60)
    assert_same(found, wanted)
    failures = [failure for batch in found for failure in batch.failures]
    assert len(failures) == sum(len(batch.failures) for batch in wanted) >= 3
    assert all(f.path.endswith(f"/{BAD}") and f.kind == kind for f in failures)
    assert all(f.reason.startswith(cause) and f.backend for f in failures)
    changed = 0
    for batch, before in zip(found, sound, strict=True):
        for row, video in enumerate(before.video_ids.tolist()):
            if dataset.source_name(video).endswith(f"/{BAD}"):
                assert int(batch.video_ids[row]) != video
                changed += 1
            else:
                assert torch.equal(batch.frames[CLIP][row], before.frames[CLIP][row])
    assert changed >= 3


def test_a_video_that_hung_is_not_tried_again(dataset, monkeypatch):
    hurt(monkeypatch, hold_the_lock)
    quarantine = {}
    first = batches(dataset, quarantine=quarantine)
    (name,) = quarantine
    assert name.endswith(f"/{BAD}")
    started = time.monotonic()
    hurt(monkeypatch, lambda: pytest.fail("tried again"))
    again = batches(dataset, quarantine=quarantine, timeout_seconds=60)
    assert time.monotonic() - started < 30
    assert_same(first, again)
    assert_same(first, batches(dataset, num_workers=0, quarantine=quarantine))


def test_a_worker_killed_from_outside_changes_nothing(dataset):
    wanted = batches(dataset, num_workers=0)
    loader = frame_batches(dataset, positions(), num_workers=2, timeout_seconds=60)
    found = [next(loader)]
    killed = multiprocessing.active_children()
    # Once: a video that is at work in two killed workers is taken for the cause.
    for process in killed:
        os.kill(process.pid, signal.SIGKILL)
    found += loader
    assert len(killed) == 2
    assert not any(process.is_alive() for process in killed)
    assert_same(found, wanted)
    assert not any(batch.failures for batch in found)


def test_a_consumer_that_keeps_every_batch_gets_copies(dataset):
    steps = positions(0, 3 * (PREFETCHED_BATCHES + HELD_BATCHES))
    held = batches(dataset, steps=steps)
    assert_same(held, batches(dataset, num_workers=0, steps=steps))


def test_parts_of_a_batch_keep_its_memory(dataset):
    steps = positions(0, 3 * (PREFETCHED_BATCHES + HELD_BATCHES))
    parts = []
    for batch in frame_batches(dataset, steps, num_workers=2, timeout_seconds=60):
        parts.append(batch.frames[CLIP][2:3, :, 1].flatten(1))
    for batch, part in zip(batches(dataset, num_workers=0, steps=steps), parts, strict=True):
        assert torch.equal(batch.frames[CLIP][2:3, :, 1].flatten(1), part)


def test_frames_are_read_where_the_workers_wrote_them(dataset):
    steps = positions(0, 40)
    slots = set()
    for batch in frame_batches(dataset, steps, num_workers=2, timeout_seconds=60):
        slots.add(batch.frames[CLIP].data_ptr())
    assert len(slots) <= PREFETCHED_BATCHES + HELD_BATCHES


def test_a_loader_closed_early_leaves_no_process(dataset, monkeypatch):
    later = dataset.source_name(dataset.row_at(2 * BATCH - 2))  # in the second batch
    hurt(monkeypatch, hold_the_lock, bad=later.rsplit("/", 1)[1])
    loader = frame_batches(dataset, positions(0, 100), num_workers=3, timeout_seconds=60)
    batch = next(loader)
    expected = batch.frames[CLIP].clone()
    assert len(multiprocessing.active_children()) == 3
    started = time.monotonic()
    loader.close()
    assert multiprocessing.active_children() == []
    assert time.monotonic() - started < 10
    assert torch.equal(batch.frames[CLIP], expected), "what was handed out stays"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_dataset_of_which_nothing_decodes_fails(dataset, monkeypatch, num_workers):
    monkeypatch.setattr(dataset_module, "open_video", lambda source, **options: refuse())
    with pytest.raises(UserError, match="20 videos in a row cannot be decoded, the last being"):
        batches(dataset, num_workers=num_workers)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_missing_backend_is_no_videos_fault_and_fails(dataset, monkeypatch, num_workers):
    def open_video(source, **options):
        raise UserError("no such backend")

    monkeypatch.setattr(dataset_module, "open_video", open_video)
    with pytest.raises(UserError, match="no such backend"):
        batches(dataset, num_workers=num_workers)
