"""Which sub-clip is shuffled: the shuffles, the baseline against a slow loop, and that places cannot be learned by heart."""

import pytest
import torch

from videossl.models.encoder import Encoder, EncoderSpec
from videossl.pretext.odd_one_out import OddOneOutConfig, Task, _shuffled
from videossl.rng import row_random
from videossl.types import ClipBatch, FeatureMaps, metric_mean

CPU = torch.device("cpu")


def build(**settings) -> Task:
    torch.manual_seed(0)
    settings = {"crop_size": 32, "num_frames": 4, "num_clips": 3, "dropout": 0.0, **settings}
    return Task(OddOneOutConfig(**settings), Encoder(EncoderSpec("tiny")).stages)


def rows(count: int):
    return row_random(3, "v", rank=0, world_size=1, num_rows=count, device=CPU)


def batch_of(frames: torch.Tensor, task: Task) -> ClipBatch:
    """Frames of one lightness each, (B, K, T)."""
    size = task.clip_spec.crop_size
    clips = frames[:, :, None, :, None, None].expand(-1, -1, 3, -1, size, size).contiguous()
    return ClipBatch(
        {task.clip_spec: clips},
        {task.clip_spec: torch.zeros(frames.shape).double()},
        torch.arange(len(frames)),
    )


@pytest.mark.parametrize("num_frames", [3, 6])
def test_shuffled_orders_are_neither_in_order_nor_reversed(num_frames):
    draws = torch.rand(500, 2, num_frames, generator=torch.Generator().manual_seed(0))
    for order in _shuffled(draws).flatten(0, 1).tolist():
        assert sorted(order) == list(range(num_frames))
        assert order not in (sorted(order), sorted(order)[::-1])


def test_questions_show_one_shuffled_clip_at_the_place_of_the_label():
    task = build()
    time = torch.arange(4.0).expand(5, 3, 4)
    asked = task.shortcut_inputs(task.make_views(batch_of(time, task), rows(5)))
    for frames, label in zip(asked.frames[:, :, 0, 0, 0], asked.labels.tolist(), strict=True):
        in_order = [clip.tolist() == [0, 1, 2, 3] for clip in frames.view(3, 4)]
        assert in_order == [place != label for place in range(3)]


def test_the_cheat_finds_the_largest_jumps():
    """Against a loop; steady motion of equal speed is given away, stillness is not."""
    task = build()
    speed = torch.tensor([1.0, 0.01])[:, None, None]
    frames = torch.cat([torch.arange(4.0).expand(2, 3, 4) * speed, torch.randn(6, 3, 4)])
    views = task.make_views(batch_of(frames, task), rows(8))
    ordered, shuffled = (
        views.inputs[name][:, 0, :, 0, 0].view(8, 3, 4) for name in ("ordered", "shuffled")
    )
    right = []
    for video, odd in [(v, o) for v in range(8) for o in range(3)]:
        shown = [shuffled[video, k] if k == odd else ordered[video, k] for k in range(3)]
        jumps = [float((clip[1:] - clip[:-1]).abs().mean()) for clip in shown]
        right.append(max(range(3), key=jumps.__getitem__) == odd)
    features = {name: FeatureMaps(torch.randn(24, 128, 4, 2, 2), 1, 16) for name in views.inputs}
    found = metric_mean(task(features, views.targets).metric_sums["shortcut_baseline"])
    assert found == pytest.approx(sum(right) / len(right))
    assert all(right[:6])


def test_it_is_learned_where_features_tell_shuffled_clips():
    task = build(cells=1)
    torch.manual_seed(1)
    kind = torch.randn(128)[:, None, None, None]
    own = torch.randn(24, 128, 4, 1, 1)
    features = {
        "ordered": FeatureMaps(own, 1, 16),
        "shuffled": FeatureMaps(own + kind, 1, 16),
    }
    targets = {"jumps": torch.rand(8, 2, 3)}
    optimizer = torch.optim.Adam(task.parameters(), lr=1e-2)
    for _ in range(40):
        result = task(features, targets)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
    assert metric_mean(result.metric_sums["accuracy"]) > 0.95


def test_clips_that_trade_places_trade_their_answers():
    task = build().eval()
    features = {name: torch.randn(2, 3, 128, 4, 2, 2) for name in ("ordered", "shuffled")}
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        before, after = (
            task._logits({k: FeatureMaps(f.flatten(0, 1), 1, 16) for k, f in shown.items()})
            for shown in (features, {k: f[:, order] for k, f in features.items()})
        )
    torch.testing.assert_close(after, before[:, order][:, :, order])
