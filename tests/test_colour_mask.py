"""First masks in any form a paint program writes: what they are read as, and which are refused."""

import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from videossl.errors import UserError
from videossl.io.index_masks import (
    PALETTE,
    ids_of_colours,
    open_first_mask,
    read_first_mask,
    read_mask,
    write_mask,
)
from videossl.tracking.davis import read_tree

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


COLOURS = ((0, 0, 0), (250, 40, 10), (10, 250, 120))
SCALE = 8  # so that every object has an inside


def large(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.kron(pixels, np.ones((SCALE, SCALE) + (1,) * (pixels.ndim - 2), np.uint8))


def edges_of(mask: NDArray[np.uint8], width: int) -> NDArray[np.bool_]:
    """Where another id is within some pixels, found shift by shift."""
    near = np.zeros(mask.shape, bool)
    for dy in range(-width, width + 1):
        for dx in range(-width, width + 1):
            near |= np.roll(mask, (dy, dx), axis=(0, 1)) != mask
    return near


@pytest.mark.parametrize(
    "how", ["bicubic", "bilinear", "blurred", "fading", "grey", "jpeg", "webp"]
)
def test_of_smoothed_edges_each_pixel_takes_the_nearest_colour_that_covers_something(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    path, exact = tmp_path / "mask.png", large(id_mask())
    small = Image.fromarray(painted(*COLOURS))
    image = Image.fromarray(large(painted(*COLOURS)))
    if how in ("bicubic", "bilinear"):
        image = small.resize(image.size, Image.Resampling[how.upper()])
    elif how in ("blurred", "grey"):
        image = image.filter(ImageFilter.GaussianBlur(1.5)).convert("L" if how == "grey" else "RGB")
    elif how == "fading":  # colours to the edge, opacity falls there
        alpha = Image.fromarray((exact > 0).astype(np.uint8) * 255)
        image.putalpha(alpha.filter(ImageFilter.GaussianBlur(1.5)))
    options = {"quality": 80} if how in ("jpeg", "webp") else {}
    image.save(path, format=how if how in ("jpeg", "webp") else "PNG", **options)
    with caplog.at_level("INFO", "videossl"):
        mask = read_first_mask(path)
    away_from_edges = ~edges_of(exact, SCALE // 2)
    for number in (0, 1, 2):
        found = np.unique(mask[away_from_edges & (exact == number)])
        assert len(found) == 1, number
    assert len(np.unique(mask)) == 3
    assert np.mean((mask > 0) != (exact > 0)) < 0.03
    (said,) = [r.getMessage() for r in caplog.records if "its edges are smoothed" in r.getMessage()]
    assert len(np.unique(np.asarray(Image.open(path)).reshape(exact.size, -1), axis=0)) == int(
        re.search(r"\((\d+) colours\)", said)[1]
    )


def test_an_edge_halfway_between_two_colours_is_no_object(tmp_path: Path) -> None:
    # A rectangle scaled by half a pixel: few colours, each along one side.
    pixels = np.zeros((40, 60), np.uint8)
    pixels[10:30, 15:45] = 255
    pixels[9, 15:45], pixels[30, 15:45], pixels[10:30, 14], pixels[10:30, 45] = 128, 120, 130, 125
    pixels[9, 14] = pixels[30, 45] = 64
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    assert set(np.unique(read_first_mask(tmp_path / "mask.png"))) == {0, 1}
    assert (
        open_first_mask(tmp_path / "mask.png").form == "2016"
    )  # the later ones are settled by a threshold


@pytest.mark.parametrize("mode", ["L", "P", "RGB"])
def test_objects_of_few_pixels_stay_whatever_their_ids(tmp_path: Path, mode: str) -> None:
    ids = np.zeros((60, 90), np.uint8)
    ids[20:40, 20:60] = 9
    ids[5, 3:43:2] = np.arange(1, 21)  # single pixels
    ids[22:24, 30:32] = 21  # two by two, inside of another
    if mode == "P":
        write_mask(tmp_path / "mask.png", ids)
    else:
        Image.fromarray(ids if mode == "L" else PALETTE[ids]).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_first_mask(tmp_path / "mask.png"), ids)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_photo_is_no_mask(tmp_path: Path, mode: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    photo = Image.fromarray(noise).resize((160, 120), Image.Resampling.BICUBIC)
    photo.convert(mode).save(tmp_path / "m.png")
    with pytest.raises(
        UserError, match=r"m.png: has \d+ .* \(at most 32\); edges are smoothed.*PNG"
    ):
        read_first_mask(tmp_path / "m.png")


def test_more_ids_than_objects_can_be_are_not_merged(tmp_path: Path) -> None:
    Image.fromarray(np.kron(np.arange(40, dtype=np.uint8)[None], np.ones((8, 8), np.uint8))).save(
        tmp_path / "m.png"
    )
    with pytest.raises(UserError, match="has 39 grey values"):
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
    with pytest.raises(
        UserError, match="ant: the masks are RGB images; only grey and palette PNGs with hard edges"
    ):
        read_tree(tmp_path, split="val", need_masks=True)


def two_discs(scale: int = 1) -> Image.Image:
    """Red and lime on black; edges are smoothed by a scale above 1."""
    image = Image.new("RGB", (160 * scale, 120 * scale))
    draw = ImageDraw.Draw(image)
    draw.ellipse([20 * scale, 20 * scale, 70 * scale, 70 * scale], fill="red")
    draw.ellipse([80 * scale, 40 * scale, 140 * scale, 100 * scale], fill="lime")
    return image.resize((160, 120), Image.Resampling.LANCZOS) if scale > 1 else image


@pytest.mark.parametrize("name", ["a.png", "a.gif"])
@pytest.mark.parametrize("scale", [1, 4])
def test_colours_of_a_drawing_program_are_objects_wherever_its_palette_has_them(
    tmp_path: Path, name: str, scale: int
) -> None:
    image = two_discs(scale)
    image.save(tmp_path / "rgb.png")
    expected = read_first_mask(tmp_path / "rgb.png")
    assert expected[45, 45] == 1
    assert expected[70, 110] == 2
    indexed = image.quantize(4 if scale == 1 else 64)
    for shift in range(3):  # the same picture, whichever place of its palette a colour has
        places = np.roll(np.arange(256), shift).astype(np.uint8)
        moved = Image.fromarray(places[np.asarray(indexed)], "P")
        table = np.zeros((256, 3), np.uint8)
        given = np.array(indexed.getpalette("RGB"), np.uint8).reshape(-1, 3)
        table[places[: len(given)]] = given
        moved.putpalette(table.tobytes())
        moved.save(tmp_path / name)
        found = read_first_mask(tmp_path / name)
        # A smoothed edge may fall a pixel elsewhere, and where black has place 0 the others' places may be ids.
        assert ((found == 0) == (expected == 0)).mean() > 0.98
        assert len(np.unique(found)) == 3
        assert len({found[45, 45], found[70, 110], found[0, 0]}) == 3


def test_ids_in_a_palette_of_another_tool_stay_ids(tmp_path: Path) -> None:
    ids = np.zeros((40, 50), np.uint8)
    ids[5:20, 5:20], ids[22:38, 30:48] = 5, 9
    table = np.zeros((256, 3), np.uint8)
    table[[5, 9]] = [[0, 90, 181], [220, 50, 32]]
    image = Image.fromarray(ids, "P")
    image.putpalette(table.tobytes())
    image.save(tmp_path / "ids.png")
    np.testing.assert_array_equal(read_first_mask(tmp_path / "ids.png"), ids)


def test_white_beside_grey_is_an_object_and_void_beside_ids(tmp_path: Path) -> None:
    values = np.zeros((40, 50), np.uint8)
    values[5:20, 5:20], values[22:38, 30:48] = 128, 255
    Image.fromarray(values).save(tmp_path / "greys.png")
    greys = read_first_mask(tmp_path / "greys.png")
    assert (greys == np.select([values == 128, values == 255], [1, 2])).all()
    values[values == 128] = 3
    Image.fromarray(values).save(tmp_path / "ids.png")
    ids = read_first_mask(tmp_path / "ids.png")
    assert (ids == np.where(values == 3, 3, 0)).all()
