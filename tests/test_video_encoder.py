from functools import partial

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF

import videossl
from videossl.color import encoder_input
from videossl.errors import UserError
from videossl.export.state_dicts import load_weights
from videossl.export.video_encoder import ClipForm, VideoEncoder
from videossl.models.encoder import Encoder, EncoderSpec


@pytest.fixture(scope="module")
def encoder() -> VideoEncoder:
    torch.manual_seed(0)
    clip = ClipForm(num_frames=4, resize=36, crop_size=32)
    return VideoEncoder(Encoder(EncoderSpec("tiny")), clip).eval()


def video(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize(
    ("size", "scaled"), [((36, 48), [36, 48]), ((90, 60), [54, 36]), ((20, 31), [36, 56])]
)
def test_preprocessing_is_resize_centre_crop_and_lab(encoder, size, scaled):
    clips = video(2, 4, 3, *size)
    frames = clips.flatten(0, 1).float() / 255
    cropped = TF.center_crop(TF.resize(frames, scaled, antialias=True).clamp(0, 1), [32])
    expected = encoder_input(cropped * 255).unflatten(0, (2, 4)).transpose(1, 2)
    assert encoder.preprocess(clips).shape == (2, 3, 4, 32, 32)
    torch.testing.assert_close(encoder.preprocess(clips), expected, atol=1e-4, rtol=0)


def test_features_are_the_mean_of_the_deepest_stage(encoder):
    clips = video(2, 4, 3, 40, 50)
    with torch.no_grad():
        maps = encoder.encoder(encoder.preprocess(clips))["res5"].data
        assert encoder(clips).shape == (2, encoder.num_channels) == (2, 128)
        torch.testing.assert_close(encoder(clips), maps.mean((2, 3, 4)))
        torch.testing.assert_close(encoder(clips[1]), encoder(clips)[1])


def test_stages_behind_the_one_that_is_read_do_no_work(encoder):
    early = VideoEncoder(encoder.encoder, encoder.clip, stage="res3")
    called = []
    hooks = [
        block.register_forward_hook(lambda *_, name=name: called.append(name))
        for name, block in encoder.encoder.blocks.items()
    ]
    clips = video(2, 4, 3, 40, 50)
    with torch.no_grad():
        features = early(clips)
        for hook in hooks:
            hook.remove()
        maps = encoder.feature_maps(clips)["res3"]
    assert called == ["res2", "res3"]
    torch.testing.assert_close(features, maps.mean((2, 3, 4)))


@pytest.mark.parametrize(
    ("clip", "says"),
    [
        (torch.zeros(4, 3, 8, 8), "float32"),
        (torch.zeros(4, 8, 8, 3, dtype=torch.uint8), r"movedim\(-1, -3\)"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"\(3, 8, 8\)"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), r"a frame and a pixel at least, got \(0, 3"),
        (torch.zeros(2, 4, 3, 0, 8, dtype=torch.uint8), r"a frame and a pixel at least"),
        (torch.zeros(4, 3, 8, 0, dtype=torch.uint8), r"a frame and a pixel at least"),
    ],
)
def test_what_is_no_video_fails(encoder, clip, says):
    with pytest.raises(UserError, match=says):
        encoder(clip)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_another_type_are_given_their_type(encoder, dtype):
    other = VideoEncoder.of_description(encoder.describe()).eval()
    other.load_state_dict(encoder.state_dict())
    other.to(dtype)
    clips = video(2, 4, 3, 40, 50)
    with torch.no_grad():
        expected, found = encoder(clips), other(clips)
        assert torch.equal(other.preprocess(clips), encoder.preprocess(clips).to(dtype))
    assert found.dtype == dtype
    scale = float(expected.square().mean().sqrt())
    assert float((found.float() - expected).abs().max()) < 0.05 * scale


def test_a_stage_that_is_not_there_fails(encoder):
    with pytest.raises(UserError, match="res2, res3, res4, res5"):
        VideoEncoder(encoder.encoder, encoder.clip, stage="res9")


def test_a_description_builds_the_same_module(encoder):
    again = VideoEncoder.of_description(encoder.describe()).eval()
    again.load_state_dict(encoder.state_dict())
    clips = video(1, 4, 3, 40, 40)
    with torch.no_grad():
        assert torch.equal(again(clips), encoder(clips))


def test_public_loading_gives_a_module_that_takes_videos(checkpoint):
    loaded = videossl.load_encoder(checkpoint)
    assert not loaded.training
    assert loaded.stage == "res3"
    assert loaded(video(8, 3, 130, 150)).shape == (64,)
    assert videossl.load_encoder(checkpoint, stage="res2").num_channels == 48
    fresh = [videossl.load_encoder(checkpoint, untrained_seed=seed).state_dict() for seed in (1, 1)]
    assert all(torch.equal(fresh[0][key], fresh[1][key]) for key in fresh[0])


def test_the_clip_of_a_run_is_that_of_its_config():
    clip = ClipForm.of_config(run_config(), stride=32)
    assert (clip.num_frames, clip.crop_size, clip.resize) == (8, 128, 139)


def run_config() -> dict:
    from videossl.config import Config

    return Config(out="x", tasks={"t": {}}).model_dump(mode="json")


def saved(config, checkpoint, tmp_path):
    """The checkpoint with that config."""
    state = torch.load(checkpoint, weights_only=True)
    torch.save({**state, "config": config}, tmp_path / "step_000001.pt")
    return tmp_path / "step_000001.pt"


def test_a_config_older_than_the_clip_has_the_defaults_and_says_so(checkpoint, tmp_path, caplog):
    config = run_config()
    del config["monitor"]["knn"]
    assert videossl.load_encoder(saved(config, checkpoint, tmp_path)).clip == ClipForm()
    assert caplog.text.count("has no 'knn'") == 1


@pytest.mark.parametrize(
    ("section", "value", "says"),
    [
        ("augment", {"border": 0.5}, "augment.border 0.5"),
        ("augment", {"border": float("nan")}, "augment.border nan"),
        ("data", {"short_side": "96"}, "data.short_side '96'"),
        ("data", {"short_side": float("inf")}, "data.short_side inf"),
        ("monitor", {"knn": 3}, "not subscriptable"),
        (
            "monitor",
            {"knn": {"num_frames": 4, "seconds_between_frames": "1"}},
            "seconds_between_frames",
        ),
    ],
)
def test_a_config_that_no_run_has_fails_in_one_line(checkpoint, tmp_path, section, value, says):
    path = saved({**run_config(), section: value}, checkpoint, tmp_path)
    with pytest.raises(UserError, match=says) as caught:
        videossl.load_encoder(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["weights.pth", "step_000001.pt", "e.safetensors"])
def test_the_digest_is_seen_before_a_file_is_read(tmp_path, name):
    """A file that cannot be read at all is refused for its digest, and so nothing of it was read."""
    (tmp_path / name).write_bytes(b"nothing that could be read")
    load = partial(load_weights, name="r3d_18") if name == "weights.pth" else videossl.load_encoder
    with pytest.raises(UserError, match="is not the file asked for"):
        load(tmp_path / name, sha256="00")
    with pytest.raises(UserError, match=r"cannot be read|does not exist"):
        load(tmp_path / f"no {name}", sha256="00")


@pytest.mark.parametrize("bad", [{"crop_size": 200}, {"num_frames": 0}])
def test_a_clip_that_cannot_be_fails(bad):
    with pytest.raises(UserError, match=r"crop_size|num_frames"):
        ClipForm(**bad)
