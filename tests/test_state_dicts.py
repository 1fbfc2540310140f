"""Weights of pytorchvideo and torchvision in our encoders and ours in theirs, against models that they build."""

import logging

import fsspec
import pytest
import torch
import torchvision.models.video as torchvision_video

import videossl
from videossl.__main__ import main
from videossl.color import encoder_input
from videossl.engine.checkpoint import load_newest, restore_encoder
from videossl.errors import UserError
from videossl.export.state_dicts import (
    COUNTERPARTS,
    export_weights,
    import_weights,
    load_weights,
)
from videossl.export.video_encoder import ClipForm, VideoEncoder, write_encoder_file
from videossl.models.architectures import COLOURS, normalized_rgb
from videossl.models.encoder import STAGES, Encoder, EncoderSpec


def pytorchvideo_model(name):
    """As pytorchvideo.models.hub builds it; the module itself does not load with a torchvision of today."""
    from pytorchvideo.models.csn import create_csn
    from pytorchvideo.models.resnet import create_resnet
    from pytorchvideo.models.x3d import create_x3d

    if name == "slow_r50":
        kernels = ((1, 1, 1), (1, 1, 1), (3, 1, 1), (3, 1, 1))
        return create_resnet(
            stem_conv_kernel_size=(1, 7, 7),
            stage_conv_a_kernel_size=kernels,
            head_pool_kernel_size=(8, 7, 7),
            model_depth=50,
        )
    if name == "x3d_s":
        return create_x3d(input_clip_length=13, input_crop_size=160)
    return create_csn(
        model_depth=101,
        stem_pool=torch.nn.MaxPool3d,
        head_pool_kernel_size=(4, 7, 7),
    )


def theirs(name):
    """(model, {stage: module}) with weights and statistics that are not the initial ones."""
    torch.manual_seed(1)
    if COUNTERPARTS[name].library == "pytorchvideo":
        model = pytorchvideo_model(name)
        stages = dict(zip(STAGES, model.blocks[1:5], strict=True))
    else:
        model = getattr(torchvision_video, name)(weights=None)
        if name == "s3d":  # res2..res5 end before each pool, and with the last layer
            ends = {"res2": 3, "res3": 6, "res4": 12, "res5": 15}
            stages = {stage: model.features[end] for stage, end in ends.items()}
        else:
            stages = {s: getattr(model, f"layer{i}") for i, s in enumerate(STAGES, 1)}
    for key, value in model.state_dict().items():
        if key.endswith("running_mean"):
            torch.nn.init.normal_(value, std=0.1)
        if key.endswith("running_var"):
            torch.nn.init.uniform_(value, 0.5, 1.5)
    return model.eval(), stages


def stage_outputs(model, stages, x):
    found = {}
    hooks = [
        module.register_forward_hook(lambda *a, stage=stage: found.__setitem__(stage, a[-1]))
        for stage, module in stages.items()
    ]
    stop = RuntimeError("stages are done, the head may not fit so small a clip")
    hooks.append(stages["res5"].register_forward_hook(lambda *_: (_ for _ in ()).throw(stop)))
    with torch.no_grad(), pytest.raises(RuntimeError, match="stages are done"):
        model(x)
    for hook in hooks:
        hook.remove()
    return found


def assert_same_features(encoder, model, stages, x):
    """Compared below the colours: the encoder's own input is theirs."""
    expected = stage_outputs(model, stages, x)
    with torch.no_grad():
        y = encoder.stem(x)
        for stage, block in encoder.blocks.items():
            y = block(y)
            scale = float(expected[stage].abs().max())
            assert scale > 0
            torch.testing.assert_close(y, expected[stage], atol=1e-5 * scale, rtol=0)


CLIP = (2, 3, 8, 64, 64)
QUICK = ("r3d_18", "x3d_s")  # of each library
NAMES = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
    for name in sorted(COUNTERPARTS)
]


@pytest.mark.parametrize("name", NAMES)
def test_their_weights_give_their_features_in_our_encoder(name):
    model, stages = theirs(name)
    encoder, dropped = import_weights(name, model.state_dict())
    assert encoder.spec == EncoderSpec(name, "res5", False, None, encoder.spec.colours)
    assert not encoder.training
    assert_same_features(encoder, model, stages, torch.randn(CLIP))
    assert dropped
    assert {key.split(".")[0] for key in dropped} in ({"blocks"}, {"fc"}, {"classifier"})
    assert len(dropped) + len(encoder.state_dict()) == len(model.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_our_weights_give_our_features_in_their_model(name, tmp_path):
    torch.manual_seed(2)
    encoder = Encoder(EncoderSpec(name, keep_time=False)).eval()
    model, stages = theirs(name)
    missing, unexpected = model.load_state_dict(export_weights(encoder), strict=False)
    assert unexpected == []
    assert all(key.startswith(COUNTERPARTS[name].heads) for key in missing)
    assert_same_features(encoder, model, stages, torch.randn(CLIP))


@pytest.mark.parametrize("name", NAMES)
def test_a_round_trip_changes_no_bit_and_cut_encoders_pass(name):
    cut = Encoder(EncoderSpec(name, "res3", keep_time=True))
    again, dropped = import_weights(name, export_weights(cut))
    assert dropped == []
    assert again.spec.deepest_stage == "res3"
    for key, value in cut.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("layer2.0.conv1.0.weight"), "lack 'layer2.0.conv1.0.weight'"),
        (
            lambda s: s.update({"layer1.0.conv1.0.weight": torch.zeros(3)}),
            r"'layer1.0.conv1.0.weight' has shape \(3,\), not \(64, 64, 3, 3, 3\)",
        ),
        (lambda s: s.update({"layer1.9.weight": torch.zeros(3)}), "'layer1.9.weight' is no weight"),
        (lambda s: s.update({"blocks.0.x": torch.zeros(3)}), "'blocks.0.x' is no weight of torch"),
        (lambda s: s.update({"layer1.0.conv1.0.weight": 3}), "'layer1.0.conv1.0.weight' is no"),
    ],
)
def test_a_mismatch_names_its_first_key(change, says):
    state = torchvision_video.r3d_18(weights=None).state_dict()
    change(state)
    with pytest.raises(UserError, match=says):
        import_weights("r3d_18", state)


def test_what_no_library_has_fails():
    with pytest.raises(
        UserError, match="'tiny' is no model of another library; those are slow_r50"
    ):
        export_weights(Encoder(EncoderSpec("tiny")))
    with pytest.raises(UserError, match="normalization 'none' is no model of torchvision: export"):
        export_weights(Encoder(EncoderSpec("r3d_18", "res2", normalization="none")))
    with pytest.raises(UserError, match="no stage is among them"):
        import_weights("r3d_18", {})


@pytest.fixture(scope="module")
def first_layers():
    """The beginning of r3d_18: weights that end early are an encoder that does."""
    state = torchvision_video.r3d_18(weights=None).state_dict()
    return {key: value for key, value in state.items() if key.startswith(("stem.", "layer1."))}


@pytest.mark.parametrize("wrapper", ["model_state", "state_dict", "model"])
def test_wrapped_and_distributed_states_are_read(first_layers, tmp_path, wrapper):
    state = first_layers
    wrapped = {wrapper: {f"module.{k}": v for k, v in state.items()}, "epoch": 3}
    torch.save(wrapped, tmp_path / "w.pth")
    loaded = load_weights(tmp_path / "w.pth", "r3d_18")
    assert torch.equal(loaded.encoder.encoder.stem[0].weight, state["stem.0.weight"])


def test_networks_held_as_model_are_read_and_written(tmp_path):
    """As PySlowFast holds pytorchvideo's networks: `self.model = create_resnet(...)`."""

    class Holder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = pytorchvideo_model("slow_r50")

    holder = Holder()
    state = {f"module.{key}": value for key, value in holder.state_dict().items()}
    encoder, dropped = import_weights("slow_r50", state)
    assert torch.equal(encoder.stem.conv.weight, holder.model.blocks[0].conv.weight)
    assert all(key.startswith("blocks.5.") for key in dropped)
    write_encoder_file(tmp_path / "e.safetensors", VideoEncoder(encoder, ClipForm()))
    given = ["--checkpoint", str(tmp_path / "e.safetensors"), "--format", "pytorchvideo"]
    out = tmp_path / "e.pth"
    assert main(["export", *given, "-o", str(out), "--prefix", "model."]) == 0
    fresh = Holder()
    missing, unexpected = fresh.load_state_dict(torch.load(out, weights_only=True), strict=False)
    assert unexpected == []
    assert missing
    assert all(key.startswith("model.blocks.5.") for key in missing)
    for key, value in fresh.model.blocks[:5].state_dict().items():
        assert torch.equal(value, holder.model.blocks[:5].state_dict()[key])


def test_the_name_of_a_weights_url_is_published_without_its_token(
    first_layers, tmp_path, monkeypatch
):
    monkeypatch.setenv("VIDEOSSL_CACHE", str(tmp_path / "cache"))
    with fsspec.open("memory://weights/r.pth?token=abc", "wb") as file:
        torch.save(first_layers, file)
    loaded = load_weights("memory://weights/r.pth?token=abc", "r3d_18")
    assert loaded.contents["facts"]["file"] == "r.pth"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nothing", b"\x80\x04N."], ids=str)
def test_damaged_weights_fail_in_one_line(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"w\.pth (cannot be read|hold no state dict)") as caught:
        load_weights(tmp_path / "w.pth", "r3d_18")
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_fails_and_files_of_old_torch_are_read(first_layers, tmp_path):
    state = first_layers
    path = tmp_path / "w.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert torch.equal(
        load_weights(path, "r3d_18").encoder.encoder.stem[0].weight, state["stem.0.weight"]
    )
    torch.save(state, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="checksum of"):
        load_weights(path, "r3d_18")


def test_hostile_weights_are_not_executed(tmp_path):
    class Hostile:
        def __reduce__(self):
            return open, (str(tmp_path / "executed"), "w")

    torch.save({"stem.0.weight": Hostile()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="cannot be read without executing"):
        load_weights(tmp_path / "w.pth", "r3d_18")
    assert not (tmp_path / "executed").exists()


@pytest.fixture(scope="module")
def kinetics(tmp_path_factory):
    """(file of a torchvision model's weights, the model)."""
    model, stages = theirs("r3d_18")
    path = tmp_path_factory.mktemp("weights") / "kinetics.pth"
    torch.save(model.state_dict(), path)
    return path, model, stages


@pytest.fixture(scope="module")
def exported(kinetics):
    file = kinetics[0].with_name("kinetics.safetensors")
    arguments = ["--weights", str(kinetics[0]), "--encoder", "r3d_18"]
    assert main(["export", *arguments, "-o", str(file)]) == 0
    return file


def test_rgb_weights_see_rgb_as_their_library_normalises_it(kinetics, exported):
    """From decoded frames to features, with torchvision's own preset; what Lab and back loses is far below a grey level."""
    _, model, stages = kinetics
    encoder = videossl.load_encoder(exported)
    assert (encoder.clip.num_frames, encoder.clip.crop_size) == (16, 112)
    video = torch.randint(0, 256, (2, 4, 3, 128, 172), dtype=torch.uint8)
    # An even width: in the middle of an odd one, torchvision cuts a pixel further to the right.
    preset = torchvision_video.R3D_18_Weights.KINETICS400_V1.transforms(resize_size=(128, 172))
    expected = stage_outputs(model, stages, preset(video))["res5"].mean((2, 3, 4))
    with torch.no_grad():
        found = encoder(video)
    scale = float(expected.square().mean().sqrt())
    assert float((found - expected).abs().max()) < 1e-4 * scale


@pytest.mark.parametrize("name", [name for name in COLOURS if name != "lab"])
def test_lab_is_turned_back_into_rgb(name):
    rgb = torch.randint(0, 256, (2, 3, 4, 16, 16), dtype=torch.uint8)
    rgb[0] = 0
    rgb[1, :, 0] = 255
    torch.manual_seed(0)
    spec = EncoderSpec("tiny", "res2", colours=name)
    encoder = Encoder(spec).eval()
    mean, std = (torch.tensor(v)[:, None, None, None] for v in COLOURS[name])
    own = (rgb / 255 - mean) / std
    torch.testing.assert_close(normalized_rgb(rgb / 255, name), own)
    with torch.no_grad():
        found = encoder(encoder_input(rgb, dim=1))["res2"].data
        expected = encoder.blocks["res2"](encoder.stem(own))
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)


def test_colours_that_are_unknown_fail():
    with pytest.raises(
        UserError, match="colours 'bgr' are unknown; allowed: lab, rgb_pytorchvideo"
    ):
        Encoder(EncoderSpec("tiny", colours="bgr"))


def test_the_head_is_left_out_and_said_so(first_layers, tmp_path, caplog):
    file, head = tmp_path / "k.safetensors", dict.fromkeys(("fc.weight", "fc.bias"), torch.ones(3))
    torch.save({**first_layers, **head}, tmp_path / "kinetics.pth")
    with caplog.at_level(logging.INFO, "videossl"):
        arguments = ["--weights", str(tmp_path / "kinetics.pth"), "--encoder", "r3d_18"]
        assert main(["export", *arguments, "-o", str(file)]) == 0
    assert "the head of the model: 2 tensors (fc.weight, fc.bias)" in caplog.text
    card = file.with_name("k.safetensors.md").read_text()
    assert "the weights come from the file kinetics.pth" in card
    assert "normalised as by torchvision" in card


def test_export_writes_their_naming(exported, kinetics, tmp_path):
    file = tmp_path / "again.pth"
    arguments = ["--checkpoint", str(exported), "--format", "torchvision"]
    assert main(["export", *arguments, "-o", str(file)]) == 0
    state = torch.load(file, weights_only=True)
    original = kinetics[1].state_dict()
    assert original.keys() - state.keys() == {"fc.weight", "fc.bias"}
    assert all(torch.equal(state[key], original[key]) for key in state)
    assert "load_state_dict(weights, strict=False)" in file.with_name("again.pth.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--checkpoint", "{file}", "--format", "pytorchvideo"], "a model of torchvision, not of"),
        (["--checkpoint", "{file}"], "end it in .safetensors"),
        (["--weights", "{weights}", "--format", "torchvision"], "go together"),
        (["--weights", "{weights}", "--checkpoint", "{file}"], "give either"),
        (["--weights", "{weights}", "--encoder", "s3d", "--format", "torchvision"], "is no weight"),
        (["--format", "torchvision"], "give either"),
    ],
)
def test_what_does_not_fit_fails_in_one_line(exported, kinetics, tmp_path, capsys, arguments, says):
    given = [a.format(file=exported, weights=kinetics[0]) for a in arguments]
    assert main(["export", *given, "-o", str(tmp_path / "e.pth")]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


CONFIG = """
tasks: {arrow_of_time: {stage: res3, num_frames: 4, crop_size: 32}}
data: {short_side: 48, videos_per_step: 2, num_workers: 0, val_fraction: 0}
train: {steps: 1, log_every: 1}
monitor: {pictures: false, gradients_every: 0}
device: cpu
"""


@pytest.fixture
def train(tmp_path, video_folder):
    (tmp_path / "c.yaml").write_text(CONFIG)

    def run(*overrides) -> int:
        arguments = [f"data.manifest={video_folder}", f"out={tmp_path / 'run'}", *overrides]
        return main(["train", "--config", str(tmp_path / "c.yaml"), *arguments])

    return run


@pytest.mark.slow
def test_a_run_begins_with_given_weights(train, exported, tmp_path, caplog):
    given = ["encoder.name=r3d_18", f"encoder.init={exported}"]
    settings = [*given, "encoder.colours=rgb_torchvision", "optim.lr=1e-12", "optim.weight_decay=0"]
    with caplog.at_level(logging.INFO, "videossl"):
        assert train(*settings) == 0
    assert caplog.text.count("these weights read rgb_torchvision") == 1
    source, trained = restore_encoder(exported), restore_encoder(tmp_path / "run")
    assert trained.spec == EncoderSpec("r3d_18", "res3", True, None, "rgb_torchvision")
    for name, value in trained.named_parameters():
        torch.testing.assert_close(value, source.state_dict()[name], atol=1e-9, rtol=0)


def test_a_slow_copy_begins_with_the_same_weights(checkpoint):
    from videossl.config import Config
    from videossl.engine.build import begin_with, build_model

    task = {"mode": "moco", "queue_size": 8, "momentum": 0.99, "stage": "res3"}
    config = Config(out="x", tasks={"contrastive": task})
    model = build_model(config)
    assert model.slow_encoder is not None
    begin_with(model, str(checkpoint))
    expected = restore_encoder(checkpoint).state_dict()
    for encoder in (model.encoder, model.slow_encoder):
        assert all(torch.equal(v, expected[k]) for k, v in encoder.state_dict().items())


def test_resuming_reads_the_checkpoint_and_not_init(train, checkpoint, tmp_path):
    init = tmp_path / "init.pt"
    init.write_bytes(checkpoint.read_bytes())
    settings = [f"encoder.init={init}", "optim.lr=0.1"]
    assert train(*settings) == 0
    before = load_newest(tmp_path / "run/checkpoints")[1]["model"]
    init.unlink()
    assert train(*settings) == 0
    after = load_newest(tmp_path / "run/checkpoints")[1]["model"]
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["encoder.init={file}"], "is of 'r3d_18', the run's encoder is 'tiny': set encoder.name"),
        (["encoder.init={file}", "encoder.name=r3d_18"], "set encoder.colours=rgb_torchvision"),
        (
            ["encoder.init={tiny}", "tasks.arrow_of_time.stage=res5"],
            "ends after res3, but tasks read res5",
        ),
        (["encoder.init={tiny}", "encoder.colours=rgb_torchvision"], "set encoder.colours=null"),
        (["encoder.init={tiny}", "encoder.normalization=none"], "set encoder.normalization=batch"),
        (["encoder.init={tiny}", "encoder.frame_wise=true"], "set encoder.frame_wise=false"),
        (["encoder.init=/none.pt"], "/none.pt does not exist"),
    ],
)
def test_weights_that_do_not_fit_a_run_fail_in_one_line(
    train, exported, checkpoint, capsys, settings, says
):
    assert train(*(s.format(file=exported, tiny=checkpoint) for s in settings)) == 2
    error = capsys.readouterr().err
    assert says in error.splitlines()[-1]
