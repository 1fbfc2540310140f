"""Failures of a run: written down, remembered, and too many of them."""

import json
import multiprocessing

import pytest
from bad_decoders import BAD, hold_the_lock, hurt, refuse

from videossl.__main__ import main
from videossl.data.dataset import Failure
from videossl.engine.feed import Quarantine
from videossl.errors import UserError

CONFIG = """
encoder: {name: tiny}
data: {short_side: 48, videos_per_step: 4, num_workers: 2, val_fraction: 0.3, timeout_seconds: 1}
tasks: {arrow_of_time: {crop_size: 32, num_frames: 4}}
train: {steps: 8, log_every: 1, save_every: 4, eval_every: 8, eval_batches: 2}
"""


def test_a_run_with_a_video_that_hangs_ends_and_names_it(
    video_folder, monkeypatch, tmp_path, caplog
):
    """And is bit for bit the run in which that video merely fails, also when it is resumed."""
    (tmp_path / "c.yaml").write_text(CONFIG)

    def train(name: str, act, *overrides: str) -> list[dict]:
        out = tmp_path / name
        with monkeypatch.context() as patch:
            hurt(patch, act)
            arguments = ["train", "--config", str(tmp_path / "c.yaml"), f"out={out}"]
            settings = [f"data.manifest={video_folder}", "data.max_bad_fraction=0.5", *overrides]
            assert main([*arguments, *settings]) == 0
        records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return [r["tasks"]["arrow_of_time"]["loss"] for r in records if "tasks" in r]

    with caplog.at_level("WARNING", "videossl"):
        losses = train("hung", hold_the_lock)
    warnings = [record.message for record in caplog.records if BAD in record.message]
    assert len(warnings) == 1, "said once, however often it is met"
    assert "hang: no answer for 1 s" in warnings[0]
    lines = [json.loads(x) for x in (tmp_path / "hung/quarantine.jsonl").read_text().splitlines()]
    assert len(lines) >= 2
    assert all(line["path"].endswith(f"/{BAD}") for line in lines)
    assert [line["count"] for line in lines] == list(range(1, len(lines) + 1))
    assert {"backend", "kind", "error", "rank", "worker", "count", "step"} <= lines[0].keys()
    assert lines[0]["kind"] == "hang"
    assert losses == train("refused", refuse)

    (tmp_path / "hung/checkpoints/step_00000008.pt").unlink()
    resumed = train("hung", lambda: pytest.fail("tried again after the resume"))
    assert resumed == losses
    assert multiprocessing.active_children() == []


def test_past_the_limit_the_worst_files_are_named(tmp_path):
    account = Quarantine(tmp_path, rank=1, max_bad_fraction=0.1)
    often, once = (
        Failure(path, "no", "pyav", kind) for path, kind in (("a", "hang"), ("b", "error"))
    )
    for failures, num_samples in (((often, once, often), 40), ((often, often), 9)):
        account.record(failures, step=7)
        account.count(failures, num_samples=num_samples)
    account.record([often], step=8)
    with pytest.raises(UserError, match=r"6 of 59 .* 0\.1 allows; the worst: a \(5x\), b \(1x\);"):
        account.count([often], num_samples=10)
    again = Quarantine(tmp_path, rank=1, max_bad_fraction=0.1)
    assert list(again.videos) == ["a"]
    again.record([often], step=9)
    other = Quarantine(tmp_path, rank=0, max_bad_fraction=0.1)
    other.record([often], step=9)
    lines = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert [(line["rank"], line["count"]) for line in lines[-3:]] == [(1, 5), (1, 6), (0, 1)]
