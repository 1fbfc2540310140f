import itertools

import pytest
import torch

from videossl.models.encoder import Encoder, EncoderSpec
from videossl.pretext.order_verification import (
    IN_ORDER,
    OUT_OF_ORDER,
    TUPLES,
    OrderVerificationConfig,
    Task,
)
from videossl.rng import row_random
from videossl.types import ClipBatch, FeatureMaps, metric_mean


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


EVERY_TUPLE = torch.ones(8, 6)


def features_on_a_line(num_videos: int = 8) -> torch.Tensor:
    """Sub-clip k of each video has k times the video's own direction as its feature."""
    direction = torch.randn(num_videos, 1, 128, generator=torch.Generator().manual_seed(1))
    return (torch.arange(5.0)[None, :, None] * direction).flatten(0, 1)[:, :, None, None, None]


def test_order_is_learned_where_features_carry_it():
    task = build(dropout=0.0)
    features = {"clips": FeatureMaps(features_on_a_line(), 1, 16)}
    targets = {"thumbnails": torch.zeros(8, 5, 8, 8), "differs": EVERY_TUPLE}
    optimizer = torch.optim.Adam(task.parameters(), lr=1e-2)
    for _ in range(40):
        result = task(features, targets)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
    assert metric_mean(result.metric_sums["accuracy"]) > 0.95


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_the_loss_weighs_the_classes_as_asked(share):
    task = build(positive_share=share)
    for last in (task.head.answer[-1], task.head.compare[-1]):
        torch.nn.init.zeros_(last.weight)
        # Says "in order" of everything: negatives cost 20 each.
        last.bias.data = torch.tensor([0.0, 10.0])
    features = {"clips": FeatureMaps(features_on_a_line(), 1, 16)}
    targets = {"thumbnails": torch.zeros(8, 5, 8, 8), "differs": EVERY_TUPLE}
    result = task(features, targets)
    assert float(result.loss.detach()) == pytest.approx((1 - share) * 20, rel=1e-4)
    assert metric_mean(result.metric_sums["accuracy"]) == 0.5, (
        "a constant answer scores chance, whatever the shares"
    )
    assert metric_mean(result.metric_sums["recall_in_order"]) == 1


def batch_of(thumbnails: torch.Tensor, task: Task) -> ClipBatch:
    """Still sub-clips, each a thumbnail (B, 5, 8, 8) of lightness enlarged."""
    spec = task.clip_spec
    size = spec.crop_size // 8
    lightness = thumbnails.repeat_interleave(size, 2).repeat_interleave(size, 3)
    clips = lightness[:, :, None, None].repeat(1, 1, 3, spec.num_frames, 1, 1)
    times = torch.zeros(len(clips), 5, spec.num_frames).double()
    return ClipBatch({spec: clips}, {spec: times}, torch.arange(len(clips)))


def rows(count: int):
    return row_random(3, "v", rank=0, world_size=1, num_rows=count, device=torch.device("cpu"))


def test_windows_that_do_not_change_are_left_out():
    task = build(min_difference=0.1)
    features = {"clips": FeatureMaps(features_on_a_line(), 1, 16)}
    thumbnails = torch.zeros(8, 5, 8, 8)
    thumbnails[:2, 0] = 1.0  # only the outsider a of two videos differs from the middle
    result = task(features, task.make_views(batch_of(thumbnails, task), rows(8)).targets)
    # Of 8 x 6 tuples: both positives and the two with a, of two videos.
    assert metric_mean(result.metric_sums["kept_share"]) == pytest.approx(2 * 4 / 48)
    still = task.make_views(batch_of(torch.zeros(8, 5, 8, 8), task), rows(8))
    assert float(task(features, still.targets).loss.detach()) == 0


def test_the_cheat_looks_at_three_thumbnails():
    """Against a loop over tuples; brightness that goes one way tells the order, noise does not."""
    task = build().eval()
    features = {"clips": FeatureMaps(torch.randn(8 * 5, 128, 2, 2, 2), 1, 16)}
    torch.manual_seed(0)
    noise = torch.randn(8, 5, 8, 8)
    steady = torch.arange(5.0)[None, :, None, None].expand(8, -1, 8, 8).clone()
    for thumbnails in (noise, steady):
        right = {True: [], False: []}
        for video, t in itertools.product(thumbnails, TUPLES):
            a, b, c = (video[i] for i in t)
            ends = float((a - c).abs().mean())
            is_between = ends >= max(float((a - b).abs().mean()), float((b - c).abs().mean()))
            right[t in IN_ORDER].append(is_between == (t in IN_ORDER))
        targets = {"thumbnails": thumbnails, "differs": EVERY_TUPLE}
        found = metric_mean(task(features, targets).metric_sums["shortcut_baseline"])
        expected = sum(sum(r) / len(r) for r in right.values()) / 2
        assert found == pytest.approx(expected)
        answers = task.predictions(features, targets)
        said = answers.baselines["thumbnails"] == answers.labels
        weighed = float((said * answers.weights).sum() / answers.weights.sum())
        assert weighed == pytest.approx(expected)
    assert found == 1.0


def test_the_classes_of_a_window_weigh_alike_whatever_is_left_out():
    task = build().eval()
    features = {"clips": FeatureMaps(features_on_a_line(), 1, 16)}
    differs = torch.ones(8, 6)
    differs[:4, 4:] = 0  # e of four windows looks like the middle
    differs[7] = 0
    answers = task.predictions(
        features, {"thumbnails": torch.zeros(8, 5, 8, 8), "differs": differs}
    )
    weights = answers.weights.view(8, 6)
    assert weights[:, :2].sum(1).tolist() == weights[:, 2:].sum(1).tolist() == [1.0] * 7 + [0.0]


def test_gaps_are_those_of_the_taus():
    spec = build(tau_max_seconds=2.0, tau_min_seconds=0.5, num_frames=1).clip_spec
    assert spec.gap_ranges == ((0.5, 1.0), (0.3, 1.0), (0.3, 1.0), (0.5, 1.0))
    with pytest.raises(ValueError, match=r"tau_max_seconds 0.5 cannot hold two gaps"):
        build(tau_max_seconds=0.5)


def test_questions_show_the_tuples_of_their_labels():
    """Sub-clip k is of lightness k everywhere: what is shown can be read off."""
    task = build(crop_size=32, num_frames=2)
    steady = torch.arange(5.0)[None, :, None, None].expand(3, -1, 8, 8)
    asked = task.shortcut_inputs(task.make_views(batch_of(steady, task), rows(3)))
    assert asked.frames.shape == (3 * 6, 3 * 2, 3, 32, 32)
    for question, (frames, label) in enumerate(zip(asked.frames, asked.labels, strict=True)):
        shown = TUPLES[question % 6]
        assert frames[::2, 0, 0, 0].tolist() == list(shown)
        assert bool(label) == (shown in IN_ORDER)
    assert asked.videos.tolist() == [video for video in range(3) for _ in range(6)]


def test_each_sub_clip_is_cut_and_coloured_on_its_own():
    task = build(crop_size=32, clip_jitter=8, num_frames=2, split_channels=True)
    ramp = torch.linspace(-1, 1, 48)
    clips = torch.zeros(6, 5, 3, 2, 48, 48)
    clips[:, :, 0] = ramp[None, :] + ramp[:, None]
    clips[:, :, 1] = 1.0  # reddish: red, green and blue differ
    batch = ClipBatch(
        {task.clip_spec: clips}, {task.clip_spec: torch.zeros(6, 5, 2).double()}, torch.arange(6)
    )
    shown = task.make_views(batch, rows(6)).inputs["clips"]
    assert torch.equal(shown[:, :, 0], shown[:, :, 1])  # alike for the frames of a sub-clip
    assert float(shown[:, 1:].abs().max()) == 0
    corners = shown[:, 0, 0, 0, 0]
    assert len(corners.unique()) > 15
