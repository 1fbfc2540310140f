"""The encoder that comes with the package: it loads, tracks without being trained or fetched, and says what it is."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import videossl
from videossl.__main__ import main
from videossl.data.synthetic import render_davis
from videossl.engine.adaptation import restore_tracker
from videossl.io.pictures import write_video
from videossl.models.encoder_file import read_record
from videossl.models.encoder_sources import FOLDER, SHIPPED, shipped_or_given

ALLOWED = {"MIT", "Apache-2.0", "BSD", "CC BY 4.0"}


@pytest.mark.parametrize("name", SHIPPED)
def test_it_is_small_and_loads_by_its_name(name):
    path = shipped_or_given(name)
    assert path.stat().st_size <= 8_000_000
    encoder = videossl.load_encoder(name)
    with torch.no_grad():
        features = encoder(torch.zeros(1, 2, 3, 64, 96, dtype=torch.uint8))
    assert features.shape == (1, encoder.num_channels)


@pytest.mark.parametrize("name", SHIPPED)
def test_its_record_says_how_it_was_made_and_names_no_place_of_a_machine(name):
    record = read_record(shipped_or_given(name))
    assert record["facts"]["licence"] == "Apache-2.0"
    assert record["facts"]["config"]["tasks"]["colorization"]["predict"] == "values"
    text = json.dumps(record) + (FOLDER / f"{name}.safetensors.md").read_text()
    from_the_root = r"(?<![\w:/.])/[\w.-]+/[\w.-]+"
    assert not re.findall(from_the_root, text)
    restore_tracker(name)  # what --adapt goes on with is there too


@pytest.mark.parametrize("name", SHIPPED)
def test_its_videos_are_all_under_licences_that_allow_it(name):
    with (FOLDER / f"{name}.videos.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len({row["video"] for row in rows})
    assert {row["licence"] for row in rows} <= ALLOWED
    card = (FOLDER / f"{name}.safetensors.md").read_text()
    assert f"{len(rows)} videos" in card


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    (tmp_path / "track-small").mkdir()
    monkeypatch.chdir(tmp_path)
    assert shipped_or_given("track-small") == Path("track-small")


def j_and_f(davis: Path, out: Path, *arguments: str) -> float:
    """What `videossl track` reaches without a checkpoint, in percent."""
    assert main(["track", "--davis", str(davis), "-o", str(out), *arguments]) == 0
    record = json.loads((out / "result.json").read_text())
    assert record["checkpoint"] == "track-small"
    return 100 * float(record["rows"]["track-small"]["global"]["J&F-Mean"])


def measured() -> dict[str, float]:
    """J&F in percent of single sequences, as they were measured when it was shipped."""
    found: dict[str, float] = json.loads((FOLDER / "track-small.scores.json").read_text())
    return found


def test_it_tracks_a_rendered_sequence_as_when_it_was_shipped(tmp_path):
    (name,) = render_davis(tmp_path / "davis", seed=0, num_sequences=1, num_frames=12)
    got = j_and_f(tmp_path / "davis", tmp_path / "out")
    assert got == pytest.approx(measured()[name], abs=0.5)


# The preset at two thirds of its size: a fifth of the time.
SMALLER = ["short_side=240", "radius=12", "distance_sigma=5.3"]


def test_it_tracks_a_real_sequence_as_when_it_was_shipped(shared_data, tmp_path):
    settings = [part for setting in SMALLER for part in ("--set", setting)]
    arguments = ["--split", "val_shared", "--sequences", "car-shadow", *settings]
    got = j_and_f(shared_data / "davis", tmp_path / "out", *arguments)
    assert got == pytest.approx(measured()[f"car-shadow, {', '.join(SMALLER)}"], abs=0.5)


def test_it_tracks_a_video_of_ones_own_from_one_mask(tmp_path, monkeypatch):
    (name,) = render_davis(tmp_path / "davis", seed=1, num_sequences=1, num_frames=4)
    frames = sorted((tmp_path / "davis/JPEGImages/480p" / name).glob("*.jpg"))
    pictures = (np.asarray(Image.open(frame)) for frame in frames)
    write_video(tmp_path / "mine.mp4", pictures, frames_per_second=10)
    mask = tmp_path / "davis/Annotations/480p" / name / "00000.png"
    monkeypatch.chdir(tmp_path)
    assert main(["track", "--video", "mine.mp4", "--mask", str(mask)]) == 0
    out = tmp_path / "mine_tracked"
    assert len(list((out / "track-small/mine").glob("*.png"))) == 4
    assert list(out.rglob("*.mp4"))
