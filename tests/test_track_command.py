"""`videossl track` from the command line: what it writes, what it never reads, and what it refuses."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from numbered_video import write_rotation_flag
from numpy.typing import NDArray
from PIL import Image

from videossl.__main__ import main
from videossl.commands.track_rows import foreseen_time
from videossl.errors import UserError
from videossl.io.index_masks import read_mask, write_mask
from videossl.io.pictures import write_video
from videossl.tracking import tracking
from videossl.tracking.davis import read_tree
from videossl.tracking.features import LabPatches
from videossl.tracking.overlay import draw_mask
from videossl.tracking.protocol import preset
from videossl.tracking.sequence import davis_footage, video_footage
from videossl.tracking.tracking import Row

H, W, FRAMES = 48, 72, 6
SMALL = ["--set", "short_side=none", "--device", "cpu", "--workers", "1"]


def frame_and_mask(t: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A textured square that moves over a textured ground, with a second object below it."""
    random = np.random.default_rng(0)
    frame = random.integers(60, 120, (H, W, 3)).astype(np.uint8)
    mask = np.zeros((H, W), np.uint8)
    frame[8:24, 8 + 2 * t : 32 + 2 * t] = random.integers(120, 250, (16, 24, 3))
    mask[8:24, 8 + 2 * t : 32 + 2 * t] = 1
    frame[30:44, 40 - 2 * t : 60 - 2 * t] = random.integers(0, 60, (14, 20, 3))
    mask[30:44, 40 - 2 * t : 60 - 2 * t] = 2
    return frame, mask


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    root = tmp_path / "davis"
    for name in ("ant", "bee"):
        for folder in ("JPEGImages", "Annotations"):
            (root / folder / "480p" / name).mkdir(parents=True)
        for t in range(FRAMES):
            frame, mask = frame_and_mask(t)
            Image.fromarray(frame).save(root / f"JPEGImages/480p/{name}/{t:05d}.jpg", quality=95)
            write_mask(root / f"Annotations/480p/{name}/{t:05d}.png", mask)
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/val.txt").write_text("ant\nbee\n")
    return root


def track(checkpoint: Path, davis: Path, out: Path, *more: str) -> int:
    return main(
        [
            "track",
            "--checkpoint",
            str(checkpoint),
            "--davis",
            str(davis),
            "--out",
            str(out),
            *SMALL,
            *more,
        ]
    )


def masks_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*/0*.png"))
    }


def test_a_run_writes_masks_tables_record_and_overlays(
    checkpoint: Path, davis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert track(checkpoint, davis, out, "--baselines", "--untrained-seeds", "2") == 0
    printed = capsys.readouterr().out
    rows = ["identity", "lab", "untrained_seed0", "untrained_seed1", "mine_step1"]
    for row in rows:
        assert row in printed
        assert len(masks_in(out / row)) == 2 * FRAMES
        assert (out / row / "global_results-val.csv").is_file()
    assert "untrained (mean of 2)" in printed
    np.testing.assert_array_equal(read_mask(out / "mine_step1/ant/00000.png"), frame_and_mask(0)[1])
    np.testing.assert_array_equal(read_mask(out / "identity/bee/00005.png"), frame_and_mask(0)[1])
    result = json.loads((out / "result.json").read_text())
    assert result["complete"] is True
    assert list(result["rows"]) == rows
    trained = result["rows"]["mine_step1"]
    assert trained["protocol"]["temperature"] == 0.02
    assert trained["features"] == {
        "encoder": "tiny",
        "stage": "res3",
        "channels": 64,
        "cell_pixels": 4,
    }
    assert len(trained["per_object"]["ant_1"]["J_frames"]) == FRAMES - 2
    assert trained["global"]["J-Mean"] > result["rows"]["identity"]["global"]["J-Mean"]
    with av.open(str(out / "overlay/ant.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == FRAMES
    with Image.open(out / "overlay/ant.png") as sheet:
        assert sheet.height == 180 * (len(rows) + 1)
    with av.open(str(out / "comparison/bee.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == FRAMES
        assert container.streams.video[0].width == 3 * W + 2 * 4  # prediction, truth, difference
    assert "untrained (mean of 2)" in (out / "index.html").read_text()


def test_json_is_the_record_and_all_that_is_printed(
    checkpoint: Path, davis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert track(checkpoint, davis, tmp_path / "out", "--sequences", "ant", "--json") == 0
    captured = capsys.readouterr()
    record = json.loads((tmp_path / "out/result.json").read_text())
    assert json.loads(captured.out, parse_constant=pytest.fail) == record
    assert record["complete"] is True
    assert "J&F-Mean" in captured.err


def test_a_run_says_how_far_its_scores_hold(
    checkpoint: Path, davis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert track(checkpoint, davis, out, "--baselines", "identity,untrained") == 0
    printed = capsys.readouterr().out
    assert printed.startswith((out / "table.txt").read_text())
    assert (
        "With 95% bootstrap intervals over 2 sequences, so few that they are too narrow:" in printed
    )
    assert "mine_step1 minus row" in printed
    result = json.loads((out / "result.json").read_text())
    assert result["bootstrap"]["num_resamples"] == 10_000
    for row in result["rows"].values():
        low, high = row["intervals"]["J&F-Mean"]
        # Sequences of one score have an interval of no width, whose means are summed in another order.
        assert low - 1e-12 <= row["global"]["J&F-Mean"] <= high + 1e-12
    assert list(result["differences"]) == ["identity", "untrained_seed0"]
    found = result["differences"]["identity"]
    trained, identity = (result["rows"][row]["global"] for row in ("mine_step1", "identity"))
    gain = trained["F-Mean"] - identity["F-Mean"]
    assert found["difference"]["F-Mean"] == pytest.approx(gain)
    assert (found["sequences_won"], found["num_sequences"]) == (2, 2)


def test_one_sequence_has_scores_without_intervals(
    checkpoint: Path, davis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--sequences", "bee", "--baselines", "identity"]
    assert track(checkpoint, davis, tmp_path / "out", *arguments) == 0
    assert "One sequence: no interval can be given." in capsys.readouterr().out
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert "intervals" not in result["rows"]["mine_step1"]
    assert result["differences"]["identity"]["sequences_won"] == 1


def test_the_tree_is_judged_before_a_checkpoint_is_read(
    davis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(davis / "JPEGImages/480p/ant")
    (davis / "Annotations/480p/bee/00000.png").unlink()
    (tmp_path / "no_encoder.pt").write_bytes(b"no encoder")
    assert track(tmp_path / "no_encoder.pt", davis, tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert "ant: no frames" in line
    assert "bee: no mask for the first frame 00000" in line


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys, videossl.__main__ as m\n"
        "try: m.main(['track', '--help'])\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "False"
    assert "videossl track --checkpoint runs/a" in done.stdout


def test_processes_side_by_side_write_the_same_masks(
    checkpoint: Path, davis: Path, tmp_path: Path
) -> None:
    assert track(checkpoint, davis, tmp_path / "one") == 0
    assert track(checkpoint, davis, tmp_path / "two", "--workers", "2") == 0
    assert masks_in(tmp_path / "one/trained") == masks_in(tmp_path / "two/trained")


def test_the_score_command_agrees_with_the_track_command(
    checkpoint: Path, davis: Path, tmp_path: Path
) -> None:
    assert track(checkpoint, davis, tmp_path / "out") == 0
    arguments = [
        "score",
        str(tmp_path / "out/mine_step1"),
        "--davis",
        str(davis),
        "--out",
        str(tmp_path / "scores"),
    ]
    assert main(arguments) == 0
    scored = json.loads((tmp_path / "scores/result.json").read_text())
    tracked = json.loads((tmp_path / "out/result.json").read_text())["rows"]["mine_step1"]
    assert scored["per_object"] == tracked["per_object"]


def test_later_masks_are_never_read(checkpoint: Path, davis: Path, tmp_path: Path) -> None:
    assert track(checkpoint, davis, tmp_path / "with", "--baselines", "lab") == 0
    for path in (davis / "Annotations").rglob("*.png"):
        if path.stem != "00000":
            path.unlink()
    assert track(checkpoint, davis, tmp_path / "without", "--baselines", "lab") == 0
    for row in ("mine_step1", "lab"):
        assert masks_in(tmp_path / "with" / row) == masks_in(tmp_path / "without" / row)
    assert not (tmp_path / "without/mine_step1/global_results-val.csv").exists()
    with av.open(str(tmp_path / "without/comparison/ant.mp4")) as container:
        assert container.streams.video[0].width == 2 * W + 4  # no truth to show
    assert (tmp_path / "without/index.html").is_file()


def test_a_second_run_leaves_nothing_of_the_first(
    checkpoint: Path, davis: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert track(checkpoint, davis, out, "--baselines", "identity") == 0
    assert (out / "mine_step1").is_dir()
    run = tmp_path / "lab"  # called like a baseline
    shutil.copytree(checkpoint.parent, run / "checkpoints")
    assert track(run, davis, out, "--sequences", "bee", "--baselines", "lab") == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "attention",
        "comparison",
        "index.html",
        "lab",
        "lab_encoder",
        "overlay",
        "result.json",
        "table.txt",
    ]
    assert [path.name for path in (out / "lab_encoder").iterdir() if path.is_dir()] == ["bee"]


@pytest.mark.parametrize("with_marker", [True, False])
def test_a_folder_with_foreign_files_is_refused(
    checkpoint: Path,
    davis: Path,
    tmp_path: Path,
    with_marker: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    (out / "mine_step1").mkdir(parents=True)
    (out / "thesis.txt" if with_marker else out / "mine_step1" / "thesis.txt").write_text("mine")
    if with_marker:
        (out / "result.json").write_text("{}")
    assert track(checkpoint, davis, out) == 2
    assert "choose another --out" in capsys.readouterr().err
    assert list(out.rglob("thesis.txt"))


def test_a_video_of_the_user_is_tracked(checkpoint: Path, tmp_path: Path) -> None:
    video, mask, out = tmp_path / "my clip.mp4", tmp_path / "first.png", tmp_path / "out"
    write_video(video, (frame_and_mask(t)[0] for t in range(FRAMES)), frames_per_second=10)
    write_mask(mask, frame_and_mask(0)[1])
    arguments = [
        "--checkpoint",
        str(checkpoint),
        "--video",
        str(video),
        "--mask",
        str(mask),
        "--out",
        str(out),
    ]
    assert main(["track", *arguments, *SMALL]) == 0
    assert len(masks_in(out / "mine_step1")) == FRAMES
    assert (out / "overlay/my clip.mp4").stat().st_size > 0
    last, truth = read_mask(out / "mine_step1/my clip/00005.png"), frame_and_mask(5)[1]
    assert ((last == 1) & (truth == 1)).sum() > 0.5 * (truth == 1).sum()
    assert json.loads((out / "result.json").read_text())["video"] == str(video)
    small = tmp_path / "small.png"
    write_mask(small, frame_and_mask(0)[1][:-8])
    arguments[arguments.index(str(mask))] = str(small)
    assert main(["track", *arguments, *SMALL]) == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--split", "test"], "split 'test' is unknown; allowed: val"),
        (["--sequences", "cow"], "sequence cow is not in split val; allowed: ant, bee"),
        (
            ["--preset", "stm"],
            "preset 'stm' is unknown; allowed: videossl, vondrick, timecycle",
        ),
        (["--baselines", "tides"], "baseline tides is unknown; allowed: identity, flow, lab"),
        (["--baselines", "torchvision:resnet19"], "torchvision has no image model 'resnet19'"),
        (["--baselines", "torchvision:resnet18@layer9:random"], "has no layer 'layer9'"),
        (["--baselines", "torchvision:resnet18"], "no weights on disk"),
        (["--weights", __file__], "--weights goes with exactly one torchvision baseline"),
        (["--untrained-seeds", "0"], "--untrained-seeds must be >= 1, got 0"),
        (["--workers", "0"], "--workers must be >= 1, got 0"),
        (["--features", "mine:encode"], "give either --checkpoint RUN or --features SPEC"),
        (["--stage", "res5"], "stage 'res5' is unknown; this encoder has res2, res3"),
        (["--set", "top_k"], "--set takes KEY=VALUE"),
        (["--video", "a.mp4"], "give either --davis ROOT or --video FILE"),
        (["--device", "tpu"], "allowed: auto, cpu, cuda"),
        (["--device", "cuda:1"], "one of several GPUs: CUDA_VISIBLE_DEVICES=N"),
    ],
)
def test_wrong_input_is_one_clear_line(
    checkpoint: Path,
    davis: Path,
    tmp_path: Path,
    more: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    assert track(checkpoint, davis, tmp_path / "out", *more) == 2
    lines = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("videossl track:")
    ]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "out").exists()


def test_a_tree_needs_a_folder_for_its_results(
    davis: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["track", "--davis", str(davis)]) == 2
    assert "-o/--out names the folder for results: only --video" in capsys.readouterr().err


def test_flow_and_image_models_are_rows_like_others(
    checkpoint: Path, davis: Path, tmp_path: Path
) -> None:
    pytest.importorskip("cv2")
    out = tmp_path / "out"
    baselines = "torchvision:resnet18@layer1:random,flow"
    assert track(checkpoint, davis, out, "--baselines", baselines) == 0
    result = json.loads((out / "result.json").read_text())
    image_row = "torchvision_resnet18_layer1_random"
    assert list(result["rows"]) == ["flow", image_row, "mine_step1"]
    assert list(result["differences"]) == ["flow", image_row]
    assert result["flow"]["method"] == "DIS, preset medium"
    assert result["rows"][image_row]["features"] == {
        "model": "torchvision:resnet18",
        "layer": "layer1",
        "weights": "random",
        "channels": 64,
        "cell_pixels": 4,
    }
    for row in ("flow", image_row):
        assert len(masks_in(out / row)) == 2 * FRAMES
    assert track(checkpoint, davis, out, "--baselines", baselines, "--workers", "2") == 0


def test_flow_without_opencv_is_refused_before_anything_is_read(
    davis: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert track(tmp_path / "nowhere", davis, tmp_path / "out", "--baselines", "flow") == 2
    assert "optical flow needs OpenCV: pip install" in capsys.readouterr().err


def test_long_runs_say_how_long_they_will_take(davis: Path) -> None:
    sequences = read_tree(davis, split="val")
    footages = [davis_footage(sequence) for sequence in sequences]
    protocol = preset("videossl", {"short_side": "none"})
    rows = [Row("identity", protocol, None), Row("lab", protocol, LabPatches)]
    assert foreseen_time(rows, footages, num_workers=1) is None
    line = foreseen_time(rows, footages, num_workers=2, at_least_frames=12)
    assert re.fullmatch(
        r"about 0 min for 1 row of 12 frames: 0\.\d+ s to encode one, 0\.\d+ s to propagate, 2 at a time",
        str(line),
    )


def encode(frames: torch.Tensor) -> torch.Tensor:
    """Somebody else's encoder: colours of cells of 4 pixels, (T, 3, h, w)."""
    return torch.nn.functional.avg_pool2d(frames.float(), 4)


def test_features_of_others_are_tracked_in_place_of_a_checkpoint(
    davis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["--features", f"{__name__}:encode", "--davis", str(davis), "-o", str(out)]
    assert main(["track", *arguments, *SMALL, "--baselines", "identity"]) == 0
    result = json.loads((out / "result.json").read_text())
    assert list(result["rows"]) == ["identity", "test_track_command.encode"]
    assert (result["checkpoint"], result["main_row"]) == (None, "test_track_command.encode")
    assert len(masks_in(out / "test_track_command.encode")) == 2 * FRAMES
    assert (
        f"<h1>Tracking with {__name__}:encode: davis val</h1>" in (out / "index.html").read_text()
    )
    capsys.readouterr()
    for more, message in (
        (["--baselines", "untrained"], "baseline untrained needs the architecture of a"),
        (["--stage", "res3"], "it goes with --checkpoint"),
    ):
        assert main(["track", *arguments, *SMALL, *more]) == 2
        assert message in capsys.readouterr().err
    assert (out / "index.html").is_file()


def test_missing_and_damaged_checkpoints_are_refused(
    checkpoint: Path, davis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert track(tmp_path / "nowhere", davis, tmp_path / "out") == 2
    assert "does not exist" in capsys.readouterr().err
    damaged = tmp_path / "step_00000001.pt"
    damaged.write_bytes(checkpoint.read_bytes()[:1000])
    assert track(damaged, davis, tmp_path / "out") == 2
    assert "damaged" in capsys.readouterr().err


def test_a_tree_without_masks_is_refused(
    checkpoint: Path, davis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(davis / "Annotations")
    assert track(checkpoint, davis, tmp_path / "out") == 2
    assert "has no Annotations/480p" in capsys.readouterr().err


def test_drawn_masks_tint_objects_and_leave_the_ground() -> None:
    frame, mask = frame_and_mask(0)
    drawn = draw_mask(frame, mask)
    assert (drawn[0:6, 40:] == frame[0:6, 40:]).all()
    assert (drawn[mask > 0] != frame[mask > 0]).any(-1).all()
    assert (draw_mask(frame, np.zeros_like(mask)) == frame).all()


def test_videos_of_odd_size_are_written(tmp_path: Path) -> None:
    frames = [np.full((33, 47, 3), 40 * t, np.uint8) for t in range(4)]
    write_video(tmp_path / "odd.mp4", frames, frames_per_second=25)
    with av.open(str(tmp_path / "odd.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.codec_context.pix_fmt) == (46, 32, "yuv420p")


def test_a_run_that_was_stopped_goes_on_and_ends_as_if_it_had_not(
    checkpoint: Path, davis: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert track(checkpoint, davis, whole) == 0
    tracked: list[str] = []
    original = tracking.propagate

    def stops_at_the_second(*args: object, **settings: object) -> object:
        tracked.append("one")
        if len(tracked) == 2:
            raise KeyboardInterrupt
        return original(*args, **settings)

    monkeypatch.setattr(tracking, "propagate", stops_at_the_second)
    assert track(checkpoint, davis, out) == 130
    kept = (out / "mine_step1/ant/00003.png").stat().st_mtime_ns
    assert track(checkpoint, davis, out) == 0
    assert len(tracked) == 3  # ant, bee in vain, bee
    assert (out / "mine_step1/ant/00003.png").stat().st_mtime_ns == kept
    assert masks_in(out / "mine_step1") == masks_in(whole / "mine_step1")
    results = [json.loads((folder / "result.json").read_text()) for folder in (whole, out)]
    for result in results:
        del result["rows"]["mine_step1"]["seconds_per_frame"]
    assert results[0] == results[1]


@pytest.mark.parametrize("change", ["setting", "mask", "frame"])
def test_what_was_stopped_under_other_settings_or_inputs_is_not_kept(
    checkpoint: Path, davis: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    out, calls = tmp_path / "out", []
    original = tracking.propagate

    def stops_at_the_second(*args: object, **settings: object) -> object:
        calls.append("one")
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args, **settings)

    monkeypatch.setattr(tracking, "propagate", stops_at_the_second)
    assert track(checkpoint, davis, out) == 130
    more: list[str] = []
    if change == "setting":
        more = ["--set", "top_k=3"]
    elif change == "mask":
        write_mask(davis / "Annotations/480p/ant/00000.png", frame_and_mask(1)[1])
    else:
        frame = Image.fromarray(255 - frame_and_mask(4)[0])
        frame.save(davis / "JPEGImages/480p/ant/00004.jpg", quality=95)
    assert track(checkpoint, davis, out, *more) == 0
    assert len(calls) == 4  # ant, bee in vain, both anew
    assert track(checkpoint, davis, tmp_path / "fresh", *more) == 0
    assert masks_in(out / "mine_step1") == masks_in(tmp_path / "fresh/mine_step1")


def test_inputs_inside_of_the_output_are_refused_and_kept(
    davis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = tmp_path / "out/features"
    features.mkdir(parents=True)
    (tmp_path / "out/result.json").write_text("{}")
    np.save(features / "ant.npy", np.zeros((FRAMES, 4, 6, 9), np.float32))
    arguments = ["--features", str(features), "--davis", str(davis), "--out", str(tmp_path / "out")]
    assert main(["track", *arguments, *SMALL]) == 2
    assert "lies inside of --out" in capsys.readouterr().err
    assert (features / "ant.npy").is_file()


def test_sequences_that_cannot_be_scored_are_named_and_the_others_scored(
    checkpoint: Path, davis: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (davis / "Annotations/480p/ant/00002.png").unlink()
    with caplog.at_level("INFO", "videossl"):
        assert track(checkpoint, davis, tmp_path / "out") == 0
    assert "ant is not scored: no masks for 1 frames (first: 00002)" in caplog.text
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert set(result["rows"]["mine_step1"]["per_object"]) == {"bee_1", "bee_2"}


def test_a_cap_on_memory_leaves_the_masks_as_they_are(
    checkpoint: Path, davis: Path, tmp_path: Path
) -> None:
    assert track(checkpoint, davis, tmp_path / "free") == 0
    assert track(checkpoint, davis, tmp_path / "capped", "--max-mib", "1") == 0
    assert masks_in(tmp_path / "free/trained") == masks_in(tmp_path / "capped/trained")
    assert track(checkpoint, davis, tmp_path / "none", "--max-mib", "0") == 2


def video_of(path: Path, width: int, height: int, rotation: int = 0) -> Path:
    """A few grey frames; stored turned if they are to be shown so."""
    stored = (height, width) if rotation % 180 else (width, height)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = *stored, "yuv420p"
        for _ in range(3):
            pixels = np.full((stored[1], stored[0], 3), 90, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    if rotation:
        write_rotation_flag(path, rotation)
    return path


@pytest.mark.parametrize("size", [(96, 64), (192, 128), (95, 63), (60, 40), (50, 34), (1920, 1280)])
@pytest.mark.parametrize("rotation", [0, 90])
def test_a_mask_of_the_shape_of_the_frames_is_scaled_to_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, size: tuple[int, int], rotation: int
) -> None:
    video = video_of(tmp_path / "a.mp4", 96, 64, rotation)
    width, height = size
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height // 2, width // 2 :] = 1
    write_mask(tmp_path / "m.png", mask)
    with caplog.at_level("INFO", "videossl"):
        footage = video_footage(video, tmp_path / "m.png")
    # Nearest neighbour, pixel by pixel: the centre of each pixel lies in a pixel of what was given.
    rows = [int((y + 0.5) * height / 64) for y in range(64)]
    columns = [int((x + 0.5) * width / 96) for x in range(96)]
    np.testing.assert_array_equal(footage.first_mask, mask[np.ix_(rows, columns)])
    said = [r.getMessage() for r in caplog.records if "nearest neighbour" in r.getMessage()]
    assert len(said) == (size != (96, 64))


@pytest.mark.parametrize("size", [(64, 96), (96, 60), (100, 64), (48, 36)])
def test_a_mask_of_another_shape_fails_in_a_line(tmp_path: Path, size: tuple[int, int]) -> None:
    video = video_of(tmp_path / "a.mp4", 96, 64)
    write_mask(tmp_path / "m.png", np.ones(size[::-1], np.uint8))
    with pytest.raises(
        UserError, match=rf"m\.png is {size[0]}x{size[1]} but the frames of .* are 96x64"
    ):
        video_footage(video, tmp_path / "m.png")
