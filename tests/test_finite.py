"""A step that is not finite changes nothing, is counted, and names its videos."""

import json

import pytest
import torch
from test_fault_tolerance import CONFIG

from videossl.config import load_config
from videossl.distributed import World
from videossl.engine.checkpoint import load_checkpoint
from videossl.engine.multitask import MultiTask
from videossl.engine.trainer import Trainer
from videossl.errors import UserError
from videossl.models.encoder_sources import checkpoints

WORLD = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


@pytest.fixture
def config(tmp_path, video_folder):
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG)
    overrides = [f"data.manifest={video_folder}", f"out={tmp_path / 'run'}", "train.steps=6"]
    return load_config(path, [*overrides, "train.log_every=2"])


def spoil(monkeypatch, when) -> None:
    """Makes the loss nan, and with it the gradient and the batch statistics, at the calls that `when` says."""
    forward, calls = MultiTask.forward, iter(range(10**6))

    def spoiled(self, views):
        total, results = forward(self, views)
        if self.training and when(next(calls)):
            for buffer in self.buffers():
                if buffer.is_floating_point():
                    buffer.data.fill_(float("nan"))  # behind the back of autograd
            total = total * float("nan")
        return total, results

    monkeypatch.setattr(MultiTask, "forward", spoiled)


def test_a_bad_step_is_skipped_counted_and_named(config, monkeypatch, tmp_path):
    spoil(monkeypatch, lambda call: call == 2)
    states, videos = [], []
    train_step = Trainer.train_step

    def watched(self, batches):
        states.append({k: v.clone() for k, v in self.model.state_dict().items()})
        return train_step(self, (videos.append(b.video_ids) or b for b in [next(batches)]))

    monkeypatch.setattr(Trainer, "train_step", watched)
    trainer = Trainer(config, WORLD)
    trainer.run()
    for name, value in states[2].items():
        assert torch.equal(states[3][name], value)
    assert any(not torch.equal(states[4][name], value) for name, value in states[3].items())
    assert trainer.guard.count == 1
    (line,) = (tmp_path / "run/nonfinite.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert (record["step"], record["rank"]) == (2, 0)
    assert record["videos"] == [trainer.train_data.source_name(int(row)) for row in videos[2]]
    records = [
        json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    ]
    assert [r["skipped_steps"] for r in records if "tasks" in r] == [0, 1, 1]
    for value in load_checkpoint(checkpoints(tmp_path / "run/checkpoints")[-1])["model"].values():
        assert bool(value.isfinite().all())


def test_abort_ends_the_run_at_the_first_one(config, monkeypatch):
    spoil(monkeypatch, lambda call: call == 1)
    train = config.train.model_copy(update={"non_finite": "abort"})
    with pytest.raises(
        UserError, match=r"not finite at step 1 .* train.non_finite=abort ends the run"
    ):
        Trainer(config.model_copy(update={"train": train}), WORLD).run()


def test_a_run_that_only_skips_has_diverged(config, monkeypatch):
    spoil(monkeypatch, lambda call: call > 1)
    train = config.train.model_copy(update={"steps": 40})
    with pytest.raises(UserError, match=r"the 20th in a row: the run has diverged; lower optim.lr"):
        Trainer(config.model_copy(update={"train": train}), WORLD).run()


def test_weights_that_are_not_finite_are_never_saved(config, tmp_path):
    trainer = Trainer(config, WORLD)
    with torch.no_grad():
        next(trainer.model.parameters())[0] = float("inf")
    with pytest.raises(UserError, match=r"encoder\.stem.conv.weight is not finite at step 0"):
        trainer.save()
    assert checkpoints(tmp_path / "run/checkpoints") == []
