"""Positives that differ by dropout alone, and hard negatives made of the clip: slow loops, masks, two ranks as one."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from videossl.engine.multitask import MultiTask
from videossl.models.encoder import Encoder, EncoderSpec
from videossl.pretext.simcse import SimcseConfig, Task, _shuffled
from videossl.rng import row_random
from videossl.types import ClipBatch, FeatureMaps, metric_mean

CPU = torch.device("cpu")
NUM_VIDEOS = 4
MODES = [
    {},
    {"mode": "supervised", "hard_negative": "none"},
    {"mode": "supervised", "hard_negative": "reversed"},
    {"mode": "supervised", "hard_negative": "shuffled"},
]


def build(**settings) -> Task:
    torch.manual_seed(0)
    small = {"crop_size": 32, "num_frames": 4, "hidden_dim": 16, "embed_dim": 8}
    return Task(SimcseConfig(**{**small, **settings}), Encoder(EncoderSpec("tiny")).stages)


def views_of(task: Task, clips: torch.Tensor, videos: list[int]):
    spec = task.clip_spec
    times = torch.zeros(len(clips), spec.num_clips, spec.num_frames).double()
    batch = ClipBatch({spec: clips}, {spec: times}, torch.tensor(videos))
    rng = row_random(0, "v", rank=0, world_size=1, num_rows=len(clips), device=CPU)
    return task.make_views(batch, rng)


def random_clips(task: Task, num: int) -> torch.Tensor:
    spec, random = task.clip_spec, torch.Generator().manual_seed(4)
    looks = torch.randn(num, 1, 3, 1, 4, 4, generator=random)
    noise = torch.randn(num, spec.num_clips, 3, spec.num_frames, 32, 32, generator=random)
    return 0.05 * looks.repeat_interleave(8, -1).repeat_interleave(8, -2) + noise


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("videos", [[3, 4, 5, 6], [3, 4, 3, 6]], ids=str)
@pytest.mark.parametrize("settings", MODES, ids=str)
def test_loss_and_answers_equal_a_slow_loop(settings, videos, training):
    """Equations 4 and 5; rows of one video are no negatives of each other, but a row's own hard negative is its."""
    task = build(dropout=0.3, **settings).train(training)
    clips = random_clips(task, 4)
    views = views_of(task, clips, videos)
    random = torch.Generator().manual_seed(2)
    features = {
        name: FeatureMaps(torch.randn(4, 128, 2, 2, 2, generator=random), 1, 16)
        for name in views.names
    }
    has_negative = "negative" in features
    names = ["anchor", "positive" if settings else "anchor"] + ["negative"] * has_negative
    result = task(features, views.targets)
    with torch.no_grad():
        hidden = task.body(torch.cat([features[n].data.mean((2, 3, 4)) for n in names]))
    vectors = {}
    for place, row in ((p, r) for p in range(len(names)) for r in range(4)):
        kept = views.targets["masks"][row, place]
        masked = torch.tensor(
            [
                float(h) / 0.7 if keep else 0.0
                for h, keep in zip(hidden[4 * place + row], kept, strict=True)
            ]
        )
        vector = (task.project.weight @ masked + task.project.bias).detach()
        vectors[place, row] = vector / vector.norm()
    means = clips.mean((3,)).detach()  # thumbnails of 8 cells a side, of each clip
    means = torch.nn.functional.avg_pool2d(means.flatten(0, 1), 4).view(4, clips.shape[1], -1)
    losses, right, shortcut_baseline, terms = [], [], [], []
    for row in range(4):
        others = [r for r in range(4) if videos[r] != videos[row]]
        keys = [(1, row)] + [(1, r) for r in others]
        if has_negative:
            keys += [(2, r) for r in [*others, row]]
        scores = [float(vectors[0, row] @ vectors[key]) / 0.05 for key in keys]
        losses.append(math.log(sum(math.exp(s) for s in scores)) - scores[0])
        right.append(scores[0] == max(scores))
        # The hard negative's mean is that of the clip it is made of; the rule passes over the row's own.
        clip_of = {1: clips.shape[1] - 1, 2: 0}
        distances = [
            float((means[row, 0] - means[r, clip_of[place]]).norm())
            for place, r in keys
            if (place, r) != (2, row)
        ]
        shortcut_baseline.append(distances[0] == min(distances))
        terms.append(len(keys))
    assert float(result.loss.detach()) == pytest.approx(sum(losses) / 4, rel=1e-4, abs=1e-5)
    metric_sums = {name: metric_mean(value) for name, value in result.metric_sums.items()}
    ceiling = sum(math.log(n) for n in terms) / 4
    assert metric_sums["accuracy"] == sum(right) / 4
    assert metric_sums["chance"] == pytest.approx(sum(1 / n for n in terms) / 4)
    assert metric_sums["shortcut_baseline"] == sum(shortcut_baseline) / 4
    assert metric_sums["mutual_information_ceiling"] == pytest.approx(ceiling)
    assert metric_sums["mutual_information"] == pytest.approx(ceiling - sum(losses) / 4, abs=1e-4)
    answers = task.eval().predictions(features, views.targets)
    assert (answers.baselines["thumbnails"] == answers.labels).tolist() == shortcut_baseline
    assert answers.scores.isfinite().sum(1).tolist() == terms
    if not training:
        assert (answers.scores.argmax(1) == answers.labels).tolist() == right
    if not settings:
        assert metric_sums["shortcut_baseline"] == 1.0, "the answer is the clip itself"


def test_masks_are_of_each_pass_alone_and_stay_in_evaluation():
    task = build(hidden_dim=400).eval()
    views = views_of(task, random_clips(task, 6), list(range(6)))
    masks = views.targets["masks"]
    assert 0.88 < masks.float().mean() < 0.92
    assert not torch.equal(masks[:, 0], masks[:, 1])
    features = {"anchor": FeatureMaps(torch.randn(6, 128, 1, 2, 2), 1, 16)}
    first, second = task._embed(features, views.targets)
    cosines = (first * second).sum(1)
    assert (cosines < 0.9999).all()
    torch.testing.assert_close(task._embed(features, views.targets)[0], first, rtol=0, atol=0)
    views.targets["masks"] = torch.ones_like(masks)
    first, second = task._embed(features, views.targets)
    assert torch.equal(first, second), "dropout is all that they differ by"


@pytest.mark.parametrize("settings", MODES[1:], ids=str)
def test_hard_negatives_show_the_anchors_frames_in_another_order(settings):
    task = build(**settings)
    clips = random_clips(task, 5)
    views = views_of(task, clips, list(range(5)))
    assert torch.equal(views.clips("anchor"), clips[:, 0])
    assert torch.equal(views.clips("positive"), clips[:, 1])
    assert ("negative" in views.names) == (settings["hard_negative"] != "none")
    if settings["hard_negative"] == "reversed":
        assert torch.equal(views.clips("negative"), clips[:, 0].flip(2))
    if settings["hard_negative"] == "shuffled":
        for shown, clip in zip(views.clips("negative"), clips[:, 0], strict=True):
            order = [
                next(t for t in range(4) if torch.equal(frame, clip[:, t]))
                for frame in shown.unbind(1)
            ]
            assert sorted(order) == [0, 1, 2, 3]
            assert order != [0, 1, 2, 3]


@pytest.mark.parametrize("num_frames", [2, 3])
def test_shuffles_are_never_in_order(num_frames):
    draws = torch.rand(300, num_frames, generator=torch.Generator().manual_seed(0))
    for order in _shuffled(draws).tolist():
        assert sorted(order) == list(range(num_frames))
        assert order != sorted(order)


def test_one_frame_cannot_be_reversed_fails():
    with pytest.raises(ValueError, match="one frame cannot be reversed: raise num_frames"):
        build(mode="supervised", num_frames=1)
    assert build(mode="unsupervised", num_frames=1).clip_spec.num_clips == 1


def whole(mode: str) -> MultiTask:
    task = build(mode=mode, dropout=0.4)
    torch.manual_seed(0)
    return MultiTask(Encoder(EncoderSpec("tiny")), {"simcse": task}, {"simcse": 1.0}).eval()


def judge(model, start: int = 0, stop: int = NUM_VIDEOS, rank: int = 0, world_size: int = 1):
    inner = getattr(model, "module", model)
    task = inner.tasks["simcse"]
    spec = task.clip_spec
    clips = 4 * random_clips(task, NUM_VIDEOS)[start:stop]
    times = torch.zeros(stop - start, spec.num_clips, spec.num_frames).double()
    batch = ClipBatch({spec: clips}, {spec: times}, torch.tensor([0, 1, 0, 3])[start:stop])
    rng = row_random(0, "v", rank=rank, world_size=world_size, num_rows=stop - start, device=CPU)
    return model(inner.make_views(batch, rng))


def half(rank: int, folder: str, mode: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    model = DistributedDataParallel(whole(mode))
    loss, results = judge(model, 2 * rank, 2 * rank + 2, rank, 2)
    loss.backward()
    metric_sums = {"loss": loss.detach() / 2, **results["simcse"].metric_sums}
    for value in metric_sums.values():
        dist.all_reduce(value)
    if rank == 0:
        gradients = {name: p.grad for name, p in model.module.named_parameters()}
        torch.save((metric_sums, gradients), f"{folder}/result.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("mode", ["unsupervised", "supervised"])
def test_two_ranks_ask_the_questions_of_one(mode, tmp_path):
    """Masks too: a rank draws those of its own rows."""
    mp.spawn(half, (str(tmp_path), mode), nprocs=2)
    metric_sums, gradients = torch.load(tmp_path / "result.pt")
    model = whole(mode)
    loss, results = judge(model)
    loss.backward()
    torch.testing.assert_close(metric_sums.pop("loss"), loss.detach(), rtol=1e-5, atol=1e-6)
    for name, value in results["simcse"].metric_sums.items():
        assert metric_mean(metric_sums[name]) == pytest.approx(
            metric_mean(value), rel=1e-4, abs=1e-5
        )
    for name, parameter in model.named_parameters():
        scale = parameter.grad.abs().max().clamp_min(1e-6)
        torch.testing.assert_close(
            gradients[name] / scale, parameter.grad / scale, rtol=0, atol=1e-4, msg=name
        )
