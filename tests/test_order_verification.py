import itertools

import pytest
import torch

from videossl.models.encoder import Encoder, EncoderSpec
from videossl.pretext.order_verification import (
    IN_ORDER,
    ORDERS,
    OUT_OF_ORDER,
    OrderVerificationConfig,
    Task,
)
from videossl.types import FeatureMaps, tally_value


def build(**settings) -> Task:
    torch.manual_seed(0)
    return Task(OrderVerificationConfig(cells=1, **settings), Encoder(EncoderSpec("tiny")).stages)


def test_tuples_are_those_of_the_paper():
    """Positives and negatives share their first and last element; the middle lies inside or outside of them."""
    for tuples, inside in ((IN_ORDER, True), (OUT_OF_ORDER, False)):
        for first, middle, last in tuples:
            assert {first, last} == {1, 3}
            assert (min(first, last) < middle < max(first, last)) == inside
    assert len(set(IN_ORDER + OUT_OF_ORDER)) == 6
    assert all(t[::-1] in IN_ORDER for t in IN_ORDER)
    assert all(t[::-1] in OUT_OF_ORDER for t in OUT_OF_ORDER)
    assert set(ORDERS) == set(itertools.permutations(range(3)))


def features_on_a_line(num_videos: int = 8) -> torch.Tensor:
    """Sub-clip k of each video has k times the video's own direction as its feature."""
    direction = torch.randn(num_videos, 1, 128, generator=torch.Generator().manual_seed(1))
    return (torch.arange(5.0)[None, :, None] * direction).flatten(0, 1)[:, :, None, None, None]


def test_order_is_learned_where_features_carry_it():
    task = build(dropout=0.0)
    features = {"clips": FeatureMaps(features_on_a_line(), 1, 16)}
    targets = {"thumbnails": torch.arange(5.0)[None, :, None, None].expand(8, 5, 8, 8)}
    optimizer = torch.optim.Adam(task.parameters(), lr=1e-2)
    for _ in range(40):
        result = task(features, targets)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
    assert tally_value(result.tallies["accuracy"]) > 0.95


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_the_loss_weighs_the_classes_as_asked(share):
    task = build(positive_share=share)
    torch.nn.init.zeros_(task.head[-1].weight)
    task.head[-1].bias.data = torch.tensor(
        [0.0, 20.0]
    )  # says "in order" of everything: negatives cost 20 each
    features = {"clips": FeatureMaps(features_on_a_line(), 1, 16)}
    targets = {"thumbnails": torch.arange(5.0)[None, :, None, None].expand(8, 5, 8, 8)}
    result = task(features, targets)
    assert float(result.loss.detach()) == pytest.approx((1 - share) * 20, rel=1e-4)
    assert tally_value(result.tallies["accuracy"]) == 0.5, (
        "a constant answer scores chance, whatever the shares"
    )
    assert tally_value(result.tallies["recall_in_order"]) == 1


def test_windows_that_do_not_change_are_left_out():
    task = build(min_difference=0.1)
    features = {"clips": FeatureMaps(features_on_a_line(), 1, 16)}
    thumbnails = torch.zeros(8, 5, 8, 8)
    thumbnails[:2, 0] = 1.0  # only the outsider a of two videos differs from the middle
    result = task(features, {"thumbnails": thumbnails})
    # Of 8 x 6 tuples: both positives and the two with a, of two videos.
    assert tally_value(result.tallies["kept_share"]) == pytest.approx(2 * 4 / 48)
    assert float(task(features, {"thumbnails": torch.zeros(8, 5, 8, 8)}).loss) == 0


def test_sorting_has_six_answers():
    task = build(mode="permutation")
    vectors = features_on_a_line()[: 3 * 4]
    result = task({"clips": FeatureMaps(vectors, 1, 16)}, {"thumbnails": torch.zeros(4, 3, 8, 8)})
    assert tally_value(result.tallies["chance"]) == pytest.approx(1 / 6)
    assert task.clip_spec.num_clips == 3


@pytest.mark.parametrize("mode", ["verification", "permutation"])
def test_the_cheat_looks_at_three_thumbnails(mode):
    """Against a loop over tuples; brightness that goes one way tells the order, noise does not."""
    task = build(mode=mode).eval()
    num_clips = task.clip_spec.num_clips
    features = {"clips": FeatureMaps(torch.randn(8 * num_clips, 128, 2, 2, 2), 1, 16)}
    torch.manual_seed(0)
    noise = torch.randn(8, num_clips, 8, 8)
    steady = torch.arange(float(num_clips))[None, :, None, None].expand(8, -1, 8, 8).clone()
    for thumbnails in (noise, steady):
        right = {True: [], False: []}
        for video, t in itertools.product(
            thumbnails, IN_ORDER + OUT_OF_ORDER if num_clips == 5 else ORDERS
        ):
            a, b, c = (video[i] for i in t)
            ends = float((a - c).abs().mean())
            is_between = ends >= max(float((a - b).abs().mean()), float((b - c).abs().mean()))
            if num_clips == 5:
                right[t in IN_ORDER].append(is_between == (t in IN_ORDER))
        found = tally_value(task(features, {"thumbnails": thumbnails}).tallies["cheat"])
        if num_clips == 5:
            expected = sum(sum(r) / len(r) for r in right.values()) / 2
        else:
            middles = [
                float((v[0] - v[2]).abs().mean())
                >= max(float((v[0] - v[1]).abs().mean()), float((v[1] - v[2]).abs().mean()))
                for v in thumbnails
            ]
            expected = sum(middles) / len(middles) / 2
        assert found == pytest.approx(expected)
    assert found == (1.0 if num_clips == 5 else 0.5)
