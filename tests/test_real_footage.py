"""From real files to a report, by the commands alone: scan, train, export, embed, track with the exported file, report."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from videossl.__main__ import main

VIDEOS = (  # small ones, of four sources
    "ExoPlayer__video_1.mp4",
    "Text2Video-Zero__girl_dancing.mp4",
    "bgslibrary__demo.mp4",
    "sign-language-video-reco__55768.mp4",
)
CONFIG = """
encoder: {name: tiny}
tasks: {arrow_of_time: {crop_size: 32, num_frames: 4, min_motion: 0}}
data: {short_side: 48, videos_per_step: 2, num_workers: 0, val_fraction: 0.25}
train: {steps: 2, log_every: 1, eval_batches: 1, threads_per_process: 1}
monitor: {pictures: false}
"""


@pytest.fixture
def three_frames(shared_data, tmp_path) -> Path:
    """A DAVIS tree of the first three frames of one sequence."""
    root = tmp_path / "davis"
    for kind, ending in (("JPEGImages", "jpg"), ("Annotations", "png")):
        folder = root / kind / "480p/blackswan"
        folder.mkdir(parents=True)
        for number in range(3):
            name = f"{number:05d}.{ending}"
            (folder / name).symlink_to(shared_data / "davis" / kind / "480p/blackswan" / name)
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/val.txt").write_text("blackswan\n")
    return root


def test_real_videos_become_an_exported_encoder_its_features_tracks_and_a_report(
    shared_data, three_frames, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in VIDEOS:
        (folder / name).symlink_to(shared_data / "videos/unlabelled" / name)
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "one.csv").write_text(f"path\nvideos/{VIDEOS[0]}\n")
    track = ["--davis", "davis", "--set", "short_side=64", "--workers", "1", "--device", "cpu"]
    for command in (
        ["scan", "videos", "-o", "videos.parquet", "--workers", "1"],
        ["train", "--config", "config.yaml", "data.manifest=videos.parquet", "out=run"],
        ["export", "--checkpoint", "run", "-o", "mine.safetensors"],
        ["scan", "one.csv", "-o", "one.parquet", "--workers", "1"],
        ["embed", "one.parquet", "--checkpoint", "mine.safetensors", "-o", "features.parquet"],
        ["track", "--checkpoint", "mine.safetensors", *track, "-o", "tracked"],
        ["report", "run", "--results", "tracked", "-o", "report.html"],
    ):
        assert main(command) == 0, command
    (feature,) = pq.read_table("features.parquet")["feature"].to_pylist()
    assert len(feature) > 1
    assert len(set(feature)) > 1
    page = Path("report.html").read_text()
    assert "<h2>Tracking</h2>" in page
    assert "<td>run (mine.safetensors)</td><td>davis val</td><td>mine</td>" in page
    assert 'src="data:video/mp4;base64,' in page
