"""Training with labels: what it learns, and that a stopped one goes on bit for bit."""

import dataclasses
import threading

import pytest
import torch

from videossl.data.manifest import Manifest, read_manifest
from videossl.export.video_encoder import ClipForm, VideoEncoder
from videossl.models.encoder import Encoder, EncoderSpec
from videossl.probe import fine_tuning
from videossl.probe.fine_tuning import Recipe, train_with_labels
from videossl.probe.labelled_split import LabelledSplit, split_labelled

CLIP = ClipForm(num_frames=4, seconds_between_frames=0.1, resize=35, crop_size=32)
RECIPE = Recipe(epochs=3, batch_size=4, dropout=0.1)


@pytest.fixture(scope="module")
def manifest(tinted_videos) -> Manifest:
    return read_manifest(tinted_videos)


@pytest.fixture(scope="module")
def split(manifest) -> LabelledSplit:
    return split_labelled(manifest, seed=0)


def encoder() -> VideoEncoder:
    torch.manual_seed(0)
    return VideoEncoder(Encoder(EncoderSpec("tiny", "res3")), CLIP)


def train(manifest: Manifest, split: LabelledSplit, cache, recipe: Recipe = RECIPE):
    return train_with_labels(
        encoder(), manifest, split, recipe=recipe, device=torch.device("cpu"), cache=cache, why="t"
    )


def test_what_labels_tell_is_learned(manifest, split, tmp_path):
    start = encoder().state_dict()
    model = train(manifest, split, tmp_path, dataclasses.replace(RECIPE, epochs=8))
    assert not model.training
    assert any(
        not torch.equal(value, start[key]) for key, value in model.encoder.state_dict().items()
    )
    from videossl.probe.embedding import ClipReader

    reader = ClipReader(manifest, CLIP, 1)
    with torch.no_grad():
        answers = [
            int(model.classify(model.encoder(reader.read(row))).argmax()) for row in split.test
        ]
    assert answers == split.label[split.test].tolist()


def test_a_stopped_training_goes_on_bit_for_bit(manifest, split, tmp_path, monkeypatch):
    whole = train(manifest, split, tmp_path / "whole").state_dict()
    save, saves = fine_tuning.save_checkpoint, []

    def interrupted(*args, **options):
        save(*args, **options)
        saves.append(options["step"])
        if len(saves) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(fine_tuning, "save_checkpoint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(manifest, split, tmp_path / "cut")
    parts = train(manifest, split, tmp_path / "cut").state_dict()
    assert saves == [1, 2, 3]
    assert all(torch.equal(value, parts[key]) for key, value in whole.items())
    again = train(manifest, split, tmp_path / "cut").state_dict()
    assert saves == [1, 2, 3]  # it was finished
    assert all(torch.equal(value, again[key]) for key, value in whole.items())


def test_only_train_and_validation_videos_are_seen(manifest, split, tmp_path, monkeypatch):
    seen: set[int] = set()
    convert = fine_tuning.to_clip_batch

    def noting(raw, *args):
        seen.update(raw.video_ids.tolist())
        return convert(raw, *args)

    monkeypatch.setattr(fine_tuning, "to_clip_batch", noting)
    train(manifest, split, tmp_path)
    assert seen
    assert not seen & set(split.test.tolist())


def test_two_that_train_the_same_take_turns(tmp_path):
    order = []

    def second() -> None:
        with fine_tuning._alone(tmp_path / "x", "second"):
            order.append("second")

    with fine_tuning._alone(tmp_path / "x", "first"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
