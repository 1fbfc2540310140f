"""Features that live and features that collapse; alarms that sound once."""

import math

import pytest
import torch

from videossl.engine.diagnostics import Alarms, FeatureProbe, measure_health
from videossl.models.encoder import Encoder, EncoderSpec

ALIVE = torch.zeros(64, dtype=torch.bool)


def tasks(accuracy: float, answers: int = 1000) -> dict:
    return {
        "arrow_of_time": {
            "accuracy": accuracy,
            "num_samples": answers,
            "chance": 0.5,
            "shortcut_baseline": 0.6,
        }
    }


def test_effective_rank_counts_equal_directions():
    """k orthogonal directions of equal strength, each with both signs, have rank k."""
    for k in (1, 2, 5):
        directions = torch.eye(64)[:k]
        health = measure_health(torch.cat([directions, -directions]) + 0.0, ALIVE)
        assert health.effective_rank == pytest.approx(k)
        assert health.max_rank == 2 * k - 1


def test_effective_rank_of_two_unequal_directions_is_the_exponential_of_their_entropy():
    rows = torch.diag(torch.tensor([3.0, 1.0]))
    health = measure_health(torch.cat([rows, -rows]), ALIVE[:2])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert health.effective_rank == pytest.approx(math.exp(entropy))


def test_spread_is_relative_to_the_size_of_features():
    torch.manual_seed(0)
    rows = 1 + 0.1 * torch.randn(1000, 64)
    assert measure_health(rows, ALIVE).spread == pytest.approx(0.1, rel=0.02)
    assert measure_health(1000 * rows, ALIVE).spread == pytest.approx(0.1, rel=0.02)


@pytest.mark.parametrize("value", [0.0, 3.7])
def test_equal_features_are_a_collapse(value):
    health = measure_health(torch.full((16, 64), value), ALIVE)
    assert (health.spread, health.effective_rank) == (pytest.approx(0, abs=1e-6), 1.0)


def test_dead_channels_are_counted_where_they_die():
    encoder = Encoder(EncoderSpec("tiny", "res2")).eval()
    probe = FeatureProbe(encoder)
    x = torch.randn(3, 3, 2, 32, 32)
    encoder(x)
    assert probe.read() is None  # it was not asked to look
    probe.arm()
    alive = encoder.forward(x)["res2"].data
    encoder(x)
    before = probe.read()
    expected = (alive.amax((0, 2, 3, 4)) == alive.amin((0, 2, 3, 4))).double().mean()
    assert before.dead_share == pytest.approx(float(expected))
    encoder.blocks["res2"].register_forward_hook(lambda module, inputs, output: 0 * output)
    probe.arm()
    encoder(x)
    assert probe.read().dead_share == 1.0


def test_the_probe_takes_the_pass_with_the_most_rows():
    encoder = Encoder(EncoderSpec("tiny", "res2")).eval()
    probe = FeatureProbe(encoder)
    probe.arm()
    for rows in (2, 5, 3):
        encoder(torch.randn(rows, 3, 2, 32, 32))
    assert probe.read().max_rank == 4


def test_collapse_is_said_once_until_it_is_over(caplog):
    alarms = Alarms(is_main=True)
    collapsed = measure_health(torch.ones(16, 64), ALIVE)
    healthy = measure_health(torch.randn(16, 64), ALIVE)
    for health in (healthy, collapsed, collapsed, healthy, collapsed):
        alarms.check_health(health)
    assert alarms.said == 2
    assert "ALARM: the encoder's features collapse: relative standard deviation" in caplog.text


def test_untrained_encoders_raise_no_alarm():
    alarms = Alarms(is_main=True)
    for name in ("tiny", "r3d_18", "s3d"):
        torch.manual_seed(0)
        encoder = Encoder(EncoderSpec(name))
        probe = FeatureProbe(encoder)
        probe.arm()
        clips = torch.nn.functional.interpolate(torch.randn(16, 3, 8, 4, 4), (8, 32, 32))
        with torch.no_grad():
            encoder(clips)
        alarms.check_health(probe.read())
    assert alarms.said == 0


def test_a_task_that_is_too_good_is_suspected(caplog):
    alarms = Alarms(is_main=True)
    alarms.check_tasks(tasks(0.94), "held-out")
    alarms.check_tasks(tasks(1.0, answers=12), "held-out")  # a dozen answers prove nothing
    assert alarms.said == 0
    alarms.check_tasks(tasks(0.97), "held-out")
    alarms.check_tasks(tasks(0.98), "held-out")
    assert alarms.said == 1
    assert (
        "arrow_of_time answers 0.970 of the held-out questions (chance 0.50, shortcut baseline 0.60): suspicious"
        in caplog.text
    )
    alarms.check_tasks(tasks(0.97), "training")
    assert alarms.said == 2


def test_only_the_main_rank_speaks(caplog):
    alarms = Alarms(is_main=False)
    alarms.check_tasks(tasks(1.0), "training")
    assert alarms.said == 0
    assert caplog.text == ""
