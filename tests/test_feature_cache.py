import os

import pytest
import torch

from videossl.data.manifest import Manifest, read_manifest
from videossl.errors import UserError
from videossl.export.video_encoder import ClipForm, VideoEncoder
from videossl.models.encoder import Encoder, EncoderSpec
from videossl.probe import feature_store
from videossl.probe.embedding import ClipReader
from videossl.probe.feature_store import cached_features, state_digest

CLIP = ClipForm(num_frames=2, seconds_between_frames=0.2, resize=36, crop_size=32)
CPU = torch.device("cpu")


def encoder(seed: int = 0) -> VideoEncoder:
    torch.manual_seed(seed)
    return VideoEncoder(Encoder(EncoderSpec("tiny", "res3")), CLIP)


@pytest.fixture
def manifest(video_folder, monkeypatch) -> Manifest:
    monkeypatch.setattr(feature_store, "CHUNK", 3)
    return read_manifest(video_folder)


class Counting(ClipReader):
    """Counts the videos that are read."""

    def read_all(self, rows, **options):
        for found in super().read_all(rows, **options):
            self.__dict__.setdefault("seen", []).append(found.row)
            yield found


def features(reader: ClipReader, folder, module=None, rows=range(8)):
    return cached_features(
        module or encoder(), reader, list(rows), cache=folder, device=CPU, num_workers=0
    )


def seen(reader: ClipReader) -> list[int]:
    return reader.__dict__.get("seen", [])


def test_features_are_computed_once(manifest, tmp_path):
    first, second = Counting(manifest, CLIP, 1), Counting(manifest, CLIP, 1)
    computed, loaded = features(first, tmp_path), features(second, tmp_path)
    assert (seen(first), seen(second)) == (list(range(8)), [])
    assert all(torch.equal(computed[row].clips, loaded[row].clips) for row in range(8))


@pytest.mark.parametrize("what", ["weights", "clips", "videos"])
def test_other_weights_clips_or_videos_have_features_of_their_own(manifest, tmp_path, what):
    features(ClipReader(manifest, CLIP, 1), tmp_path)
    reader = Counting(manifest, CLIP, 2 if what == "clips" else 1)
    rows = range(1, 8) if what == "videos" else range(8)
    features(reader, tmp_path, encoder(1) if what == "weights" else None, rows)
    assert len(seen(reader)) == len(rows)


def test_a_file_that_was_changed_is_read_again(manifest, tmp_path):
    from dataclasses import replace

    features(ClipReader(manifest, CLIP, 1), tmp_path)
    entries = [replace(entry, modified=entry.modified + 1) for entry in manifest]
    reader = Counting(Manifest.from_entries(entries), CLIP, 1)
    features(reader, tmp_path)
    assert len(seen(reader)) == 8


def test_the_same_videos_in_other_rows_are_not_computed_again(manifest, tmp_path):
    computed = features(ClipReader(manifest, CLIP, 1), tmp_path)
    shifted = Counting(Manifest.from_entries([manifest[9], *manifest]), CLIP, 1)
    found = features(shifted, tmp_path, rows=range(1, 9))
    assert seen(shifted) == []
    assert all(torch.equal(found[row + 1].clips, computed[row].clips) for row in range(8))


def test_a_stopped_command_goes_on_where_it_was(manifest, tmp_path):
    class Stopped(Counting):
        def read_all(self, rows, **options):
            for count, found in enumerate(super().read_all(rows, **options)):
                if count == 4:
                    raise KeyboardInterrupt
                yield found

    with pytest.raises(KeyboardInterrupt):
        features(Stopped(manifest, CLIP, 1), tmp_path)
    reader = Counting(manifest, CLIP, 1)
    found = features(reader, tmp_path)
    assert seen(reader) == [3, 4, 5, 6, 7]  # the first chunk of three is there
    assert sorted(found) == list(range(8))


def test_a_damaged_file_is_computed_again(manifest, tmp_path, caplog):
    whole = features(ClipReader(manifest, CLIP, 1), tmp_path)
    (path,) = tmp_path.rglob("1.safetensors")
    os.truncate(path, path.stat().st_size // 2)
    reader = Counting(manifest, CLIP, 1)
    found = features(reader, tmp_path)
    assert seen(reader) == [3, 4, 5]
    assert "is damaged" in caplog.text
    assert all(torch.equal(found[row].clips, whole[row].clips) for row in range(8))


def test_a_folder_that_cannot_be_written_fails(manifest, tmp_path):
    (tmp_path / "features").write_text("a file")
    with pytest.raises(UserError, match=r"cannot be cached.*another --cache"):
        features(ClipReader(manifest, CLIP, 1), tmp_path)


def test_a_full_disk_names_the_remedy_and_leaves_nothing_begun(manifest, tmp_path, monkeypatch):
    def full(tensors, path, metadata):
        path.write_bytes(b"begun")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_store, "save_file", full)
    with pytest.raises(
        UserError, match=r"No space left on device; make room .*, or name another --cache"
    ):
        features(ClipReader(manifest, CLIP, 1), tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_digest_tells_one_changed_number():
    module = encoder()
    before = state_digest(module)
    assert before == state_digest(encoder())
    next(iter(module.buffers())).view(-1)[0] += 1e-6
    assert state_digest(module) != before
