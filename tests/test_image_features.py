"""torchvision models as features: against the model itself, and what is refused."""

from pathlib import Path

import pytest
import torch
import torchvision

from videossl.errors import UserError
from videossl.tracking.baselines import (
    ImageFeatures,
    ImageModelSpec,
    find_weights,
    parse_image_model,
)


@pytest.fixture(scope="module")
def resnet() -> torch.nn.Module:
    torch.manual_seed(7)
    model = torchvision.models.resnet18(weights=None)
    with torch.no_grad():  # statistics that are not those of a fresh model
        for layer in model.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.running_mean.uniform_(-0.1, 0.1)
                layer.running_var.uniform_(0.5, 1.5)
    return model.eval()


@pytest.fixture(scope="module")
def weights(resnet: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "mine.pth"
    torch.save(resnet.state_dict(), path)
    return path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def clip(height: int = 64, width: int = 96) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 2, height, width), dtype=torch.uint8, generator=random)


@torch.no_grad()
def test_features_are_those_of_the_model_for_frames_as_imagenet_has_them(
    resnet: torch.nn.Module, weights: Path
) -> None:
    extractor = ImageFeatures(parse_image_model("torchvision:resnet18@layer3"), weights)
    frames = clip().transpose(0, 1).float() / 255
    x = torchvision.transforms.functional.normalize(
        frames, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )
    x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(x))))
    expected = resnet.layer3(resnet.layer2(resnet.layer1(x)))
    torch.testing.assert_close(extractor(clip()), expected)
    assert (extractor.stride, extractor.channels) == (16, 256)
    assert (extractor.input, extractor.is_per_frame) == ("rgb", True)
    assert extractor.describe() == {
        "model": "torchvision:resnet18",
        "layer": "layer3",
        "weights": "mine.pth",
        "channels": 256,
        "cell_pixels": 16,
    }


@pytest.mark.parametrize(
    ("model", "layer", "channels"),
    [
        ("resnet18", "layer2", 128),
        ("mobilenet_v3_small", "features.3", 24),
        ("regnet_y_400mf", "trunk_output.block2", 104),
    ],
)
def test_without_a_layer_the_last_block_of_stride_8_is_read(
    model: str, layer: str, channels: int
) -> None:
    extractor = ImageFeatures(ImageModelSpec(model, None, is_random=True), None)
    assert (extractor.layer, extractor.stride, extractor.channels) == (layer, 8, channels)
    assert extractor(clip()).shape == (2, channels, 8, 12)


def test_random_weights_are_the_same_each_time_and_leave_the_generator_alone() -> None:
    spec = parse_image_model("torchvision:resnet18@layer1:random")
    torch.manual_seed(1)
    first = ImageFeatures(spec, None)(clip())
    drawn = torch.rand(1)
    torch.manual_seed(2)
    torch.testing.assert_close(ImageFeatures(spec, None)(clip()), first, rtol=0, atol=0)
    torch.manual_seed(1)
    assert torch.rand(1) == drawn


def test_weights_of_densenets_are_read_under_their_old_names(tmp_path: Path) -> None:
    model = torchvision.models.densenet121(weights=None)
    old = {
        key.replace("norm1", "norm.1").replace("conv2", "conv.2"): value
        for key, value in model.state_dict().items()
    }
    torch.save(old, tmp_path / "old.pth")
    extractor = ImageFeatures(parse_image_model("torchvision:densenet121"), tmp_path / "old.pth")
    assert extractor.layer == "features.denseblock2"


def test_weights_are_found_in_the_hub_folder_the_recommended_first(hub: Path) -> None:
    spec = parse_image_model("torchvision:resnet50@layer3")
    with pytest.raises(UserError, match=r"no weights on disk: .*checkpoints has no resnet50-11ad"):
        find_weights(spec)
    (hub / "resnet50-0676ba61.pth").touch()
    assert find_weights(spec) == hub / "resnet50-0676ba61.pth"
    (hub / "resnet50-11ad3fa6.pth").touch()
    assert find_weights(spec) == hub / "resnet50-11ad3fa6.pth"
    assert find_weights(parse_image_model("torchvision:resnet50:random")) is None


def test_rows_are_named_after_what_was_asked_for() -> None:
    for spec, name in (
        ("torchvision:resnet18", "torchvision_resnet18"),
        ("torchvision:vgg16@features.22", "torchvision_vgg16_features.22"),
        ("torchvision:resnet18@layer3:random", "torchvision_resnet18_layer3_random"),
    ):
        assert parse_image_model(spec).row_name == name


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("torchvision:resnet", "torchvision has no image model 'resnet'; it has resnet"),
        ("torchvision:r3d_18", "torchvision has no image model 'r3d_18'"),
        ("torchvision:resnet18@", "has another form than torchvision:MODEL"),
        ("torchvision:resnet18@layer3,random", "has another form than torchvision:MODEL"),
    ],
)
def test_other_specifications_fail(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_image_model(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet18@layer9:random", "has no layer 'layer9'; it has conv1, bn1"),
        ("resnet18@avgpool:random", r"gives \(1, 512, 1, 1\) .* no map of cells"),
        ("resnet18@flatten:random", r"gives \(1, 512\) .* no map of cells"),
        ("squeezenet1_1:random", "has no layer of stride 8: name one as"),
        ("vit_b_16:random", "does not take frames of any size"),
    ],
)
def test_layers_without_a_map_of_cells_fail(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ImageFeatures(parse_image_model(f"torchvision:{spec}"), None)


def test_weights_that_are_missing_damaged_or_of_another_model_fail(
    weights: Path, tmp_path: Path
) -> None:
    spec = parse_image_model("torchvision:resnet50")
    with pytest.raises(UserError, match="no such file"):
        find_weights(spec, tmp_path / "nowhere.pth")
    with pytest.raises(UserError, match=r"weights do not fit resnet50 \("):
        ImageFeatures(spec, weights)
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(UserError, match="weights cannot be read"):
        ImageFeatures(spec, damaged)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="must be a state dict, got list"):
        ImageFeatures(spec, tmp_path / "list.pth")
