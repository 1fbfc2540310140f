"""At which speed is a clip shown: frames by counting, scores and shortcut baselines against slow loops."""

import pytest
import torch

from videossl.models.encoder import Encoder, EncoderSpec
from videossl.pretext._views import warp_frames
from videossl.pretext.playback_speed import PlaybackSpeedConfig, Task
from videossl.rng import row_random
from videossl.types import ClipBatch, FeatureMaps, metric_mean

CPU = torch.device("cpu")


def build(**settings) -> Task:
    torch.manual_seed(0)
    settings = {"crop_size": 32, "num_frames": 4, "dropout": 0.0, **settings}
    return Task(PlaybackSpeedConfig(**settings), Encoder(EncoderSpec("tiny")).stages)


def views_of(task: Task, clips: torch.Tensor):
    """`clips` (B, 3, T, H, W) as a batch's views."""
    spec = task.clip_spec
    times = torch.zeros(len(clips), 1, spec.num_frames).double()
    batch = ClipBatch({spec: clips[:, None]}, {spec: times}, torch.arange(len(clips)))
    rng = row_random(0, "v", rank=0, world_size=1, num_rows=len(clips), device=CPU)
    return task.make_views(batch, rng)


def counting_clips(task: Task, num: int) -> torch.Tensor:
    """Frame t has lightness t all over: a view says which frames it shows."""
    spec = task.clip_spec
    numbers = torch.arange(float(spec.num_frames))[None, None, :, None, None]
    return numbers.expand(num, 3, -1, spec.crop_size, spec.crop_size).contiguous()


@pytest.mark.parametrize(
    ("speeds", "gaps", "decoded"),
    [((1, 2), (1,), 7), ((1, 2, 4, 8), (1,), 25), ((1, 2), (2, 3), 19), ((2, 3), (1,), 10)],
)
def test_each_speed_shows_every_so_manyth_frame_of_the_same_clip(speeds, gaps, decoded):
    task = build(speeds=speeds, frame_gaps=gaps)
    assert task.clip_spec.num_frames == decoded
    views = views_of(task, counting_clips(task, 40))
    steps = {}
    for name, speed in zip(task.names, speeds, strict=True):
        shown = views.inputs[name][:, 0, :, 0, 0].round()
        step = shown.diff(dim=1)
        assert (step == step[:, :1]).all()
        steps[name] = step[:, 0] / speed
        assert shown.min() >= 0
        assert shown.max() < decoded
    assert set(steps[task.names[0]].tolist()) == set(gaps)
    # What 1x is belongs to the video: its speeds are exactly so many times as fast as each other.
    assert all(torch.equal(step, steps[task.names[0]]) for step in steps.values())


def test_slow_parts_begin_anywhere_and_scales_are_of_each_view_alone():
    task = build()
    clips = counting_clips(task, 60)
    size = task.clip_spec.crop_size
    # Channel 1 is the row of a pixel: its slope in a view is the scale it was cut at.
    clips[:, 1] = torch.arange(float(size))[:, None]
    views = views_of(task, clips)
    assert set(views.inputs["x1"][:, 0, 0, 0, 0].round().tolist()) == {0.0, 1.0, 2.0, 3.0}
    scales = {
        name: (view[:, 1, 0, 20, 0] - view[:, 1, 0, 10, 0]) / 10
        for name, view in views.inputs.items()
    }
    for scale in scales.values():
        assert 1 - 1e-4 <= scale.min() < 1.1
        assert 1.4 < scale.max() <= 1.5 + 1e-4
    assert abs(float(torch.corrcoef(torch.stack(list(scales.values())))[0, 1])) < 0.4


def test_warped_frames_equal_the_plane_they_show():
    """Bilinear samples of a plane are exact: each pixel is the plane at the centre of what it covers."""
    rows, columns = torch.meshgrid(torch.arange(40) + 0.5, torch.arange(40) + 0.5, indexing="ij")
    clip = (3 * rows - 2 * columns).expand(1, 3, 2, 40, 40)
    centre, scale, angle = torch.tensor([[21.0, 18.0]]), torch.tensor([1.3]), torch.tensor([0.3])
    found = warp_frames(clip, centre=centre, scale=scale, angle=angle, size=8)
    turned = torch.tensor([[0.3]]).cos(), torch.tensor([[0.3]]).sin()
    for i in range(8):
        for j in range(8):
            down, right = i + 0.5 - 4, j + 0.5 - 4
            row = 21 + 1.3 * (turned[0] * down + turned[1] * right)
            column = 18 + 1.3 * (turned[0] * right - turned[1] * down)
            expected = (3 * row - 2 * column).expand(3, 2)
            torch.testing.assert_close(found[0, :, :, i, j], expected, rtol=1e-4, atol=1e-3)


def random_targets(num: int, speeds: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(5)
    change = torch.rand(num, speeds, generator=random) + 0.3 * torch.arange(speeds)
    return {"moving": (torch.rand(num, generator=random) < 0.7).float(), "change": change}


@pytest.mark.parametrize("speeds", [(1, 2), (1, 2, 4)])
def test_loss_pairs_and_cheat_equal_slow_loops(speeds):
    task = build(speeds=speeds).eval()
    num, count = 12, len(speeds)
    features = {name: FeatureMaps(torch.randn(num, 128, 2, 2, 2), 1, 16) for name in task.names}
    targets = random_targets(num, count)
    result = task(features, targets)
    losses, right, pairs, pair_cheats = [], [], [], []
    for b in range(num):
        rows = []
        for answer, name in enumerate(task.names):
            peaks = features[name].data[b].flatten(2).max(2).values.mean(1)
            row = task.head(peaks[None])[0]
            rows.append((row.softmax(0) * torch.arange(count)).sum())
            if targets["moving"][b]:
                losses.append(-row.log_softmax(0)[answer])
                right.append(int(row.argmax()) == answer)
        if targets["moving"][b]:
            for slow in range(count):
                for fast in range(slow + 1, count):
                    pairs.append(bool(rows[fast] > rows[slow]))
                    change = targets["change"][b]
                    pair_cheats.append(bool(change[fast] > change[slow]))
    moving = [(b, k) for b in range(num) for k in range(count) if targets["moving"][b]]
    by_change = sorted(moving, key=lambda bk: float(targets["change"][bk]))
    share = len(moving) // count
    shortcut_baseline = [place // share == k for place, (_, k) in enumerate(by_change)]
    assert float(result.loss.detach()) == pytest.approx(
        float(sum(losses).detach()) / (num * count), rel=1e-5
    )
    for name, values in {
        "accuracy": right,
        "pairwise": pairs,
        "pairwise_baseline": pair_cheats,
        "shortcut_baseline": shortcut_baseline,
    }.items():
        assert metric_mean(result.metric_sums[name]) == pytest.approx(sum(values) / len(values)), (
            name
        )
    answers = task.predictions(features, targets)
    judged = (answers.scores.argmax(1) == answers.labels).float()
    assert float((judged * answers.weights).sum() / answers.weights.sum()) == pytest.approx(
        sum(right) / len(right)
    )
    by_motion = (answers.baselines["motion"] == answers.labels).float()
    assert float((by_motion * answers.weights).sum() / answers.weights.sum()) == pytest.approx(
        sum(shortcut_baseline) / len(shortcut_baseline)
    )


def test_clips_without_motion_are_left_out():
    task = build().eval()
    clips = torch.randn(4, 3, 7, 48, 48)
    clips[1] = clips[1, :, :1]
    views = views_of(task, clips)
    assert views.targets["moving"].tolist() == [1.0, 0.0, 1.0, 1.0]
    asked = task.shortcut_inputs(views)
    assert asked.videos.tolist() == [0, 0, 2, 2, 3, 3]
    assert asked.labels.tolist() == [0, 1] * 3
    assert torch.equal(asked.frames[3], views.inputs["x2"][2].movedim(0, 1))


def test_speed_is_learned_where_features_carry_it():
    task = build(speeds=(1, 2, 4))
    random = torch.Generator().manual_seed(0)
    own = torch.randn(8, 128, 1, 1, 1, generator=random)
    direction = torch.randn(128, 1, 1, 1, generator=random)
    features = {
        name: FeatureMaps(own + place * direction, 1, 16) for place, name in enumerate(task.names)
    }
    targets = {"moving": torch.ones(8), "change": torch.zeros(8, 3)}
    optimizer = torch.optim.Adam(task.parameters(), lr=1e-2)
    for _ in range(60):
        result = task(features, targets)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
    assert metric_mean(result.metric_sums["accuracy"]) > 0.95
    assert metric_mean(result.metric_sums["pairwise"]) > 0.95
    assert metric_mean(result.metric_sums["chance"]) == pytest.approx(1 / 3)


@pytest.mark.parametrize("speeds", [(2, 1), (1, 1), (0, 2)])
def test_speeds_that_do_not_rise_fail(speeds):
    with pytest.raises(ValueError, match="must be whole numbers >= 1 that rise"):
        build(speeds=speeds)
