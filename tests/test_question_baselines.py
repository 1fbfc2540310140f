"""The numbers that probes take off the frames of questions, against slow loops and closed forms."""

import math

import numpy as np
import pytest
import torch

from videossl.audit import question_baselines
from videossl.types import ShortcutInputs


def asked(
    frames: torch.Tensor, labels: list[int] | None = None, num_answers: int = 2
) -> ShortcutInputs:
    count = len(frames)
    labels = [0] * count if labels is None else labels
    return ShortcutInputs(frames, torch.tensor(labels), torch.arange(count), num_answers)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_scalars_are_those_of_a_loop():
    frames = noise(2, 3, 3, 32, 40)
    found = question_baselines.scalars(asked(frames)).numpy()
    for question, frame in np.ndindex(2, 3):
        light = frames[question, frame, 0].double().numpy()
        energy = np.mean(
            [
                (
                    4 * light[y, x]
                    - light[y - 1, x]
                    - light[y + 1, x]
                    - light[y, x - 1]
                    - light[y, x + 1]
                )
                ** 2
                for y in range(1, 31)
                for x in range(1, 39)
            ]
        )
        expected = [light.mean(), light.std(ddof=1), math.log(energy + question_baselines.EPSILON)]
        assert found[question, frame::3] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_ramps_change_their_sign_with_the_direction():
    frames = noise(3, 7, 3, 32, 32).cumsum(1)
    for ramp in (question_baselines.quality_ramp, question_baselines.quality_and_change_ramp):
        assert torch.allclose(ramp(asked(frames.flip(1))), -ramp(asked(frames)), atol=1e-5)
    assert question_baselines.quality_and_change_ramp(asked(noise(1, 16, 3, 32, 32))).shape == (
        1,
        15 + 15 + 13,
    )


def test_blockiness_finds_the_grid_of_eight():
    smooth = torch.linspace(0, 1, 64).expand(64, 64)
    blocks = (torch.arange(64) // 8).float().expand(64, 64)
    frames = torch.stack([smooth, blocks])[None, :, None].expand(1, 2, 3, 64, 64)
    plain, blocky = question_baselines._blockiness(frames[:, :, 0])[0].tolist()
    assert plain == pytest.approx(0, abs=0.01)
    assert blocky > 1.5


def test_rim_and_middle_share_no_pixel():
    frames = noise(1, 2, 3, 56, 56).requires_grad_()
    (of_rim,) = torch.autograd.grad(question_baselines.rim(asked(frames)).square().sum(), frames)
    (of_middle,) = torch.autograd.grad(
        question_baselines.middle(asked(frames)).square().sum(), frames
    )
    assert float((of_rim.abs() * of_middle.abs()).max()) == 0
    assert float(of_rim[..., 4:-4, 4:-4].abs().max()) == 0
    assert bool((of_rim[:, :, 0] != 0)[..., :4, :].all())


def test_direction_is_recognised():
    frames = noise(2, 4, 3, 32, 32)
    both = torch.cat([frames, frames.flip(1)])
    videos = torch.tensor([0, 1, 0, 1])
    assert question_baselines.asks_direction(
        ShortcutInputs(both, torch.tensor([1, 1, 0, 0]), videos, 2)
    )
    assert not question_baselines.asks_direction(
        ShortcutInputs(both, torch.tensor([1, 1, 1, 1]), videos, 2)
    )
    assert not question_baselines.asks_direction(
        ShortcutInputs(both, torch.tensor([1, 1, 0, 0]), videos, 3)
    )
    assert not question_baselines.asks_direction(asked(frames, [0, 1]))


def test_outlines_see_what_is_where_and_neither_brightness_nor_a_small_shift():
    """Stripes that stand and stripes that lie: alike in all but direction."""
    standing = torch.sin(torch.arange(48.0) / 2).expand(48, 48)
    shown = {
        "same, brighter": 2 * standing + 1,
        "same, moved": standing.roll(2, 1),
        "lying": standing.T.contiguous(),
    }
    distance = {}
    for name, other in shown.items():
        frames = torch.stack([standing, other])[None, :, None].expand(1, 2, 3, 48, 48)
        outlines = question_baselines._outlines(frames[:, :, 0])
        distance[name] = float((outlines[:, 0] - outlines[:, 1]).abs().sum())
    assert distance["same, brighter"] < 1e-5
    assert distance["same, moved"] < 0.1 * distance["lying"]
    assert distance["lying"] > 1.5  # of 2: nothing in common
