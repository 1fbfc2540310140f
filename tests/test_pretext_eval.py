"""`videossl pretext-eval`: on videos that the run never trained on, and on no others."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from videossl.__main__ import main
from videossl.audit.pretext_accuracy import load_run, unseen_videos
from videossl.data.synthetic import render_video
from videossl.engine.build import clip_dataset
from videossl.errors import UserError

TASKS = """
data: {short_side: 48, videos_per_step: 4, num_workers: 0, val_fraction: 0.4}
train: {steps: 2, log_every: 1, eval_batches: 1, threads_per_process: 1}
tasks:
  order_verification: {crop_size: 32, num_frames: 2, window_seconds: 1.0, min_gap_seconds: 0.1, min_difference: 0}
  arrow_of_time: {crop_size: 32, num_frames: 4, min_motion: 0}
  colorization: {crop_size: 32, frame_jitter: 4, num_references: 1, num_classes: 4, radius: 3}
  contrastive: {crop_size: 32, num_frames: 2, window_seconds: 1.0}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory, video_folder) -> Path:
    folder = tmp_path_factory.mktemp("run")
    config = folder / "c.yaml"
    config.write_text(TASKS)
    out = folder / "run"
    assert (
        main(["train", "--config", str(config), f"data.manifest={video_folder}", f"out={out}"]) == 0
    )
    return out


def test_every_task_is_judged_with_intervals(trained, tmp_path, capsys):
    out = tmp_path / "judged"
    arguments = ["--checkpoint", str(trained), "--clips-per-video", "3", "-o", str(out)]
    assert main(["pretext-eval", *arguments]) == 0
    printed = capsys.readouterr().out
    record = json.loads((out / "result.json").read_text())
    assert record["num_videos"] == 4  # of ten, 40 % held out
    (path,) = (trained / "checkpoints").glob("*.pt")
    assert record["checkpoint"] == str(trained)
    assert record["checkpoint_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    # Three clips of each of four videos: six tuples, two directions, 8 x 8 cells and two queries for each.
    counts = {"order_verification": 72, "arrow_of_time": 24, "colorization": 768, "contrastive": 24}
    for name, count in counts.items():
        judged = record["tasks"][name]
        assert judged["num_questions"] == count
        estimate, low, high = judged["accuracy"]
        assert low <= estimate <= high
        assert f"| {name} | accuracy | all | {estimate:.3f} |" in printed
        with Image.open(out / f"{name}.png") as image:
            assert min(image.size) > 100
    assert "auc" in record["tasks"]["order_verification"]
    arrow = record["tasks"]["arrow_of_time"]
    assert arrow["numbers"]["pairwise"] == arrow["accuracy"]
    assert 0 < record["tasks"]["contrastive"]["chance"] < 1
    assert "| contrastive | chance | all |" in printed
    assert "Chance: one of the candidates in the batch, on average." in printed
    assert set(record["tasks"]["colorization"]["subsets"]) == {"moving"}
    assert {"entropy", "offset"} == set(record["tasks"]["colorization"]["numbers"])
    assert (out / "colorization_colours.png").exists()
    assert (out / "table.md").read_text().strip() in printed


def test_asking_twice_gives_the_same(trained, tmp_path):
    results = []
    for name in ("a", "b"):
        main(["pretext-eval", "--checkpoint", str(trained), "-o", str(tmp_path / name)])
        results.append(json.loads((tmp_path / name / "result.json").read_text())["tasks"])
    assert results[0] == results[1]


def test_sources_that_were_trained_on_are_left_out(trained, tmp_path):
    """A folder with copies of trained videos under their groups' names, and one that is new."""
    run = load_run(trained)
    own, heldout = unseen_videos(run, None)
    trained_on = [row for row in range(len(own)) if row not in set(heldout.tolist())]
    copied = Path(str(own[trained_on[0]].source))
    folder = tmp_path / copied.parent.name  # a group is named after folder and file
    folder.mkdir()
    shutil.copy(copied, folder / copied.name)
    render_video(folder / "new.mp4", seed=99, seconds=2.5, height=48, width=64)
    manifest_path = tmp_path / "others.parquet"
    assert main(["scan", str(folder), "-o", str(manifest_path), "--workers", "1"]) == 0
    other, rows = unseen_videos(run, manifest_path)
    assert [Path(str(other[row].source)).name for row in rows] == ["new.mp4"]
    data = clip_dataset(run.config, run.model, other, rows, shuffle=False)
    assert len(data) == 1
    only_old = tmp_path / "old.parquet"
    (folder / "new.mp4").unlink()
    main(["scan", str(folder), "-o", str(only_old), "--workers", "1"])
    with pytest.raises(UserError, match="the run has trained on every video of"):
        unseen_videos(run, only_old)


def test_json_is_the_record_and_all_that_is_printed(trained, tmp_path, capsys):
    arguments = ["--checkpoint", str(trained), "--clips-per-video", "1", "-o", str(tmp_path)]
    assert main(["pretext-eval", *arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert printed == json.loads(
        (tmp_path / "result.json").read_text(), parse_constant=lambda _: None
    )
    assert set(printed["tasks"]) >= {"order_verification", "colorization"}


def test_bad_input_is_one_line(trained, tmp_path, capsys):
    def said(*arguments: str) -> str:
        capsys.readouterr()
        assert main(["pretext-eval", *arguments]) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert len(error) == 1
        return error[0]

    out = ["-o", str(tmp_path / "out")]
    assert "does not exist" in said("--checkpoint", str(tmp_path / "nothing"), *out)
    assert "must be at least 1" in said(
        "--checkpoint", str(trained), "--clips-per-video", "0", *out
    )
    (tmp_path / "file").write_text("")
    assert "is a file" in said("--checkpoint", str(trained), "-o", str(tmp_path / "file"))
    assert not (tmp_path / "out").exists()
