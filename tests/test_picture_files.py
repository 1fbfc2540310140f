"""Pictures as people have them: stored turned, in other formats, with other endings, beside what systems leave behind."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from videossl.catalog.sequence_overlap import find_footage, read_piece
from videossl.errors import UserError
from videossl.io.index_masks import read_mask, write_mask
from videossl.io.pictures import (
    UNREADABLE,
    in_frame_order,
    opened_picture,
    picture_size,
    pictures_of,
    rgb_of,
)
from videossl.probe.detection import VocImages
from videossl.tracking.davis import read_tree
from videossl.tracking.features import StoredFeatures
from videossl.tracking.sequence import ImageFrames, davis_footage
from videossl.tracking.youtube_vos import read_youtube_vos

H, W = 32, 48
APPLE_DOUBLE = bytes.fromhex("0005160700020000") + b"Mac OS X        " + bytes(4000)
# How a picture (H, W) is stored so that it is upright once its EXIF is obeyed: EXIF 2.32, 4.6.4, Orientation. The sides on
# which row 0 and column 0 of what is stored lie when shown.
STORED = {
    1: lambda shown: shown,  # top, left
    2: lambda shown: shown[:, ::-1],  # top, right
    3: lambda shown: shown[::-1, ::-1],  # bottom, right
    4: lambda shown: shown[::-1],  # bottom, left
    5: lambda shown: shown.swapaxes(0, 1),  # left, top
    6: lambda shown: shown[:, ::-1].swapaxes(0, 1),  # right, top
    7: lambda shown: shown[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda shown: shown[::-1].swapaxes(0, 1),  # left, bottom
}


def shown() -> np.ndarray:
    """(H, W, 3): every corner of another colour, so that each turn and each mirroring shows."""
    pixels = np.full((H, W, 3), 30, np.uint8)
    pixels[:16, :16], pixels[:16, 32:] = (200, 20, 20), (20, 200, 20)
    pixels[16:, :16], pixels[16:, 32:] = (20, 20, 200), (200, 200, 20)
    return pixels


def exif(orientation: int) -> Image.Exif:
    values = Image.Exif()
    values[0x0112] = orientation
    return values


def save(pixels: np.ndarray, path: Path, orientation: int = 1, **options: object) -> Path:
    """Writes what is shown as a camera stores it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](pixels)))
    if orientation != 1:
        options["exif"] = exif(orientation)
    stored.save(path, **options)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp", ".tif"])
def test_every_orientation_is_shown_upright(tmp_path: Path, ending: str, orientation: int) -> None:
    options = {".jpg": {"quality": 95, "subsampling": 0}, ".webp": {"lossless": True}}.get(
        ending, {}
    )
    path = save(shown(), tmp_path / f"frame{ending}", orientation, **options)
    assert picture_size(path) == picture_size(path, to_its_end=True) == (W, H)
    frames = ImageFrames([path])
    assert frames.native_size == (H, W)
    (frame,) = frames.read([0], (H, W)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(frame.astype(int), shown(), atol=8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_is_turned_like_its_frame(tmp_path: Path, orientation: int) -> None:
    ids = np.zeros((H, W), np.uint8)
    ids[2:9, 3:30], ids[20:30, 1:5] = 1, 2
    np.testing.assert_array_equal(read_mask(save(ids, tmp_path / "m.png", orientation)), ids)


def test_exif_behind_the_pixels_of_a_png_is_obeyed(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    Image.fromarray(np.ascontiguousarray(STORED[6](shown()))).save(path)
    data = b"eXIf" + exif(6).tobytes()[6:]
    chunk = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    content = path.read_bytes()
    path.write_bytes(content[:-12] + chunk + content[-12:])  # before IEND
    assert picture_size(path) == (W, H)
    with opened_picture(path) as image:
        np.testing.assert_array_equal(np.asarray(image), shown())


@pytest.mark.parametrize(
    "damaged", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"]
)
def test_damaged_exif_costs_no_picture(tmp_path: Path, damaged: bytes) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(shown()).save(path, quality=95, exif=damaged)
    assert picture_size(path, to_its_end=True) == (W, H)
    assert ImageFrames([path]).read([0], (H, W)).shape == (1, 3, H, W)


def tree(
    root: Path,
    *,
    frame: str = "{:05d}.jpg",
    mask: str = "{:05d}.png",
    orientation: int = 1,
    first: int = 0,
) -> Path:
    """A DAVIS tree of one sequence of 12 frames; the object moves by two pixels a frame."""
    for index in range(12):
        pixels, ids = shown(), np.zeros((H, W), np.uint8)
        ids[10:20, 2 + 2 * index : 14 + 2 * index] = 1
        pixels[ids > 0] = (250, 120, 10 * index)
        save(
            pixels,
            root / "JPEGImages/480p/ant" / frame.format(first + index),
            orientation,
            quality=95,
        )
        path = root / "Annotations/480p/ant" / mask.format(first + index)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_mask(path, ids)
    lists = root / "ImageSets/2017"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("ant\n", encoding="utf-8-sig")
    return root


@pytest.mark.parametrize(
    ("frame", "mask"),
    [
        ("{:05d}.JPG", "{:05d}.PNG"),
        ("{:05d}.jpeg", "{:05d}.png"),
        ("{:05d}.png", "{:05d}.png"),
        ("{:05d}.webp", "{:05d}.png"),
        ("{:05d}.bmp", "{:05d}.png"),
        ("frame_{}.Jpg", "frame_{}.png"),
        ("ant-{}-x.jpg", "ant-{}-x.png"),
    ],
)
def test_a_tree_may_name_its_frames_as_it_likes(tmp_path: Path, frame: str, mask: str) -> None:
    (sequence,) = read_tree(
        tree(tmp_path, frame=frame, mask=mask, first=7), split="val", need_masks=True
    )
    assert sequence.is_annotated
    starts = [int(np.flatnonzero(sequence.mask(i).any(axis=0))[0]) for i in range(12)]
    assert starts == list(range(2, 26, 2))
    blue = davis_footage(sequence).source.read(range(12), (H, W))[
        :, 2, 15, [8 + 2 * i for i in range(12)]
    ]
    np.testing.assert_allclose(torch.diagonal(blue).numpy(), np.arange(0, 120, 10), atol=12)


@pytest.mark.parametrize("orientation", [3, 6])
def test_frames_of_a_tree_lie_under_their_masks(tmp_path: Path, orientation: int) -> None:
    (sequence,) = read_tree(tree(tmp_path, orientation=orientation), split="val")
    footage = davis_footage(sequence)
    red = footage.frame_at(0).numpy()[0]
    assert red[footage.first_mask > 0].mean() > 220


def litter(root: Path) -> None:
    """What macOS, Windows and NAS boxes leave: a companion of each file and folder, and their own."""
    for path in [*root.rglob("*")]:
        (path.parent / f"._{path.name}").write_bytes(APPLE_DOUBLE)
    for folder in [root, *(p for p in root.rglob("*") if p.is_dir())]:
        for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
            (folder / name).write_bytes(b"\0\1")
        for name in ("@eaDir", "__MACOSX"):
            (folder / name).mkdir()
            (folder / name / "00000.jpg").write_bytes(APPLE_DOUBLE)


def test_what_systems_leave_is_no_frame_and_no_list_of_davis(tmp_path: Path) -> None:
    before = read_tree(tree(tmp_path), split="val", need_masks=True)
    litter(tmp_path)
    assert read_tree(tmp_path, split="val", need_masks=True) == before
    assert pictures_of(tmp_path / "JPEGImages/480p/ant") == list(before[0].frame_paths)


def test_what_systems_leave_is_no_video_of_youtube_vos(tmp_path: Path) -> None:
    made = tree(tmp_path / "davis")
    for part in ("JPEGImages", "Annotations"):
        (made / part / "480p").rename(tmp_path / part)
    before = read_youtube_vos(tmp_path)
    litter(tmp_path)
    assert read_youtube_vos(tmp_path) == before
    assert [sequence.name for sequence in before] == ["ant"]
    meta = '{"videos": {"ant": {"objects": {"1": {"frames": ["00000"]}}}}}'
    (tmp_path / "meta.json").write_text(meta, encoding="utf-8-sig")
    (sequence,) = read_youtube_vos(tmp_path)
    assert sequence.appearances == {1: 0}


def test_what_systems_leave_is_no_feature(tmp_path: Path) -> None:
    (tmp_path / "ant").mkdir()
    for index in range(3):
        np.save(tmp_path / f"ant/{index}.npy", np.full((2, 4, 6), index, np.float32))
    litter(tmp_path)
    assert [float(one.mean()) for one in StoredFeatures(tmp_path).of("ant", 3)] == [0, 1, 2]
    (tmp_path / "other").mkdir()
    (tmp_path / "other/._0.npy").write_bytes(APPLE_DOUBLE)
    with pytest.raises(UserError, match="holds no features"):
        StoredFeatures(tmp_path / "other")


def test_two_pictures_of_one_frame_fail(tmp_path: Path) -> None:
    tree(tmp_path)
    save(shown(), tmp_path / "JPEGImages/480p/ant/00003.png")
    with pytest.raises(UserError, match=r"holds both 00003\.jpg and 00003\.png"):
        read_tree(tmp_path, split="val")


@pytest.mark.parametrize(("orientation", "ending"), [(1, ".jpg"), (3, ".JPG"), (6, ".jpeg")])
def test_pictures_of_voc_lie_under_their_boxes(
    tmp_path: Path, orientation: int, ending: str
) -> None:
    save(shown(), tmp_path / f"JPEGImages/1{ending}", orientation, quality=95, subsampling=0)
    (tmp_path / "Annotations").mkdir()
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>16</xmax><ymax>16</ymax></bndbox>"
    text = f"<annotation><object><name>red</name>{box}</object></annotation>"
    (tmp_path / "Annotations/1.xml").write_text(text)
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    (tmp_path / "ImageSets/Main/train.txt").write_text("1\n", encoding="utf-8-sig")
    litter(tmp_path)
    image, target = VocImages(tmp_path, "train")[0]
    x0, y0, x1, y1 = target["boxes"][0].int().tolist()
    inside = image[:, y0:y1, x0:x1].mean(dim=(1, 2)) * 255
    np.testing.assert_allclose(inside.numpy(), (200, 20, 20), atol=8)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_footage_is_known_by_its_pictures_however_they_are_stored(
    tmp_path: Path, orientation: int
) -> None:
    signatures = []
    for name, number in (("plain", 1), ("turned", orientation)):
        for index in range(3):
            pixels = np.roll(shown(), 5 * index, axis=1)
            # Large, so that a JPEG is decoded at a part of its size.
            pixels = np.kron(pixels, np.ones((16, 16, 1), np.uint8))
            save(pixels, tmp_path / name / f"{index}.jpg", number, quality=95)
        (piece,) = find_footage([tmp_path / name])
        signatures.append(read_piece(piece))
    one, other = (found.unit() for found in signatures)
    assert len(one) == len(other)
    assert (one * other).sum(axis=1).min() > 0.97


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


BOMB = b"k\0\0" + zlib.compress(bytes(2**26))
DAMAGED_PNGS = {
    "a bomb of text": lambda png: png[:33] + chunk(b"zTXt", BOMB) + png[33:],
    "a bomb of text at the end": lambda png: png[:-12] + chunk(b"zTXt", BOMB) + png[-12:],
    **{
        f"a header of {size} bytes": lambda png, size=size: (
            png[:8] + chunk(b"IHDR", png[16 : 16 + size]) + png[33:]
        )
        for size in (0, 4, 12)
    },
    **{
        f"{name.decode()} cut off": lambda png, name=name: png[:33] + chunk(name, b"\1") + png[33:]
        for name in (b"gAMA", b"cHRM", b"pHYs", b"acTL", b"fcTL")
    },
}


@pytest.mark.parametrize("kind", DAMAGED_PNGS)
def test_bombs_and_cut_headers_of_png_are_damage(kind: str, tmp_path: Path) -> None:
    Image.fromarray(shown()).save(tmp_path / "sound.png")
    path = tmp_path / "p.png"
    path.write_bytes(DAMAGED_PNGS[kind]((tmp_path / "sound.png").read_bytes()))
    refused = 0
    for to_its_end in (False, True):
        try:
            picture_size(path, to_its_end=to_its_end)
        except UNREADABLE:
            refused += 1
    try:
        with opened_picture(path) as picture:
            np.asarray(picture)
    except UNREADABLE:
        refused += 1
    assert refused


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_sixteen_bits_are_shown_by_their_upper_eight(mode: str) -> None:
    values = np.arange(0, 2**16, 257).reshape(16, 16)
    kinds = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}
    image = Image.frombytes(mode, (16, 16), values.astype(kinds[mode]).tobytes())
    shown = np.asarray(rgb_of(image))
    np.testing.assert_array_equal(shown, np.repeat(values[..., None] >> 8, 3, axis=2))


def test_frames_before_zero_come_first(tmp_path: Path) -> None:
    names = ["-10", "-2", "-1", "0", "1", "10"]
    assert [
        path.stem for path in in_frame_order(tmp_path / f"{n}.png" for n in sorted(names))
    ] == names
    hyphens = ["clip-1", "clip-2", "clip-10"]
    paths = in_frame_order(tmp_path / f"{name}.png" for name in reversed(hyphens))
    assert [path.stem for path in paths] == hyphens
