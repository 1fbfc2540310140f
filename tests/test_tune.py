"""`videossl tune`: what it searches, that it never does so on a val list, and that it goes on after a stop."""

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from videossl.__main__ import main
from videossl.engine.checkpoint import save_checkpoint
from videossl.eval.davis import listed_sequences, read_tree
from videossl.eval.davis_splits import OFFICIAL_VAL
from videossl.eval.features import EncoderFeatures
from videossl.eval.presets import PRESETS, parse_overrides, preset
from videossl.eval.settings_search import (
    all_combinations,
    changes,
    default_grid,
    parse_grid,
    search_by_coordinate,
)
from videossl.eval.stored_features import StoredFeatures
from videossl.eval.tuning import Trial
from videossl.masks import write_mask
from videossl.models.encoder import Encoder, EncoderSpec

SHARED_SETS = Path(__file__).parents[2] / "shared/data/davis/ImageSets"
H, W, FRAMES = 32, 48, 5
SMALL = ("--set", "short_side=none", "--device", "cpu", "--workers", "1")
GRID = ("--grid", "temperature=0.02,0.2", "--grid", "radius=2,none")


def frame_and_mask(t: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    random = np.random.default_rng(0)
    frame = random.integers(60, 120, (H, W, 3)).astype(np.uint8)
    mask = np.zeros((H, W), np.uint8)
    for number, (top, left, low) in enumerate(((4, 4 + 3 * t, 120), (18, 28 - 3 * t, 0)), start=1):
        frame[top : top + 10, left : left + 14] = random.integers(low, low + 60, (10, 14, 3))
        mask[top : top + 10, left : left + 14] = number
    return frame, mask


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    root = tmp_path / "davis"
    for name in ("ant", "bee"):
        for folder in ("JPEGImages", "Annotations"):
            (root / folder / "480p" / name).mkdir(parents=True)
        for t in range(FRAMES):
            frame, mask = frame_and_mask(t if name == "ant" else 2 * t // 3)
            Image.fromarray(frame).save(root / f"JPEGImages/480p/{name}/{t:05d}.jpg", quality=95)
            write_mask(root / f"Annotations/480p/{name}/{t:05d}.png", mask)
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/train.txt").write_text("ant\nbee\n")
    return root


def save_encoder(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    encoder = Encoder(EncoderSpec("tiny", "res3"), track_stage="res3")
    weights = {f"encoder.{key}": value for key, value in encoder.state_dict().items()}
    state = {"encoder": encoder.describe(), "model": weights}
    return save_checkpoint(folder / "checkpoints", state, step=1, keep=1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("run") / "mine", seed=0)


def tune(checkpoint: Path, davis: Path, out: Path, *more: str) -> int:
    paths = ["--checkpoint", str(checkpoint), "--davis", str(davis), "--out", str(out)]
    return main(["tune", *paths, *SMALL, *more])


def result_of(out: Path) -> dict:
    return json.loads((out / "result.json").read_text())


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Callable[[type], list[int]]:
    """Counts how often objects of a class are called."""

    def begin(kind: type) -> list[int]:
        calls, original = [0], kind.__call__

        def counted(self: object, *arguments: object) -> object:
            calls[0] += 1
            return original(self, *arguments)

        monkeypatch.setattr(kind, "__call__", counted)
        return calls

    return begin


def test_the_line_printed_tracks_as_well_as_was_said(
    checkpoint: Path, davis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(checkpoint, davis, tmp_path / "out", *GRID, "--full") == 0
    printed = capsys.readouterr().out
    result = result_of(tmp_path / "out")
    assert result["complete"] is True
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "journal.jsonl",
        "result.json",
        "table.txt",
    ]
    settings = result["settings"]
    assert len(settings) == 5  # the start and four combinations, of which none is the start
    values = [setting["J&F-Mean"] for setting in settings]
    assert values == sorted(values, reverse=True)
    assert result["use"] in printed.splitlines()
    line = result["use"].split()
    best = preset(line[1], parse_overrides(line[3::2]))
    assert settings[0]["protocol"] == json.loads(
        json.dumps({**best.as_dict(), "source": PRESETS["videossl"].source})
    )
    track = ["--checkpoint", str(checkpoint), "--davis", str(davis), "--split", "train", *line]
    assert main(["track", *track, *SMALL[2:], "--out", str(tmp_path / "tracked")]) == 0
    tracked = json.loads((tmp_path / "tracked/result.json").read_text())["rows"]["mine_step1"]
    assert tracked["global"]["J&F-Mean"] == pytest.approx(settings[0]["J&F-Mean"], abs=1e-9)
    per_object = tracked["per_object"]
    j_of_ant = [per_object[f"ant_{number}"]["J"]["mean"] for number in (1, 2)]
    assert settings[0]["per_sequence"]["ant"]["J"] == pytest.approx(np.mean(j_of_ant))
    start = next(s for s in settings if s["changed"] == {"short_side": "none"})
    assert settings[0]["sequences_won"] == sum(
        settings[0]["per_sequence"][name]["J&F"] > start["per_sequence"][name]["J&F"]
        for name in ("ant", "bee")
    )


def test_no_frame_is_encoded_again_for_another_setting(
    checkpoint: Path, davis: Path, tmp_path: Path, count: Callable[[type], list[int]]
) -> None:
    calls = count(EncoderFeatures)
    assert tune(checkpoint, davis, tmp_path / "one", "--grid", "temperature=0.02") == 0
    once = calls[0]
    assert tune(checkpoint, davis, tmp_path / "many", *GRID, "--full") == 0
    assert calls[0] == 2 * once


def test_a_search_goes_on_where_it_was_cut_off(
    checkpoint: Path, davis: Path, tmp_path: Path, count: Callable[[type], list[int]]
) -> None:
    out, arguments = tmp_path / "out", (*GRID, "--passes", "1")
    assert tune(checkpoint, davis, out, *arguments) == 0
    whole = result_of(out)
    journal = out / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:3]) + lines[3][:50])  # header, two settings, half of a third
    trials = count(Trial)
    assert tune(checkpoint, davis, out, *arguments) == 0
    assert trials[0] == 2 * (len(lines) - 3)  # two sequences for each setting that was lost
    assert result_of(out) == whole
    assert journal.read_text() == "".join(lines)


@pytest.mark.parametrize("change", ["checkpoint", "tree", "max_frames"])
def test_what_was_tried_on_something_else_is_never_used(
    checkpoint: Path, davis: Path, tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, more = tmp_path / "out", ["--grid", "temperature=0.02"]
    assert tune(checkpoint, davis, out, *more) == 0
    if change == "checkpoint":
        checkpoint = save_encoder(tmp_path / "other", seed=1)
    elif change == "tree":
        write_mask(davis / "Annotations/480p/bee/00002.png", frame_and_mask(0)[1])
    else:
        more += ["--max-frames", "4"]
    assert tune(checkpoint, davis, out, *more) == 2
    pattern = rf"is of a search with another (tree, )?{change}: choose another --out"
    assert re.search(pattern, capsys.readouterr().err)


def test_only_the_first_frames_are_used_if_asked(
    checkpoint: Path, davis: Path, tmp_path: Path
) -> None:
    arguments = ("--grid", "temperature=0.02", "--max-frames", "3")
    assert tune(checkpoint, davis, tmp_path / "with", *arguments) == 0
    for t in range(3, FRAMES):
        for path in davis.rglob(f"{t:05d}.*"):
            path.unlink()
    assert tune(checkpoint, davis, tmp_path / "cut", "--grid", "temperature=0.02") == 0
    assert result_of(tmp_path / "with")["settings"] == result_of(tmp_path / "cut")["settings"]


def test_a_trial_can_be_sent_to_another_process(davis: Path, tmp_path: Path) -> None:
    sequence = read_tree(davis, split="train", need_masks=True)[0]
    np.save(tmp_path / "ant.npy", np.random.default_rng(0).random((FRAMES, 3, 8, 12)))
    trial = Trial(preset("videossl"), StoredFeatures(tmp_path), 4)
    sent = pickle.loads(pickle.dumps(trial))
    assert sent(pickle.loads(pickle.dumps(sequence))) == trial(sequence)


@pytest.mark.parametrize(
    ("split", "names", "message"),
    [
        ("val", "ant", "--split val is for reporting"),
        ("test-dev", "ant", "--split test-dev is for reporting"),
        ("trainval", "ant camel", r"holds 1 sequences .*first: camel, of the val list of DAVIS"),
        ("mine", "ant bee", r"--split mine holds 1 sequences .*first: bee, of .*val_own.txt"),
    ],
)
def test_lists_for_reporting_are_refused(
    checkpoint: Path,
    davis: Path,
    tmp_path: Path,
    split: str,
    names: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (davis / "ImageSets/2016").mkdir()
    (davis / "ImageSets/2016/val_own.txt").write_text("bee\n")
    (davis / f"ImageSets/2017/{split}.txt").write_text(names.replace(" ", "\n"))
    arguments = ["--split", split, "--sequences", "ant"]  # the part used is not what counts
    assert tune(checkpoint, davis, tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err
    assert len([line for line in error.splitlines() if line.startswith("videossl tune:")]) == 1
    assert re.search(message, error)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not SHARED_SETS.exists(), reason="no shared data beside the checkout")
def test_the_names_known_are_those_of_davis() -> None:
    assert sorted(OFFICIAL_VAL) == sorted(listed_sequences(SHARED_SETS / "2017/val.txt"))
    assert set(listed_sequences(SHARED_SETS / "2016/val.txt")) <= set(OFFICIAL_VAL)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--grid", "short_side=240,480"], "give one value by --set short_side="),
        (["--grid", "temperature"], "--grid takes KEY=V1,V2,..., got 'temperature'"),
        (["--grid", "top_k=5,,9"], "--grid takes KEY=V1,V2,..., got 'top_k=5,,9'"),
        (["--grid", "heat=1,2"], "protocol setting 'heat' is unknown; allowed: short_side"),
        (["--grid", "top_k=5,many"], "protocol setting top_k must be int or none, got 'many'"),
        (["--preset", "stm"], "preset 'stm' is unknown"),
        (["--set", "top_k"], "--set takes KEY=VALUE"),
        (["--max-frames", "2"], "--max-frames must be >= 3, got 2"),
        (["--passes", "0"], "--passes must be >= 1, got 0"),
        (["--split", "all"], "split 'all' is unknown; allowed: train"),
        (["--stage", "res9"], "stage 'res9' is unknown"),
    ],
)
def test_wrong_input_is_one_clear_line(
    checkpoint: Path,
    davis: Path,
    tmp_path: Path,
    more: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert tune(checkpoint, davis, tmp_path / "out", *more) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("videossl tune:")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "out").exists()


def test_a_folder_with_foreign_files_is_refused(
    checkpoint: Path, davis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("mine")
    assert tune(checkpoint, davis, tmp_path / "out") == 2
    assert "files that are not from this command (thesis.txt)" in capsys.readouterr().err
    assert (tmp_path / "out/thesis.txt").read_text() == "mine"


def test_a_search_that_was_killed_while_it_wrote_goes_on(
    checkpoint: Path, davis: Path, tmp_path: Path
) -> None:
    arguments = ("--grid", "temperature=0.02", "--sequences", " ant, bee,")
    assert tune(checkpoint, davis, tmp_path / "out", *arguments) == 0
    (tmp_path / "out/.result.9999.partial.json").write_text("{")
    assert tune(checkpoint, davis, tmp_path / "out", *arguments) == 0


def test_an_output_that_cannot_be_made_is_told_before_the_encoder_is_read(
    davis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("text")
    assert tune(tmp_path / "file", davis, tmp_path / "file/out") == 2
    assert "file is a file: --out must lie in a folder" in capsys.readouterr().err


def test_features_that_do_not_fit_on_the_disk_fail_after_the_first_sequence(
    checkpoint: Path,
    davis: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    assert tune(checkpoint, davis, tmp_path / "out") == 2
    assert "features of 10 frames take about" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "out/features").glob("*.npy")] == ["ant.npy"]


def test_one_setting_after_the_other_finds_the_best_of_settings_that_do_not_interact() -> None:
    grid = {"a": ("1", "2", "3"), "b": ("1", "2"), "c": ("5", "6", "7")}
    wanted = {"a": "3", "b": "1", "c": "6"}
    asked: list[dict[str, str]] = []

    def evaluate(settings: dict[str, str]) -> float | None:
        asked.append(dict(settings))
        if settings.get("a") == "2":
            return None  # does not go with the others
        return float(sum(settings.get(key) == value for key, value in wanted.items()))

    search_by_coordinate({"b": "2"}, grid, evaluate, passes=3)
    brute = max(all_combinations({"b": "2"}, grid), key=lambda settings: evaluate(settings) or -1.0)
    assert brute == wanted
    assert asked[1:4] == [{"b": "2", "a": value} for value in "123"]
    assert wanted in asked
    # Two rounds: the second changes nothing.
    assert len(asked) == 1 + 2 * 8 + 19


def test_the_start_wins_ties() -> None:
    asked: list[dict[str, str]] = []

    def evaluate(settings: dict[str, str]) -> float:
        asked.append(dict(settings))
        return 0.5

    search_by_coordinate({}, {"a": ("1", "2"), "b": ("1",)}, evaluate, passes=5)
    assert asked == [{}, {"a": "1"}, {"a": "2"}, {"b": "1"}]


def test_values_with_commas_are_parted_by_slashes() -> None:
    assert parse_grid(["top_k=5,10,5", "memory_offsets=1,3,5/1,2,3"]) == {
        "top_k": ("5", "10"),
        "memory_offsets": ("1,3,5", "1,2,3"),
    }


def test_default_searches_leave_out_what_a_protocol_does_not_use() -> None:
    assert list(default_grid(PRESETS["videossl"])) == [
        "temperature",
        "top_k",
        "radius",
        "context_frames",
    ]
    assert list(default_grid(PRESETS["vondrick"])) == ["temperature", "context_frames"]
    assert list(default_grid(PRESETS["mast"])) == ["temperature", "radius"]


@pytest.mark.parametrize("name", PRESETS)
def test_changes_said_as_text_make_the_protocol_again(name: str) -> None:
    text = changes(PRESETS[name], "videossl")
    made = preset("videossl", text).as_dict()
    assert {**made, "source": ""} == {**PRESETS[name].as_dict(), "source": ""}
