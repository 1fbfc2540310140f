"""What is measured while a run trains: when, in which order, what is kept as the best; and the dry run."""

import json
from pathlib import Path

import pytest
import torch
from test_train import CONFIG, arguments

from videossl.__main__ import main
from videossl.engine.evaluation import Evaluations, Measured
from videossl.engine.metrics import RunLogger
from videossl.engine.watchdog import StopAsked
from videossl.errors import UserError

MODEL = torch.nn.Linear(1, 1)


class Recorded:
    """An evaluation that answers from a list, and notes when it was asked."""

    def __init__(self, name: str, every: int, values: list[float]) -> None:
        self.name, self.every, self.values = name, every, iter(values)
        self.calls = 0

    def __call__(self, model, poll) -> Measured:
        poll(str)
        assert not model.training
        self.calls += 1
        return Measured({"score": next(self.values)}, f"{self.name} line")


def run(evaluations: Evaluations, out: Path, steps: range, poll=lambda details: None) -> list[int]:
    """The steps after which the best value was reached."""
    best = []
    with RunLogger(out, is_main=True, first_step=0, total_steps=9) as logger:
        for step in steps:
            evaluations.become_due(step)
            if evaluations.run_owed(MODEL, logger, poll, step):
                best.append(step)
    return best


@pytest.mark.parametrize(("metric", "expected"), [("a/score", [2, 6]), ("b/score", [4, 7])])
def test_each_runs_when_due_and_the_best_value_is_kept(metric, expected, tmp_path):
    a, b = Recorded("a", 2, [1, 0, 3, 3]), Recorded("b", 4, [1, 2])
    evaluations = Evaluations([a, b], best_metric=metric, total_steps=7)
    assert run(evaluations, tmp_path, range(1, 8)) == expected
    assert (a.calls, b.calls) == (4, 2)
    assert evaluations.best == (3 if metric == "a/score" else 2)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(r["step"], "a" in r, "b" in r) for r in records] == [
        (2, True, False),
        (4, True, False),
        (4, False, True),
        (6, True, False),
        (7, True, False),
        (7, False, True),
    ]
    assert MODEL.training


def test_less_is_better_of_a_loss(tmp_path):
    losses = iter([2.0, 1.0, 1.5])

    class Loss(Recorded):
        def __call__(self, model, poll) -> Measured:
            return Measured({"loss": next(losses)}, "")

    evaluations = Evaluations([Loss("a", 1, [])], best_metric="a/loss", total_steps=3)
    assert run(evaluations, tmp_path, range(1, 4)) == [1, 2]


def test_what_was_interrupted_is_still_owed(tmp_path):
    def stop(details) -> None:
        raise StopAsked

    a, b = Recorded("a", 1, [1]), Recorded("b", 1, [1])
    evaluations = Evaluations([a, b], best_metric=None, total_steps=1)
    with pytest.raises(StopAsked):
        run(evaluations, tmp_path, range(1, 2), stop)
    assert evaluations.owed == ["a", "b"]
    evaluations.run_owed(
        MODEL, RunLogger(tmp_path, is_main=False, first_step=0, total_steps=1), lambda d: None, 1
    )
    assert (evaluations.owed, a.calls, b.calls) == ([], 1, 1)


def test_a_best_metric_that_nobody_measures_is_refused_at_once():
    with pytest.raises(UserError, match=r"'c/x' is not measured: it must begin with one of a/, b/"):
        Evaluations([Recorded("a", 1, []), Recorded("b", 1, [])], best_metric="c/x", total_steps=1)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    from videossl.data.synthetic import render_davis, render_video

    folder = tmp_path_factory.mktemp("labelled")
    lines = ["path,label"]
    for seed in range(6):
        render_video(folder / f"{seed}.mp4", seed=seed, seconds=2.5, height=48, width=64)
        lines.append(f"{folder / f'{seed}.mp4'},{'ab'[seed % 2]}")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    out = str(folder / "m.parquet")
    assert main(["scan", str(folder / "list.csv"), "-o", out, "--workers", "1"]) == 0
    render_davis(folder / "davis", num_sequences=2, num_frames=3, seed=0)
    return folder


def test_a_run_measures_neighbours_and_tracking_and_keeps_the_best(
    labelled, video_folder, tmp_path
):
    from videossl.engine.checkpoint import load_checkpoint

    (tmp_path / "c.yaml").write_text(CONFIG)
    overrides = [
        f"monitor.knn.manifest={labelled / 'm.parquet'}",
        "monitor.knn.every=4",
        f"monitor.tracking.davis={labelled / 'davis'}",
        "monitor.tracking.every=3",
        "monitor.tracking.max_frames=4",
        "train.best_metric=tracking/J&F-Mean",
    ]
    out = tmp_path / "run"
    assert main(arguments(tmp_path / "c.yaml", video_folder, out, *overrides)) == 0
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    knn = {r["step"]: r["knn"] for r in records if "knn" in r}
    tracking = {r["step"]: r["tracking"]["J&F-Mean"] for r in records if "tracking" in r}
    assert (list(knn), list(tracking)) == ([4, 8], [3, 6, 8])
    assert all((k["count"], k["num_classes"], k["chance"]) == (6, 2, 0.5) for k in knn.values())
    best = load_checkpoint(out / "checkpoints/best.pt")
    assert tracking[best["step"]] == max(tracking.values()) == best["best"]


def test_tracking_while_training_gives_the_numbers_of_the_tool(labelled, video_folder, tmp_path):
    (tmp_path / "c.yaml").write_text(CONFIG)
    out = tmp_path / "run"
    overrides = [f"monitor.tracking.davis={labelled / 'davis'}", "monitor.tracking.max_frames=null"]
    assert main(arguments(tmp_path / "c.yaml", video_folder, out, *overrides)) == 0
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    (during,) = [r["tracking"] for r in records if "tracking" in r]
    command = ["track", "--checkpoint", str(out), "--davis", str(labelled / "davis")]
    assert main([*command, "--out", str(tmp_path / "t"), "--device", "cpu"]) == 0
    result = json.loads((tmp_path / "t/result.json").read_text())
    assert during == pytest.approx(result["rows"]["run"]["global"])


def test_a_manifest_without_labels_is_refused(video_folder, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(CONFIG)
    override = f"monitor.knn.manifest={video_folder}"
    assert main(arguments(tmp_path / "c.yaml", video_folder, tmp_path / "run", override)) == 2
    assert "has no labels; scan a list with path,label columns" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_what_it_takes_and_writes_nothing(video_folder, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(CONFIG)
    out = tmp_path / "run"
    assert main([*arguments(tmp_path / "c.yaml", video_folder, out), "--dry-run"]) == 0
    said = capsys.readouterr().out
    for part in (
        "GFLOPs per video",
        "dry run: first step",
        "time: about",
        "for 8 steps",
        "GiB",
        "checkpoints: ",
    ):
        assert part in said
    assert f"out: {out}, from step 0" in said
    assert not out.exists()


def test_a_dry_run_refuses_what_the_run_would_refuse(video_folder, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(CONFIG)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.tex").write_text("mine")
    command = arguments(tmp_path / "c.yaml", video_folder, tmp_path / "run")
    assert main([*command, "--dry-run"]) == 2
    assert "is not empty and holds no run" in capsys.readouterr().err
