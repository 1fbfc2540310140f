"""First masks in any form a paint program writes: what they are read as, and which are refused."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from videossl.errors import UserError
from videossl.eval.colour_mask import ids_of_colours
from videossl.eval.davis import read_tree
from videossl.eval.mask_files import read_first_mask, read_mask
from videossl.masks import PALETTE, write_mask

H, W = 20, 30


def id_mask() -> NDArray[np.uint8]:
    """Object 2 above object 1, both away from the border."""
    mask = np.zeros((H, W), np.uint8)
    mask[2:8, 5:20] = 2
    mask[12:18, 3:25] = 1
    return mask


def painted(*colours: tuple[int, ...]) -> NDArray[np.uint8]:
    """The mask with its ids replaced by these colours, background first."""
    return np.array(colours, np.uint8)[id_mask()]


@pytest.mark.parametrize("form", ["palette", "grey", "rgb", "rgba", "bmp"])
def test_ids_survive_every_lossless_form(tmp_path: Path, form: str) -> None:
    path = tmp_path / ("mask.bmp" if form == "bmp" else "mask.png")
    colours = PALETTE[id_mask()]
    if form == "palette":
        write_mask(path, id_mask())
    elif form == "grey":
        Image.fromarray(id_mask()).save(path)
    elif form == "rgba":
        Image.fromarray(np.dstack([colours, np.full((H, W), 255, np.uint8)])).save(path)
    else:
        Image.fromarray(colours).save(path)
    np.testing.assert_array_equal(read_first_mask(path), id_mask())


@pytest.mark.parametrize("mode", ["L", "1", "RGB"])
def test_black_and_white_is_one_object(tmp_path: Path, mode: str) -> None:
    binary = (id_mask() > 0).astype(np.uint8)
    Image.fromarray(binary * 255).convert(mode).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_first_mask(tmp_path / "mask.png"), binary)


def test_colours_of_no_palette_are_numbered_as_they_are_met(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.fromarray(painted((0, 0, 0), (250, 10, 10), (10, 10, 250))).save(tmp_path / "mask.png")
    with caplog.at_level("INFO", "videossl"):
        mask = read_first_mask(tmp_path / "mask.png")
        read_first_mask(tmp_path / "mask.png")
    assert set(np.unique(mask[2:8, 5:20])) == {1}  # id 2 lies above, so its colour is met first
    assert set(np.unique(mask[12:18, 3:25])) == {2}
    assert [r.getMessage().split("ids: ")[1] for r in caplog.records] == [
        "#0a0afa = 1, #fa0a0a = 2 (0 = background)"
    ]


def test_transparent_pixels_are_background() -> None:
    pixels = painted((9, 9, 9, 0), (250, 10, 10, 255), (10, 250, 10, 90))
    mask, number_of = ids_of_colours(pixels)
    np.testing.assert_array_equal(mask > 0, id_mask() > 0)
    assert number_of == {"#0afa0a": 1, "#fa0a0a": 2}


@pytest.mark.parametrize("form", ["grey", "palette", "rgb", "mixed rgb"])
def test_void_is_background(tmp_path: Path, form: str) -> None:
    path, mask = tmp_path / "mask.png", np.where(id_mask() == 2, 255, id_mask()).astype(np.uint8)
    if form == "grey":
        Image.fromarray(mask).save(path)
    elif form == "palette":
        write_mask(path, mask)
    elif form == "rgb":
        Image.fromarray(PALETTE[mask]).save(path)
    else:
        Image.fromarray(painted((0, 0, 0), (1, 2, 3), (224, 224, 192))).save(path)
    np.testing.assert_array_equal(read_first_mask(path), id_mask() == 1)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_smoothed_edges_fail_with_the_remedy(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(painted((0, 0, 0), (250, 40, 10), (10, 250, 10)))
    image.resize((8 * W, 8 * H), Image.Resampling.BICUBIC).convert(mode).save(tmp_path / "m.png")
    with pytest.raises(
        UserError, match=r"m.png: has \d+ .* \(at most 32\); edges are smoothed.*PNG"
    ):
        read_first_mask(tmp_path / "m.png")


def test_a_jpeg_fails_whatever_it_is_called(tmp_path: Path) -> None:
    Image.fromarray(PALETTE[id_mask()]).save(tmp_path / "mask.png", format="JPEG")
    with pytest.raises(UserError, match=r"mask.png: JPEG changes values .*: give a PNG"):
        read_first_mask(tmp_path / "mask.png")


def test_sixteen_bits_fail(tmp_path: Path) -> None:
    Image.fromarray(id_mask().astype(np.uint16)).save(tmp_path / "mask.png")
    with pytest.raises(UserError, match="must be an 8-bit grey, palette or RGB image, got mode I"):
        read_first_mask(tmp_path / "mask.png")


def test_colours_in_results_fail(tmp_path: Path) -> None:
    Image.fromarray(PALETTE[id_mask()]).save(tmp_path / "mask.png")
    with pytest.raises(UserError, match="must be a grey or palette PNG, got mode RGB"):
        read_mask(tmp_path / "mask.png")


def test_a_tree_may_begin_with_colours_but_is_not_scored_by_them(tmp_path: Path) -> None:
    for folder in ("JPEGImages/480p/ant", "Annotations/480p/ant", "ImageSets/2017"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "ImageSets/2017/val.txt").write_text("ant\n")
    for index in range(3):
        Image.new("RGB", (W, H)).save(tmp_path / f"JPEGImages/480p/ant/{index:05d}.jpg")
        image = Image.fromarray(painted((0, 0, 0), (255, 0, 0), (0, 0, 255)))
        image.save(tmp_path / f"Annotations/480p/ant/{index:05d}.png")
    (sequence,) = read_tree(tmp_path, split="val")
    assert sequence.object_ids == (1, 2)
    assert not sequence.is_annotated
    np.testing.assert_array_equal(sequence.mask(0) > 0, id_mask() > 0)
    with pytest.raises(UserError, match="ant: the masks are RGB images; only grey and palette"):
        read_tree(tmp_path, split="val", need_masks=True)
