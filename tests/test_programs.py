"""torch.export and ONNX files of every encoder, against the module that they were made of."""

import json

import numpy as np
import pytest
import torch

import videossl
from videossl.errors import UserError
from videossl.export import programs
from videossl.export.loading import load
from videossl.export.programs import Program, Unequal, check, write_onnx, write_torch_program
from videossl.export.video_encoder import ClipForm, VideoEncoder
from videossl.models.encoder import ENCODERS, Encoder, EncoderSpec


def make(name="tiny", *, stage=None, keep_time=True, frames=4) -> VideoEncoder:
    torch.manual_seed(0)
    bare = Encoder(EncoderSpec(name, keep_time=keep_time))
    for buffer_name, buffer in bare.named_buffers():  # statistics that are not the fresh ones
        if buffer_name.endswith("running_mean"):
            torch.nn.init.normal_(buffer, std=0.1)
    return VideoEncoder(bare, ClipForm(frames, resize=36, crop_size=32), stage=stage).eval()


def run_torch(path, video):
    return torch.export.load(path).module()(video)


def run_onnx(path, video):
    session = pytest.importorskip("onnxruntime").InferenceSession(
        path, providers=["CPUExecutionProvider"]
    )
    return torch.from_numpy(session.run(None, {"video": video.numpy()})[0])


KINDS = {
    "torch": (write_torch_program, run_torch, "e.pt2"),
    "onnx": (write_onnx, run_onnx, "e.onnx"),
}


def assert_same(encoder, path, run, video):
    """Compared by the test itself, not by the check that is part of writing."""
    with torch.no_grad():
        expected = encoder(video)
    scale = float(expected.square().mean().sqrt())
    assert scale > 1e-3
    torch.testing.assert_close(run(path, video), expected, atol=1e-4 * scale, rtol=0)


def video(*shape: int) -> torch.Tensor:
    numbers = np.random.default_rng(5).integers(0, 256, shape, dtype=np.uint8)
    return torch.from_numpy(numbers)


RECORD = {"version": "1", "facts": {"name": 'a "quoted" <name>'}}


@pytest.fixture(scope="session")
def traced():
    """{kind: graph} of a small encoder's program, made once: tracing is what takes time."""
    return {
        kind: programs._trace(Program(make(stage="res2"), size=size), kind)
        for kind, size in (("torch", None), ("onnx", (36, 36)))
    }


@pytest.fixture(scope="session")
def written(traced, tmp_path_factory):
    """{kind: file} of the small encoder."""
    folder, files = tmp_path_factory.mktemp("programs"), {}
    with pytest.MonkeyPatch.context() as patch:
        for kind, (write, _, file) in KINDS.items():
            patch.setattr(programs, "_trace", lambda *_, kind=kind: traced[kind])
            files[kind] = folder / file
            record = RECORD | {"encoder": make(stage="res2").describe()}
            assert write(files[kind], Program(make(stage="res2")), record).relative <= 1e-4
    return files


def assert_same_for_any_batch(encoder, path, run):
    for batch, frames in ((1, 4), (2, 4), (3, 4), (5, 6), (1, 1)):
        assert_same(encoder, path, run, video(batch, frames, 3, 36, 36))


@pytest.mark.parametrize("kind", KINDS)
def test_a_program_computes_what_the_encoder_does_for_any_batch(kind, written):
    assert_same_for_any_batch(make(stage="res2"), written[kind], KINDS[kind][1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(ENCODERS))
@pytest.mark.parametrize("stage", ["res2", "res5"])
def test_programs_of_every_encoder_compute_what_it_does(name, stage, kind, tmp_path):
    encoder, (write, run, file) = make(name, stage=stage), KINDS[kind]
    assert write(tmp_path / file, Program(encoder), {"a": 1}).relative <= 1e-4
    assert_same_for_any_batch(encoder, tmp_path / file, run)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_published_strides_over_time_are_exported_too(name, kind, tmp_path):
    encoder, (write, run, file) = make(name, keep_time=False, frames=8), KINDS[kind]
    write(tmp_path / file, Program(encoder), {})
    for batch in (1, 2, 3):
        assert_same(encoder, tmp_path / file, run, video(batch, 8, 3, 36, 36))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_fixed_behind_a_stride_over_time(kind, tmp_path):
    encoder, (write, run, file) = make("r3d_18", keep_time=False, stage="res3"), KINDS[kind]
    assert write(tmp_path / file, Program(encoder), {}).relative <= 1e-4
    with pytest.raises(Exception, match=r"size\(\)\[1\] == 4|Got: 6 Expected: 4"):
        run(tmp_path / file, video(2, 6, 3, 36, 36))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(60, 90), (20, 31)], ids=["shrinks", "grows"])
def test_scaling_and_cropping_are_inside(kind, size, tmp_path):
    encoder, (write, run, file) = make(stage="res2"), KINDS[kind]
    write(tmp_path / file, Program(encoder, size=size), {})
    assert_same(encoder, tmp_path / file, run, video(2, 4, 3, *size))


def test_maps_of_frames_scaled_and_cropped_inside(tmp_path):
    encoder, path = make(stage="res2"), tmp_path / "e.pt2"
    write_torch_program(path, Program(encoder, size=(20, 31), maps=True), {})
    clips = video(2, 4, 3, 20, 31)
    with torch.no_grad():
        expected = encoder.feature_maps(clips)["res2"]
    torch.testing.assert_close(run_torch(path, clips), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_maps_in_onnx(tmp_path):
    encoder, path = make(stage="res3"), tmp_path / "e.onnx"
    write_onnx(path, Program(encoder, maps=True), {})
    clips = video(2, 4, 3, 36, 36)
    with torch.no_grad():
        expected = encoder.feature_maps(clips)["res3"]
    torch.testing.assert_close(run_onnx(path, clips), expected, atol=1e-4, rtol=1e-4)


def test_a_file_says_what_it_is(written):
    record = RECORD | {"encoder": make(stage="res2").describe()}
    extra = {"videossl.json": ""}
    torch.export.load(written["torch"], extra_files=extra)
    said = {"frames": None, "size": None, "output": "features"}
    assert json.loads(extra["videossl.json"]) == {**record, "program": said}
    onnx = pytest.importorskip("onnx")
    model = onnx.load(written["onnx"])
    onnx.checker.check_model(model)
    (found,) = (json.loads(p.value) for p in model.metadata_props if p.key == "videossl")
    assert found == {**record, "program": {**said, "size": [36, 36]}}
    assert [i.name for i in model.graph.input] == ["video"]
    assert [d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim][:2] == [
        "batch",
        "frames",
    ]


@pytest.mark.parametrize("size", [(36, 36), (50, 70), (71, 40), (19, 36), (360, 37)])
def test_a_torch_program_takes_frames_of_any_size(size, written):
    encoder = make(stage="res2")
    assert_same(encoder, written["torch"], run_torch, video(1, 2, 3, *size))


@pytest.mark.parametrize("kind", KINDS)
def test_a_program_is_run_behind_the_interface_of_its_encoder(kind, written):
    encoder = make(stage="res2")
    program = videossl.load_encoder(written[kind], is_trusted=True)
    clips = video(2, 4, 3, 36, 36)
    with torch.no_grad():
        expected = encoder(clips)
    torch.testing.assert_close(program(clips), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(program(clips[0]), expected[0], atol=1e-4, rtol=1e-4)
    assert (program.clip, program.stage) == (encoder.clip, "res2")
    for wrong in (clips.float(), clips[:, :, :1], clips.movedim(2, -1)):
        with pytest.raises(UserError, match="a video must be uint8 RGB"):
            program(wrong)
    for wrong, remedy in ((clips.numpy(), "torch.from_numpy"), (None, "got NoneType")):
        with pytest.raises(UserError, match=f"must be a torch tensor.*{remedy}"):
            program(wrong)
    with pytest.raises(UserError, match=r"swap time and channels with video\.transpose"):
        program(clips.transpose(1, 2))
    with pytest.raises(UserError, match="gives features alone"):
        program.feature_maps(clips)


def test_a_program_of_one_size_says_which(written):
    program = videossl.load_encoder(written["onnx"])
    with pytest.raises(UserError, match=r"takes frames of 36 x 36 .* got 36 x 40"):
        program(video(1, 4, 3, 36, 40))


def test_a_torch_program_is_read_only_where_it_is_trusted(written):
    with pytest.raises(UserError, match="is_trusted=True"):
        videossl.load_encoder(written["torch"])


@pytest.mark.parametrize("name", ["e.onnx", "e.pt2"])
def test_a_damaged_program_fails_in_one_line(name, tmp_path):
    (tmp_path / name).write_bytes(b"no program" * 100)
    with pytest.raises(UserError, match="cannot be read") as caught:
        videossl.load_encoder(tmp_path / name, is_trusted=True)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"which `videossl\.load_encoder` runs"):
        load(tmp_path / name)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_behind_the_stage_stay_out(kind, written):
    whole = sum(value.nbytes for value in make().state_dict().values())
    read = sum(value.nbytes for value in make(stage="res2").encoder.stem.state_dict().values())
    assert read < written[kind].stat().st_size < whole / 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_program_that_differs_leaves_no_file(kind, traced, tmp_path, monkeypatch):
    """What is traced is made other than the module: the check must see it, and the old file stay."""
    write, _, file = KINDS[kind]
    (tmp_path / file).write_bytes(b"old")
    program = Program(make(stage="res2"))
    with torch.no_grad():
        next(program.parameters()).mul_(1 + 1e-3)
    monkeypatch.setattr(programs, "_trace", lambda *_: traced[kind])
    with pytest.raises(Unequal, match=r"greatest difference from the module .* \(at most 0.0001\)"):
        write(tmp_path / file, program, {})
    assert (tmp_path / file).read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == [file]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda y: y[:1].expand_as(y), "greatest difference"),  # of one batch element only
        (lambda y: y[:1], r"gives \(1, 48\), not \(2, 48\)"),
        (lambda y: y * float("nan"), "not finite"),
        (lambda y: y + 1e-3 * y.square().mean().sqrt(), "greatest difference"),
    ],
)
def test_the_check_sees_what_is_wrong(wrong, says):
    program = Program(make(stage="res2"))
    assert check(program, program).absolute == 0
    with pytest.raises(Unequal, match=says):
        check(lambda video: wrong(program(video)), program)


def test_what_cannot_be_traced_fails_in_one_line(tmp_path):
    class Branching(Program):
        def forward(self, video):
            return super().forward(video) if video.sum() > 0 else video

    with pytest.raises(UserError, match=r"cannot be exported as torch\.export") as caught:
        write_torch_program(tmp_path / "e.pt2", Branching(make(stage="res2")), {})
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
