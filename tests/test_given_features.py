"""Features of other people: a torchvision ResNet by name, folders of arrays, and what is refused of both."""

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

from videossl.errors import UserError
from videossl.tracking.features import input_size, sequence_features
from videossl.tracking.given_features import load_features
from videossl.tracking.propagation import propagate
from videossl.tracking.protocol import PRESETS
from videossl.tracking.sequence import Footage
from videossl.tracking.tracking import Row, measure_pace, track_row

RESNET = """
    import torch, torchvision
    from torchvision.models.feature_extraction import create_feature_extractor

    class Layer3:
        is_per_frame = True

        def __init__(self):
            torch.manual_seed(0)
            net = torchvision.models.resnet18(weights=None).eval()
            self.net = create_feature_extractor(net, {"layer3": "out"})

        def __call__(self, frames):
            return self.net(frames.float() / 255)["out"]

    def one_row(frames):
        return frames[:1].float()

    def odd_grid(frames):
        return frames[:, :, :100, :100].float()

    def holes(frames):
        features = frames[:, :, ::4, ::4].float()
        features[frames[:, 0, 0, 0] == 7] = float("nan")
        return features

    def broken(frames):
        raise LookupError("no such layer\\nand more")

    class NeedsArguments:
        def __init__(self, depth):
            pass

    class NotCallable:
        pass

    NUMBER = 3
"""
FRAMES = torch.randint(
    0, 256, (5, 3, 96, 128), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
)


class ArrayFrames:
    """Frames in memory."""

    num_frames = len(FRAMES)
    native_size = (96, 128)

    def read(self, indices: Sequence[int], size: tuple[int, int]) -> Tensor:
        assert size == self.native_size
        return FRAMES[list(indices)]


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_nets.py").write_text(textwrap.dedent(RESNET))
    (tmp_path / "no_python.py").write_text("def (:")
    (tmp_path / "raising_module.py").write_text("raise RuntimeError('no weights')")
    (tmp_path / "ending_module.py").write_text("import sys; sys.exit(3)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


PROTOCOL = replace(PRESETS["dino"], short_side=None, long_side_multiple=None)


def footage() -> Footage:
    mask = np.zeros((96, 128), np.uint8)
    mask[16:64, 32:96] = 1
    return Footage("them", ArrayFrames(), tuple("01234"), mask, (1,), 25.0)


def test_a_torchvision_resnet_is_tracked_by_the_same_protocol(modules: None) -> None:
    extractor = load_features("their_nets:Layer3")()
    assert extractor.stride == 16
    assert extractor.describe()["channels"] == 256
    torch.manual_seed(0)
    net = torchvision.models.resnet18(weights=None).eval()
    with torch.no_grad():
        x = net.maxpool(net.relu(net.bn1(net.conv1(FRAMES.float() / 255))))
        expected = torch.nn.functional.normalize(net.layer3(net.layer2(net.layer1(x))), dim=1)
    found = torch.stack(list(sequence_features(ArrayFrames(), extractor, PROTOCOL)))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("one_file", [True, False])
def test_stored_features_track_as_those_of_the_function(
    modules: None, tmp_path: Path, one_file: bool
) -> None:
    make = load_features("their_nets:Layer3")
    features = torch.stack(list(sequence_features(ArrayFrames(), make(), PROTOCOL)))
    folder = tmp_path / "stored"
    (folder / "them").mkdir(parents=True)
    if one_file:
        np.save(folder / "them.npy", features.numpy())
    else:
        for index, frame in enumerate(features.numpy()):
            np.save(folder / "them" / f"{index:03d}.npy", frame.astype(np.float64))
    row = Row("stored", replace(PROTOCOL, decision_at="frame"), load_features(str(folder)))
    record = track_row(row, [footage()], tmp_path / "out")
    assert record["features"] == {"stored": str(folder)}
    function_row = Row("function", row.protocol, make)
    track_row(function_row, [footage()], tmp_path / "function")
    for name in footage().frame_names:
        first, second = (tmp_path / f"{f}/them/{name}.png" for f in ("out", "function"))
        assert first.read_bytes() == second.read_bytes()
    size = input_size((96, 128), row.protocol, 16)
    masks = propagate(features, footage().first_mask, row.protocol, object_ids=[1], input_size=size)
    assert (list(masks)[-1] == 1).any()


def test_files_that_are_numbers_are_read_in_the_order_of_the_numbers(tmp_path: Path) -> None:
    (tmp_path / "them").mkdir()
    for index in range(12):
        np.save(tmp_path / f"them/{index}.npy", np.full((1, 1, 1), index, np.float32))
    frames = load_features(str(tmp_path))().of("them", 12)
    assert [int(frame) for frame in frames] == list(range(12))


@pytest.mark.parametrize("spec", ["their_nets:Layer3", "folder"])
def test_the_pace_of_a_row_is_measured_beforehand(modules: None, tmp_path: Path, spec: str) -> None:
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "folder/them.npy", np.random.default_rng(0).random((5, 8, 6, 8)))
    pace = measure_pace(Row("row", PROTOCOL, load_features(spec)), footage(), num_threads=1)
    assert pace.encode_seconds > 0
    assert pace.propagate_seconds > 0
    assert pace.seconds(100, 2) == pytest.approx(
        50 * (pace.encode_seconds + pace.propagate_seconds)
    )


def test_sequences_that_are_done_are_not_tracked_again(modules: None, tmp_path: Path) -> None:
    (tmp_path / "out" / "them").mkdir(parents=True)
    record = track_row(Row("row", PROTOCOL, None), [footage()], tmp_path / "out")
    assert list((tmp_path / "out" / "them").iterdir()) == []
    assert "seconds_per_frame" not in record


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere", "no such folder, and not module:function"),
        ("no_such_module:net", "no_such_module cannot be imported"),
        ("their_nets:Layer9", "has no function 'Layer9'; it has Layer3"),
        ("their_nets:NUMBER", "has no function 'NUMBER'"),
        ("their_nets:one_row", r"2 frames must give features \(2, D, h, w\), got \(1, 3"),
        ("their_nets:odd_grid", "224x224 pixels give 100x100 cells"),
        (".", "holds no features"),
        (":f", "'' is no name of a module"),
        (".enc:f", r"'\.enc' is no name of a module"),
        ("no_python:f", r"no_python cannot be imported \(SyntaxError: .*line 1\)"),
        ("raising_module:f", r"cannot be imported \(RuntimeError: no weights\)"),
        ("ending_module:f", r"cannot be imported \(SystemExit: 3\)"),
        ("their_nets:broken", r"failed on 2 frames \(LookupError: no such layer\)"),
        ("their_nets:NeedsArguments", r"cannot be made without arguments \(TypeError"),
        ("their_nets:NotCallable", r"what NotCallable\(\) makes cannot be called"),
    ],
)
def test_what_is_no_encoder_fails(modules: None, spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_features(spec)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 2, 3, 3)), "has features of 4 frames of them, which has 5"),
        (np.zeros((5, 2, 3)), r"\(T, D, h, w\) floats are needed, got \(5, 2, 3\)"),
        (np.zeros((5, 2, 3, 3), np.int64), "floats are needed"),
        (np.array([{"a": 1}], dtype=object), "no array of numbers can be read"),
    ],
)
def test_arrays_that_do_not_fit_fail(tmp_path: Path, array: "np.ndarray", message: str) -> None:
    np.save(tmp_path / "them.npy", array, allow_pickle=True)
    extractor = load_features(str(tmp_path))()
    with pytest.raises(UserError, match=message):
        list(sequence_features(ArrayFrames(), extractor, PROTOCOL, name="them"))


def test_features_of_a_function_that_are_no_numbers_fail(
    modules: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = FRAMES.clone()
    frames[:, 0, 0, 0] = 1
    frames[3, 0, 0, 0] = 7
    monkeypatch.setitem(globals(), "FRAMES", frames)
    extractor = load_features("their_nets:holes")()
    with pytest.raises(UserError, match="them: the features of frame 3 are not all finite"):
        list(sequence_features(ArrayFrames(), extractor, PROTOCOL, name="them"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_stored_features_that_are_no_numbers_fail(tmp_path: Path, value: float) -> None:
    array = np.ones((5, 2, 3, 3))
    array[4, 1, 2, 0] = value
    np.save(tmp_path / "them.npy", array)
    extractor = load_features(str(tmp_path))()
    with pytest.raises(UserError, match="them: the features of frame 4 are not all finite"):
        list(sequence_features(ArrayFrames(), extractor, PROTOCOL, name="them"))
