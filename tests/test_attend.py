"""`videossl attend` from the command line, and the page that it writes in Chromium."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import assert_fits, assert_silent, browser, open_page, wait_for
from PIL import Image

from videossl.__main__ import main
from videossl.eval.attention_page import pack_features, write_attention_page
from videossl.eval.attention_picture import Reading, gather_reading, reading_weights
from videossl.eval.presets import preset
from videossl.eval.protocol import Protocol
from videossl.video_writer import write_video

T, H, W = 6, 12, 18


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "<i>clip.mp4"
    noise = np.random.default_rng(0).integers(0, 255, (4 * H, 8 * W, 3)).astype(np.uint8)
    frames = (noise[:, 2 * t : 2 * t + 4 * W] for t in range(T))
    write_video(path, frames, frames_per_second=10)
    return path


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as driver:
        yield driver


def attend(checkpoint: Path, *more: str) -> int:
    small = ["--set", "short_side=none", "--device", "cpu"]
    return main(["attend", "--checkpoint", str(checkpoint), *small, *more])


def test_a_picture_and_a_page_are_written(checkpoint, video, tmp_path, capsys):
    out, page = tmp_path / "new/a.png", tmp_path / "new/a.html"
    arguments = ["--video", str(video), "--frame", "4", "--pixel", "30,20"]
    assert attend(checkpoint, *arguments, "--out", str(out), "--html", str(page)) == 0
    assert capsys.readouterr().out == f"written to {out}\nwritten to {page}\n"
    with Image.open(out) as picture:
        assert picture.size == (4 * 300 + 3 * 4, 2 * 224 + 4)  # the query and four frames
    text = page.read_text()
    assert "<i>" not in text
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert sorted(path.name for path in out.parent.iterdir()) == ["a.html", "a.png"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--frame", "0"], "--frame must be 1 to 5"),
        (["--frame", "6"], "--frame must be 1 to 5"),
        (["--pixel", "72,0"], "pixel 72,0 is outside of the frame, which is 72x48"),
        (["--preset", "mast"], "align_after=none"),
        (["--set", "top_k"], "--set takes KEY=VALUE"),
        (["--video", "nowhere.mp4"], "no such file"),
        (["--davis", "."], "give either --davis ROOT with --sequence NAME or --video FILE"),
        (["--stage", "res9"], "stage 'res9' is unknown"),
    ],
)
def test_wrong_input_is_one_clear_line(checkpoint, video, tmp_path, more, message, capsys):
    arguments = ["--video", str(video), "--frame", "4", "--pixel", "30,20", *more]
    assert attend(checkpoint, *arguments, "--out", str(tmp_path / "a.png")) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "a.png").exists()


def test_a_video_of_one_frame_is_told_so(checkpoint, tmp_path, capsys):
    write_video(tmp_path / "one.mp4", [np.zeros((48, 72, 3), np.uint8)], frames_per_second=10)
    arguments = ["--video", str(tmp_path / "one.mp4"), "--frame", "1", "--pixel", "3,2"]
    assert attend(checkpoint, *arguments, "--out", str(tmp_path / "a.png")) == 2
    assert "one.mp4 has one frame" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--out", "--html"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder", "is a folder: give the name of a file"),
        ("/proc/videossl/a", "cannot be written"),
        ("file/a", "file is a file"),
        ("n" * 300, "cannot be written"),
    ],
)
def test_what_cannot_be_written_is_one_line(video, tmp_path, option, name, message, capsys):
    (tmp_path / "folder").mkdir()
    for name_of_file in ("file", "no_encoder"):
        (tmp_path / name_of_file).write_text("text")
    arguments = ["--video", str(video), "--frame", "4", "--pixel", "30,20"]
    paths = {"--out": str(tmp_path / "a.png"), option: str(tmp_path / name)}
    more = [part for pair in paths.items() for part in pair]
    before = sorted(tmp_path.rglob("*"))
    assert attend(tmp_path / "no_encoder", *arguments, *more) == 2  # before an encoder is read
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert option in line
    assert sorted(tmp_path.rglob("*")) == before


def test_a_pixel_that_is_none_is_refused(checkpoint, video, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        attend(checkpoint, "--video", str(video), "--frame", "4", "--pixel", "30")
    assert "must be X,Y such as 120,64, got '30'" in capsys.readouterr().err


def products(cells: torch.Tensor) -> torch.Tensor:
    flat = cells.flatten(0, 1).double()
    return flat @ flat.T


def test_packed_features_keep_the_products_of_cells():
    features = torch.nn.functional.normalize(torch.randn(3, 32, 5, 6), dim=1)
    packed = pack_features(features)
    assert packed.kept == 1
    unpacked = torch.from_numpy(packed.values * packed.scales[:, :, None])
    expected = products(features.flatten(2).transpose(1, 2))
    torch.testing.assert_close(products(unpacked), expected, atol=1e-4, rtol=0)


def test_channels_are_dropped_where_they_hold_least():
    low_rank = torch.einsum("dr,nrhw->ndhw", torch.randn(32, 4), torch.randn(3, 4, 5, 6))
    packed = pack_features(low_rank, max_bytes=3 * 30 * 2 * 4)
    assert packed.values.shape == (3, 30, 4)
    assert packed.values.nbytes <= 3 * 30 * 2 * 4
    assert packed.kept == pytest.approx(1)
    unpacked = torch.from_numpy(packed.values * packed.scales[:, :, None])
    expected = products(low_rank.flatten(2).transpose(1, 2))
    torch.testing.assert_close(products(unpacked), expected, atol=0.02, rtol=0.001)


class Frames:
    """Noise of 48 x 72 pixels."""

    num_frames = T
    native_size = (4 * H, 4 * W)

    def read(self, indices: Any, size: tuple[int, int]) -> torch.Tensor:
        return torch.randint(0, 255, (len(indices), 3, *size), dtype=torch.uint8)


def read_by(protocol: Protocol) -> Reading:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(T, 16, H, W, generator=generator)
    return gather_reading(torch.nn.functional.normalize(maps, dim=1), 4, protocol)


def shares_on_page(driver: Any) -> list[float]:
    script = "return [...document.querySelectorAll('.key')].map(key => Number(key.dataset.share))"
    return driver.execute_script(script)


SOFT = replace(preset("videossl"), temperature=1.0)  # every cell that is seen counts
PROTOCOLS = {
    "videossl": replace(preset("videossl"), radius=4),
    "crw": replace(preset("crw"), radius=3),
    "vondrick": preset("vondrick"),
    "circle": replace(SOFT, window="circle", radius=3, top_k=None, distance_sigma=None),
    "falls off": replace(SOFT, radius=4, distance_sigma=1.5),
    "of each frame": replace(SOFT, top_k_of="frame", renormalize=False, radius=4),
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_click_shows_where_that_cell_looks(chromium, tmp_path, name):
    protocol = PROTOCOLS[name]
    reading = read_by(protocol)
    page = tmp_path / "a.html"
    write_attention_page(page, Frames(), reading, protocol, title="<b>clip", cell=(3, 5))
    open_page(chromium, page, width=1200)
    expected = reading_weights(reading, (3, 5), protocol)
    found = shares_on_page(chromium)
    assert found == pytest.approx([float(part.sum()) for part in expected.values()], abs=1e-3)
    click = (
        "const frame = document.querySelector('.query .frame'), box = frame.getBoundingClientRect();"
        "frame.dispatchEvent(new MouseEvent('click', {clientX: box.left + box.width * 12.5 / 18,"
        " clientY: box.top + box.height * 7.5 / 12}))"
    )
    chromium.execute_script(click)
    wait_for(chromium, "document.querySelector('.query b').textContent === 'row 7, column 12'")
    expected = reading_weights(reading, (7, 12), protocol)
    found = shares_on_page(chromium)
    assert found == pytest.approx([float(part.sum()) for part in expected.values()], abs=1e-3)
    # The cell with the greatest weight is the most opaque on the canvases; others may round to the same.
    opacities = chromium.execute_script(
        "return [...document.querySelectorAll('.key canvas')].map(canvas => [...canvas.getContext('2d')"
        ".getImageData(0, 0, canvas.width, canvas.height).data].filter((_, i) => i % 4 === 3))"
    )
    strongest = int(torch.stack(list(expected.values())).argmax())
    assert np.ravel(opacities)[strongest] == np.max(opacities) > 200
    assert_silent(chromium)


@pytest.mark.parametrize("width", [1200, 400])
def test_arrow_keys_move_and_the_page_fits(chromium, tmp_path, width):
    protocol = PROTOCOLS["videossl"]
    page = tmp_path / "a.html"
    write_attention_page(page, Frames(), read_by(protocol), protocol, title="clip", cell=(0, 5))
    open_page(chromium, page, width=width)
    frame = chromium.find_element("css selector", ".query .frame")
    frame.send_keys("\ue014\ue015\ue013\ue013")  # right, down, up, up: the border holds
    wait_for(chromium, "document.querySelector('.query b').textContent === 'row 0, column 6'")
    assert_fits(chromium)
    assert_silent(chromium)
    chromium.save_screenshot(str(tmp_path / "a.png"))
