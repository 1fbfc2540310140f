"""The transfer to detection: folders in the layout of VOC, frames as a still video, boxes found."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from videossl.__main__ import main
from videossl.errors import UserError
from videossl.models.encoder import ENCODERS, Encoder, EncoderSpec, cut_frame_encoder
from videossl.probe.detection import (
    DetectionRecipe,
    FrameBackbone,
    VocImages,
    average_precision,
    build_detector,
    read_annotation,
)

OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{0}</xmin><ymin>{1}</ymin>
<xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"""
ENTITY = '<!DOCTYPE x [<!ENTITY a "aa">]><annotation>&a;</annotation>'
COLOURS = {"blue": (30, 40, 220), "red": (220, 40, 30)}


def write_voc(folder: Path, counts: dict[str, int], *, seed: int = 0) -> Path:
    """Squares of two colours on grey noise; VOC's boxes count from 1 and take both ends in."""
    random = np.random.default_rng(seed)
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    for split, count in counts.items():
        names = [f"{split}{number:03d}" for number in range(count)]
        (folder / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            image = random.integers(90, 140, (64, 80, 1)).repeat(3, 2).astype(np.uint8)
            objects = ""
            for left, (label, colour) in zip((4, 42), COLOURS.items(), strict=True):
                x, y = left + random.integers(0, 8), random.integers(4, 34)
                image[y : y + 24, x : x + 24] = colour
                objects += OBJECT.format(x + 1, y + 1, x + 24, y + 24, name=label, difficult=0)
            Image.fromarray(image).save(folder / "JPEGImages" / f"{name}.jpg", quality=95)
            (folder / "Annotations" / f"{name}.xml").write_text(
                f"<annotation>{objects}</annotation>"
            )
    return folder


@pytest.fixture(scope="module")
def voc(tmp_path_factory) -> Path:
    return write_voc(tmp_path_factory.mktemp("voc") / "VOC2007", {"trainval": 12, "test": 6})


def test_boxes_cover_the_pixels_that_were_painted(voc):
    images = VocImages(voc.parent, "trainval")  # found one folder down
    assert images.classes == ("blue", "red")
    for index in range(len(images)):
        image, target = images[index]
        for (x0, y0, x1, y1), label in zip(
            target["boxes"].int().tolist(), target["labels"].tolist(), strict=True
        ):
            assert (x1 - x0, y1 - y0) == (24, 24)
            colour = torch.tensor(COLOURS[images.classes[label - 1]]) / 255
            inside = image[:, y0 + 2 : y1 - 2, x0 + 2 : x1 - 2].mean((1, 2))
            torch.testing.assert_close(inside, colour, atol=0.05, rtol=0)
            assert float((image[:, y0 + 1, x1 + 3] - colour).abs().max()) > 0.2


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_a_cut_encoder_sees_a_frame_as_the_network_sees_a_still_video(name):
    torch.manual_seed(0)
    encoder = Encoder(EncoderSpec(name, "res4")).eval()
    frames = cut_frame_encoder(encoder)
    image = torch.randn(1, 3, 1, 32, 32)
    still = image.expand(-1, -1, 41, -1, -1)  # long: the middle is clear of both ends
    with torch.no_grad():
        for stage, maps in encoder(still).items():
            alone = frames(image)[stage].data
            assert alone.shape[2] == 1
            middle = maps.data[:, :, 20:21]
            scale = float(middle.abs().max())
            torch.testing.assert_close(alone, middle, atol=2e-3 * scale, rtol=0)


def test_cutting_leaves_the_encoder_as_it_was():
    encoder = Encoder(EncoderSpec("tiny"))
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    cut_frame_encoder(encoder)
    assert all(torch.equal(value, encoder.state_dict()[key]) for key, value in before.items())


def test_calibration_takes_the_statistics_of_the_images():
    torch.manual_seed(0)
    backbone = FrameBackbone(Encoder(EncoderSpec("tiny"))).train()
    images = [torch.rand(2, 3, 32, 32) for _ in range(3)]
    seen = []
    norm = next(m for m in backbone.encoder.modules() if isinstance(m, torch.nn.BatchNorm3d))
    hook = norm.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    backbone.calibrate(images)
    hook.remove()
    means = torch.stack([x.mean((0, 2, 3, 4)) for x in seen]).mean(0)
    variances = torch.stack([x.var((0, 2, 3, 4)) for x in seen]).mean(0)  # over images and pixels
    torch.testing.assert_close(norm.running_mean, means, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(norm.running_var, variances, atol=1e-5, rtol=1e-3)
    after = norm.running_mean.clone()
    backbone.train()(images[0])
    assert torch.equal(norm.running_mean, after)  # training leaves them


def test_the_pyramid_has_a_level_for_each_stride_and_a_coarser_one():
    backbone = FrameBackbone(Encoder(EncoderSpec("tiny")))  # strides 4, 4, 8, 16
    maps = backbone(torch.rand(1, 3, 64, 96))
    assert backbone.levels == {4: "res3", 8: "res4", 16: "res5"}
    assert [tuple(m.shape[2:]) for m in maps.values()] == [(16, 24), (8, 12), (4, 6), (2, 3)]


def test_average_precision_of_perfect_false_and_difficult_boxes():
    pytest.importorskip("pycocotools")
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40]])
    target = {
        "boxes": boxes,
        "labels": torch.tensor([1, 2]),
        "iscrowd": torch.tensor([0, 0]),
    }
    right = {"boxes": boxes, "labels": torch.tensor([1, 2]), "scores": torch.tensor([0.9, 0.8])}
    swapped = {**right, "labels": torch.tensor([2, 1])}
    classes = ("a", "b")
    assert average_precision([(right, target)], classes)["AP50"] == pytest.approx(1.0)
    assert average_precision([(swapped, target)], classes)["AP50"] == 0.0
    # A difficult object that nobody finds costs nothing.
    hard = {**target, "iscrowd": torch.tensor([0, 1])}
    only = {key: value[:1] for key, value in right.items()}
    assert average_precision([(only, hard)], classes)["AP_of_class"]["a"] == pytest.approx(1.0)


def test_pretrained_stands_beside_random_and_a_stopped_command_goes_on(
    voc, checkpoint, tmp_path, monkeypatch
):
    pytest.importorskip("pycocotools")
    from videossl.probe import detection

    monkeypatch.setattr(detection, "SAVE_EVERY", 2)
    given = ["detect", "--checkpoint", checkpoint, "--voc", voc, "--steps", 4, "--min-size", 48]
    arguments = list(map(str, [*given, "--batch-size", 2]))
    assert main([*arguments, "-o", str(tmp_path / "whole")]) == 0
    whole = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert list(whole["rows"]) == ["mine_step1", "random"]
    assert whole["rows"]["mine_step1"]["num_images"] == 6
    with Image.open(tmp_path / "whole" / "boxes.png") as picture:
        assert picture.height > 4 * 240

    step, steps = detection._step, []

    def stopping(*args, **options):
        steps.append(options["step"])
        if len(steps) == 4:
            raise KeyboardInterrupt
        step(*args, **options)

    monkeypatch.setattr(detection, "_step", stopping)
    assert main([*arguments, "-o", str(tmp_path / "cut")]) == 130
    monkeypatch.setattr(detection, "_step", step)
    assert main([*arguments, "-o", str(tmp_path / "cut")]) == 0
    assert json.loads((tmp_path / "cut" / "result.json").read_text())["rows"] == whole["rows"]
    assert main([*arguments, "--lr", "0.5", "-o", str(tmp_path / "cut")]) == 2


@pytest.mark.slow
def test_real_frames_with_the_boxes_of_their_masks_are_learned_from(
    shared_data, checkpoint, tmp_path
):
    """Two sequences of DAVIS as two classes: even frames to train on, odd ones to judge."""
    davis, voc = shared_data / "davis", tmp_path / "voc"
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (voc / part).mkdir(parents=True)
    names: dict[str, list[str]] = {"trainval": [], "test": []}
    for label in ("blackswan", "dog"):
        for number in range(6):
            name = f"{label}{number}"
            shutil.copy(
                davis / f"JPEGImages/480p/{label}/{number:05d}.jpg", voc / f"JPEGImages/{name}.jpg"
            )
            mask = np.asarray(Image.open(davis / f"Annotations/480p/{label}/{number:05d}.png")) > 0
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = (columns[0] + 1, rows[0] + 1, columns[-1] + 1, rows[-1] + 1)
            text = OBJECT.format(*box, name=label, difficult=0)
            (voc / f"Annotations/{name}.xml").write_text(f"<annotation>{text}</annotation>")
            names["test" if number % 2 else "trainval"].append(name)
    for split, chosen in names.items():
        (voc / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(chosen) + "\n")
    given = ["detect", "--checkpoint", checkpoint, "--voc", voc, "--min-size", 96, "--steps", 2]
    assert main(list(map(str, [*given, "--batch-size", 2, "-o", tmp_path / "out"]))) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["classes"] == ["blackswan", "dog"]
    assert all(0 <= row["AP50"] <= 1 and row["num_images"] == 6 for row in result["rows"].values())


@pytest.mark.slow
def test_a_detector_finds_squares_it_has_not_seen(voc, tmp_path):
    from videossl.probe.detection import detections, train_detector

    torch.manual_seed(0)
    recipe = DetectionRecipe(steps=100, batch_size=4, lr=0.02, min_size=64)
    train, test = VocImages(voc, "trainval"), VocImages(voc, "test")
    cpu = torch.device("cpu")
    found = train_detector(
        Encoder(EncoderSpec("tiny")), train, recipe, device=cpu, folder=tmp_path, why="t"
    )
    pairs = list(detections(found, test, device=cpu, why="t"))
    assert average_precision(pairs, train.classes)["AP50"] > 0.8


def test_fresh_layers_are_those_of_the_seed():
    recipe = DetectionRecipe(min_size=64)
    first, again = (build_detector(Encoder(EncoderSpec("tiny")), 2, recipe) for _ in range(2))
    ours, theirs = first.roi_heads.state_dict(), again.roi_heads.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<annotation><object>", "is no annotation.*no element found"),
        ("<annotation><object><name>a</name></object></annotation>", "has no bndbox"),
        (f"<annotation>{OBJECT.format(9, 1, 2, 5, name='a', difficult=0)}</annotation>", "empty"),
        (f"<annotation>{OBJECT.format(1, 1, 2, 5, name=' ', difficult=0)}</annotation>", "no name"),
        (
            f"<annotation>{OBJECT.format(1, 1, 'inf', 5, name='a', difficult=0)}</annotation>",
            "endless",
        ),
        (ENTITY, "declares a document type or entities"),
        (ENTITY.encode("utf-16"), "codec can't decode"),
    ],
)
def test_a_broken_annotation_fails(tmp_path, text, says):
    path = tmp_path / "x.xml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=says):
        read_annotation(path)


def test_an_image_is_a_jpeg_whatever_its_name_says(tmp_path):
    """Pillow would hand PostScript to an interpreter."""
    voc = write_voc(tmp_path / "voc", {"train": 1})
    (voc / "JPEGImages" / "train000.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    )
    with pytest.raises(UserError, match=r"train000\.jpg cannot be read"):
        VocImages(voc, "train")[0]


def test_judging_on_the_images_of_training_is_refused(voc, checkpoint, tmp_path, capsys):
    given = ["detect", "--checkpoint", str(checkpoint), "--voc", str(voc), "-o", str(tmp_path)]
    assert main([*given, "--test-split", "trainval"]) == 2
    assert "judge on images that were not trained on" in capsys.readouterr().err


def test_a_folder_of_another_layout_fails(tmp_path):
    with pytest.raises(UserError, match="needs JPEGImages, Annotations, ImageSets/Main"):
        VocImages(tmp_path, "test")


def test_lists_that_cannot_be_used_fail(tmp_path):
    voc = write_voc(tmp_path / "voc", {"train": 2})
    with pytest.raises(UserError, match=r"no split 'test'.*there are train"):
        VocImages(voc, "test")
    lists = voc / "ImageSets" / "Main"
    (lists / "out.txt").write_text("../../secret\n")
    with pytest.raises(UserError, match="which is no image name"):
        VocImages(voc, "out")
    (voc / "JPEGImages" / "train001.jpg").unlink()
    with pytest.raises(UserError, match=r"train001\.jpg is not there, with 1 of 2"):
        VocImages(voc, "train")
