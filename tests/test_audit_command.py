"""`videossl audit` as it is called, and what it refuses."""

import json
import math

import pytest

from videossl.__main__ import main
from videossl.audit import codec_traces
from videossl.audit.battery import NoBaselines
from videossl.audit.codec_traces import VARIANTS
from videossl.audit.findings import Audit, TaskAudit, audit_record, audit_text
from videossl.audit.subject import audited_config
from videossl.config import Config, validate
from videossl.errors import UserError
from videossl.stats import Interval

QUICK = ["--control-videos", "0", "--head-steps", "0", "--no-swap"]


@pytest.fixture
def config_file(tmp_path, video_folder):
    path = tmp_path / "config.yaml"
    path.write_text(
        "out: unused\n"
        "data: {short_side: 48, videos_per_step: 4, num_workers: 0, val_fraction: 0.3}\n"
        "tasks: {order_verification: "
        "{crop_size: 32, num_frames: 1, window_seconds: 1.2, min_gap_seconds: 0.1, min_difference: 0.0}}\n"
    )
    return path


def test_the_command_writes_what_it_prints(tmp_path, config_file, video_folder, capsys):
    out = tmp_path / "audit"
    arguments = ["--config", str(config_file), "--manifest", str(video_folder), "-o", str(out)]
    assert main(["audit", *arguments, "--train-clips", "2", "--heldout-clips", "2", *QUICK]) == 0
    printed = capsys.readouterr().out
    assert (out / "audit.md").read_text().strip() in printed
    record = json.loads((out / "audit.json").read_text())
    (task,) = record["tasks"].values()
    assert {found["probe"] for found in task["shortcut baselines"]} >= {"P2", "P3", "P4", "P6"}
    judged = [found for found in task["shortcut baselines"] if found["probe"] != "P6"]
    assert all(found["verdict"] == "too few videos" for found in judged)
    assert task["best_cheap_cheat"]["accuracy"][0] == max(
        c["accuracy"][0]
        for c in task["shortcut baselines"]
        if c["probe"] in ("P2", "P3", "P4") and c["form"] == "evaluation"
    )


def test_json_is_the_record_and_all_that_is_printed(tmp_path, config_file, video_folder, capsys):
    arguments = ["--config", str(config_file), "--manifest", str(video_folder), "-o", str(tmp_path)]
    counts = ["--train-clips", "1", "--heldout-clips", "1"]
    assert main(["audit", *arguments, *counts, *QUICK, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert printed == json.loads((tmp_path / "audit.json").read_text())


def test_nothing_to_audit_fails(tmp_path, capsys):
    assert main(["audit", "-o", str(tmp_path / "a")]) == 2
    assert "give --config FILE, or --checkpoint RUN" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--control-videos", "1", "--control-videos is 1: it must be at least 10, or 0 for none"),
        ("--control-videos", "-3", "--control-videos is -3: it must be at least 10"),
        ("--train-clips", "0", "--train-clips is 0: it must be at least 1"),
        ("--heldout-clips", "-1", "--heldout-clips is -1: it must be at least 1"),
        ("--head-steps", "-1", "--head-steps is -1: it must be at least 0"),
    ],
)
def test_numbers_that_judge_nothing_fail(tmp_path, capsys, option, value, expected):
    assert main(["audit", "-o", str(tmp_path / "a"), option, value]) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert len(said.strip().splitlines()) == 1


def test_a_file_as_output_fails(tmp_path, capsys):
    out = tmp_path / "a"
    out.write_text("mine")
    assert main(["audit", "-o", str(out)]) == 2
    assert f"{out} is a file: -o takes a folder" in capsys.readouterr().err


def test_without_held_out_videos_it_fails(tmp_path, config_file, video_folder, capsys):
    arguments = ["--config", str(config_file), "--manifest", str(video_folder)]
    out = ["-o", str(tmp_path / "a"), "data.val_fraction=0"]
    assert main(["audit", *arguments, *out]) == 2
    assert "data.val_fraction is 0: shortcut baselines are judged" in capsys.readouterr().err


def test_a_run_is_set_beside_the_baselines(tmp_path, config_file, video_folder):
    """With files coded anew, heads on a random encoder, and the picture."""
    run, out = tmp_path / "run", tmp_path / "audit"
    settings = [
        f"data.manifest={video_folder}",
        f"out={run}",
        "train.steps=2",
        "train.save_every=2",
    ]
    assert main(["train", "--config", str(config_file), *settings]) == 0
    arguments = ["--checkpoint", str(run), "-o", str(out), "--control-videos", "0"]
    arguments += ["--train-clips", "1", "--heldout-clips", "2", "--head-steps", "2"]
    assert main(["audit", *arguments]) == 0
    record = json.loads((out / "audit.json").read_text())
    task = record["tasks"]["order_verification"]
    estimate, low, high = task["model"]["accuracy"]
    assert low <= estimate <= high
    assert task["model"]["is_above_chance"] == (low > task["chance"])
    names = {found["name"] for found in task["shortcut baselines"]}
    assert "trained head on a frozen random encoder" in names
    assert "the task's own baseline: thumbnails" in names
    swapped = {check["name"] for check in task["checks"] if check["probe"] == "P7"}
    assert len(swapped) == 2 * len(VARIANTS)  # of the probe and of the model
    assert (out / "audit.png").stat().st_size > 10_000
    assert {path.name for path in out.iterdir()} == {"audit.json", "audit.md", "audit.png"}


def test_where_nothing_can_be_coded_anew_it_says_so(
    tmp_path, config_file, video_folder, monkeypatch
):
    monkeypatch.setattr(codec_traces, "MAX_SECONDS", 0.01)
    arguments = ["--config", str(config_file), "--manifest", str(video_folder)]
    arguments += ["--train-clips", "1", "--heldout-clips", "1", *QUICK[:-1]]
    assert main(["audit", *arguments, "-o", str(tmp_path / "audit")]) == 0
    assert "P7 not run: every held-out video is longer" in (tmp_path / "audit/audit.md").read_text()


def test_a_checkpoint_of_other_tasks_fails(tmp_path, config_file, video_folder, capsys):
    run = tmp_path / "run"
    settings = [
        f"data.manifest={video_folder}",
        f"out={run}",
        "train.steps=1",
        "train.save_every=1",
    ]
    assert main(["train", "--config", str(config_file), *settings]) == 0
    other = tmp_path / "other.yaml"
    other.write_text(config_file.read_text().replace("order_verification", "odd_one_out"))
    other.write_text(
        other.read_text().replace("num_frames: 1, ", "").replace(", min_difference: 0.0", "")
    )
    arguments = ["--config", str(other), "--manifest", str(video_folder), "--checkpoint", str(run)]
    assert main(["audit", *arguments, "-o", str(tmp_path / "a")]) == 2
    assert "the checkpoint does not fit the config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=7", "seed is 7, but the checkpoint's run had 0 .* set seed=0"),
        (
            "data.val_fraction=0.5",
            "data.val_fraction is 0.5, .* set data.val_fraction=0.3",
        ),
        ("data.manifest=other.parquet", "trained on own.parquet, of which other.parquet may hold"),
    ],
)
def test_a_checkpoint_is_judged_on_its_own_split_alone(tmp_path, override, expected):
    values = {
        "out": "run",
        "data": {"manifest": "own.parquet", "val_fraction": 0.3},
        "tasks": {"arrow_of_time": {}},
    }
    state = {"config": validate(Config, values).model_dump(mode="json")}

    def config_of(overrides: list[str]) -> Config:
        return audited_config(None, overrides, state=state, manifest=None, out=tmp_path)

    assert config_of([]).data.val_fraction == 0.3
    with pytest.raises(UserError, match=expected):
        config_of([override])


def test_what_no_probe_knows_does_not_read_as_clean():
    task = TaskAudit("cpc", math.nan, [], NoBaselines().checks(), model=Interval(0.5, 0.4, 0.6))
    text = audit_text(Audit([], [], [task]))
    assert "Not looked at:\n\n- cpc: not audited: no probe knows" in text
    assert "No leak was found in what was looked at. No shortcut baseline was tried." in text
    assert "above chance" not in text
    assert "its chance is not known" in text
    record = audit_record(Audit([], [], [task]), {})
    assert record["tasks"]["cpc"]["checks"][0]["is_clean"] is None
    assert record["leaks"] == []
