"""Encoder files, and everything that reads them."""

import json
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import videossl
from videossl.engine.checkpoint import restore_encoder
from videossl.errors import UserError
from videossl.export.video_encoder import (
    ClipForm,
    VideoEncoder,
    read_encoder_file,
    write_encoder_file,
)
from videossl.models.encoder import Encoder, EncoderSpec
from videossl.models.encoder_file import read_record


@pytest.fixture(scope="module")
def encoder() -> VideoEncoder:
    torch.manual_seed(0)
    bare = Encoder(EncoderSpec("tiny", "res4", max_stride=4), track_stage="res3")
    for name, buffer in bare.named_buffers():  # statistics that are not the fresh ones
        if name.endswith("running_mean"):
            torch.nn.init.normal_(buffer)
    clip = ClipForm(num_frames=3, resize=36, crop_size=32, seconds_between_frames=0.25)
    return VideoEncoder(bare, clip, stage="res3").eval()


@pytest.fixture
def file(encoder, tmp_path):
    path = tmp_path / "encoder.safetensors"
    write_encoder_file(path, encoder, {"step": 7})
    return path


def video() -> torch.Tensor:
    numbers = np.random.default_rng(0).integers(0, 256, (2, 3, 3, 40, 50), dtype=np.uint8)
    return torch.from_numpy(numbers)


def rewritten(path, record_changes=None, weights_changes=None):
    """The file with other metadata or tensors, the digest left as it was: what a liar would write."""
    weights = {**load_file(path), **(weights_changes or {})}
    record = {**read_record(path), **(record_changes or {})}
    weights = {name: tensor for name, tensor in weights.items() if tensor is not None}
    save_file(weights, path, {"format": "pt", "videossl": json.dumps(record)})


def test_a_file_gives_the_same_module(encoder, file):
    again = read_encoder_file(file)
    assert again.describe() == encoder.describe()
    assert not again.training
    with torch.no_grad():
        assert torch.equal(again(video()), encoder(video()))
    record = read_record(file)
    assert record["version"] == videossl.__version__
    assert record["facts"] == {"step": 7}


def test_public_loading_and_commands_that_read_checkpoints_take_a_file(encoder, file):
    with torch.no_grad():
        assert torch.equal(videossl.load_encoder(file)(video()), encoder(video()))
    assert videossl.load_encoder(file, stage="res2").stage == "res2"
    bare = restore_encoder(file)
    assert bare.describe() == encoder.encoder.describe()
    for name, tensor in encoder.encoder.state_dict().items():
        assert torch.equal(bare.state_dict()[name], tensor)
    fresh = [restore_encoder(file, untrained_seed=seed).stem.conv.weight for seed in (1, 1, 2)]
    assert torch.equal(fresh[0], fresh[1])
    assert not torch.equal(fresh[0], fresh[2])
    assert not torch.equal(fresh[0], bare.stem.conv.weight)


def test_other_software_reads_the_tensors(encoder, file):
    weights = load_file(file)
    assert weights.keys() == encoder.encoder.state_dict().keys()


@pytest.mark.parametrize("kept", [0, 5, 8, 200, -1])
def test_a_cut_file_fails(file, kept):
    content = file.read_bytes()
    file.write_bytes(content[:kept])
    with pytest.raises(UserError, match=r"encoder\.safetensors is damaged or not safetensors"):
        videossl.load_encoder(file)


def test_a_flipped_bit_of_the_weights_fails(file):
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="damaged: the SHA-256 of its weights"):
        restore_encoder(file)


@pytest.mark.parametrize("length", [2**63, 2**40, 99_000_000])
def test_an_absurd_header_length_fails(file, length):
    file.write_bytes(struct.pack("<Q", length) + file.read_bytes()[8:])
    with pytest.raises(UserError, match="damaged or not safetensors"):
        restore_encoder(file)


def test_an_absurd_tensor_fails(file):
    header = {"a": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}}
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(UserError, match="damaged or not safetensors"):
        restore_encoder(file)


def test_safetensors_of_others_fail(tmp_path):
    path = tmp_path / "theirs.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(UserError, match="not written by `videossl export`"):
        restore_encoder(path)


def described(**changes) -> dict:
    clip = {"num_frames": 3, "seconds_between_frames": 0.25, "resize": 36, "crop_size": 32}
    spec = {"name": "tiny", "deepest_stage": "res4", "keep_time": True, "max_stride": 4}
    whole = {"spec": spec, "track_stage": "res3", "stage": "res3", "clip": clip}
    for path, value in changes.items():
        section, _, key = path.rpartition("__")
        (whole[section] if section else whole)[key] = value
    return whole


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"spec__name": "resnet"}, "'resnet' is unknown; allowed: csn_r101"),
        ({"spec__name": ["tiny"]}, "does not describe an encoder"),
        ({"spec__deepest_stage": "res9"}, "'res9' is unknown"),
        ({"spec__max_stride": "4"}, "does not describe an encoder"),
        ({"spec__max_stride": -4}, "cannot have max_stride -4"),
        ({"spec__module": "os"}, "module"),
        ({"spec": "tiny"}, "does not describe an encoder"),
        ({"track_stage": "res5"}, "track_stage 'res5'"),
        ({"stage": "res5"}, "stage 'res5' is not in this encoder"),
        ({"stage": []}, "is not in this encoder"),
        ({"clip__num_frames": 10**12}, "whole numbers of 1 to"),
        ({"clip__crop_size": 32.5}, "whole numbers of 1 to"),
        ({"clip__resize": -1}, "whole numbers of 1 to"),
        ({"clip__seconds_between_frames": float("nan")}, "seconds_between_frames"),
        ({"clip__seconds_between_frames": "1"}, "seconds_between_frames of a clip must be above 0"),
        ({"clip": None}, "does not describe a video encoder"),
    ],
    ids=str,
)
def test_lying_metadata_fails_in_one_line(file, changes, says):
    rewritten(file, {"encoder": described(**changes)})
    with pytest.raises(UserError, match=says) as caught:
        videossl.load_encoder(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("record", ["[1, 2]", "{}", "{", "[" * 100_000, '{"format": 1}'])
def test_a_record_that_is_none_fails(file, record):
    save_file(load_file(file), file, {"videossl": record})
    with pytest.raises(UserError, match=r"encoder\.safetensors"):
        restore_encoder(file)


@pytest.mark.parametrize(
    ("name", "tensor", "says"),
    [
        ("stem.conv.weight", None, "lacks the tensor 'stem.conv.weight'"),
        ("head.weight", torch.zeros(2), "has besides the tensor 'head.weight'"),
        ("stem.conv.weight", torch.zeros(1), r"has shape \(1,\), not \(32, 3, 1, 7, 7\)"),
        ("stem.conv.weight", torch.zeros(32, 3, 1, 7, 7).half(), "is torch.float16"),
        ("stem.conv.weight", torch.zeros(32, 3, 1, 7, 7), "SHA-256"),
    ],
)
def test_tensors_that_are_not_the_encoders_fail(file, name, tensor, says):
    rewritten(file, weights_changes={name: tensor})
    with pytest.raises(UserError, match=says):
        restore_encoder(file)


def test_a_write_that_fails_leaves_the_old_file(encoder, file, monkeypatch):
    before = file.read_bytes()

    def full_disk(self, data):
        self.open("wb").write(data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full_disk)
    with pytest.raises(UserError, match="cannot be written: No space left"):
        write_encoder_file(file, encoder)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_name_with_another_ending_fails(encoder, tmp_path):
    with pytest.raises(UserError, match=r"must end in \.safetensors"):
        write_encoder_file(tmp_path / "encoder.pt", encoder)


def test_a_file_that_is_not_there_fails(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        restore_encoder(tmp_path / "none.safetensors")


def test_what_needs_a_whole_checkpoint_says_that_this_is_none(file, tmp_path, capsys):
    from videossl.__main__ import main

    assert main(["audit", "--checkpoint", str(file), "-o", str(tmp_path / "audit")]) == 2
    assert "is an exported encoder, without its tasks" in capsys.readouterr().err
