"""Which features come next: the recurrent unit, kinds of negatives and the baseline against slow loops; two ranks as one."""

import itertools
import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from videossl.engine.multitask import MultiTask
from videossl.models.architectures import ConvGRU
from videossl.models.encoder import Encoder, EncoderSpec
from videossl.pretext.cpc import CpcConfig, Task
from videossl.rng import row_random
from videossl.types import ClipBatch, FeatureMaps, metric_mean

CPU = torch.device("cpu")
NUM_VIDEOS = 4


def build(**settings) -> Task:
    torch.manual_seed(0)
    small = {
        "crop_size": 32,
        "num_blocks": 4,
        "num_predicted": 2,
        "block_frames": 2,
        "embed_dim": 8,
    }
    return Task(CpcConfig(**{**small, **settings}), Encoder(EncoderSpec("tiny")).stages)


def random_rows(task: Task, videos: tuple[int, ...]):
    random = torch.Generator().manual_seed(2)
    num, blocks = len(videos), task.config.num_blocks
    maps = FeatureMaps(torch.randn(num * blocks, 128, 2, 2, 2, generator=random), 1, 16)
    colours = torch.randn(num, blocks, 3, 2, 2, generator=random)
    targets = {"colours": colours, "videos": torch.tensor(videos), "rows": torch.arange(num)}
    return {"blocks": maps}, targets


def test_the_recurrent_unit_is_torchs_at_every_place():
    torch.manual_seed(0)
    unit, cell = ConvGRU(5, 7), torch.nn.GRUCell(5, 7)
    with torch.no_grad():
        cell.weight_ih.copy_(unit.from_input.weight.flatten(1))
        cell.weight_hh.copy_(unit.from_state.weight.flatten(1))
        cell.bias_ih.copy_(unit.from_input.bias)
        cell.bias_hh.copy_(unit.from_state.bias)
    x = torch.randn(3, 5, 2, 4)
    assert torch.equal(unit.start(x), torch.zeros(3, 7, 2, 4))
    state = torch.randn(3, 7, 2, 4)
    found = unit(x, state)
    for y, column in itertools.product(range(2), range(4)):
        expected = cell(x[:, :, y, column], state[:, :, y, column])
        torch.testing.assert_close(found[:, :, y, column], expected)
    assert ConvGRU(5, 7, kernel=3)(x, state).shape == state.shape


KINDS = [
    ("easy", "spatial", "hard"),
    ("easy",),
    ("spatial",),
    ("hard",),
    ("easy", "hard"),
]


@pytest.mark.parametrize("negatives", KINDS, ids=str)
@pytest.mark.parametrize("videos", [(5, 6, 7), (5, 6, 5)])
def test_loss_and_answers_equal_a_slow_loop(videos, negatives):
    """Rows of one video are no negatives of each other; each further block is predicted from the one predicted before."""
    task = build(negatives=negatives, num_blocks=5, num_predicted=3)
    features, targets = random_rows(task, videos)
    result = task(features, targets)
    with torch.no_grad():
        z = task.project(features["blocks"].data.mean(2)).view(3, 5, 8, 2, 2)
        state = torch.zeros(3, 8, 2, 2)
        for block in (0, 1):
            state = task.context(z[:, block].relu(), state)
        predicted = []
        for _ in range(3):
            predicted.append(task.predict(state))
            state = task.context(predicted[-1].relu(), state)
    places = list(itertools.product(range(3), range(3), range(2), range(2)))  # row, time, y, x
    losses, right, shortcut_baseline, terms = [], [], [], []
    for row, time, y, x in places:
        keys = [(row, time, y, x)]
        for other, then, v, u in places:
            if other != row:
                kind = "easy" if videos[other] != videos[row] else "none"
            elif (v, u) != (y, x):
                kind = "spatial"
            else:
                kind = "hard" if then != time else "none"
            if kind in negatives:
                keys.append((other, then, v, u))
        query = predicted[time][row, :, y, x]
        scores = [float(query @ z[r, 2 + t, :, v, u]) for r, t, v, u in keys]
        losses.append(math.log(sum(math.exp(s) for s in scores)) - scores[0])
        right.append(scores[0] == max(scores))
        colours = targets["colours"]
        last = colours[row, 1, :, y, x]
        distances = [float((last - colours[r, 2 + t, :, v, u]).norm()) for r, t, v, u in keys]
        shortcut_baseline.append(distances[0] == min(distances))
        terms.append(len(keys))
    num = len(places)
    assert float(result.loss.detach()) == pytest.approx(sum(losses) / num, rel=1e-4)
    metric_sums = {name: metric_mean(value) for name, value in result.metric_sums.items()}
    ceiling = sum(math.log(n) for n in terms) / num
    assert metric_sums["accuracy"] == pytest.approx(sum(right) / num)
    assert metric_sums["chance"] == pytest.approx(sum(1 / n for n in terms) / num)
    assert metric_sums["shortcut_baseline"] == pytest.approx(sum(shortcut_baseline) / num)
    assert metric_sums["mutual_information_ceiling"] == pytest.approx(ceiling)
    assert metric_sums["mutual_information"] == pytest.approx(ceiling - sum(losses) / num, abs=1e-4)
    answers = task.predictions(features, targets)
    assert (answers.scores.argmax(1) == answers.labels).tolist() == right
    assert (answers.baselines["colours"] == answers.labels).tolist() == shortcut_baseline
    assert (answers.scores.isfinite().sum(1)).tolist() == terms
    assert answers.videos.tolist() == [row for row, *_ in places]


def test_blocks_follow_each_other_and_frames_are_grey_one_by_one():
    task = build(num_blocks=3, num_predicted=1)
    numbers = torch.arange(1.0, 7.0)[None, None, :, None, None].expand(200, 3, -1, 32, 32)
    spec = task.clip_spec
    times = torch.zeros(200, 1, 6).double()
    batch = ClipBatch({spec: numbers[:, None]}, {spec: times}, torch.arange(200))
    rng = row_random(0, "v", rank=0, world_size=1, num_rows=200, device=CPU)
    views = task.make_views(batch, rng)
    shown = views.inputs["blocks"][..., 0, 0].unflatten(0, (200, 3))  # (B, blocks, 3, frames)
    assert (shown[:, :, 0] == torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])).all()
    is_grey = (shown[:, :, 1:] == 0).all(2)
    has_colour = (shown[:, :, 1:] == shown[:, :, :1]).all(2)
    assert (is_grey ^ has_colour).all()
    assert 0.45 < is_grey.float().mean() < 0.55
    together = is_grey.flatten(1).float()
    assert abs(float(torch.corrcoef(together.T)[0, 1])) < 0.2, (
        "frames of a block are grey on their own"
    )
    assert views.targets["rows"].tolist() == list(range(200))
    expected = views.inputs["blocks"].mean(2).unflatten(0, (200, 3))[..., ::16, ::16]
    torch.testing.assert_close(views.targets["colours"], expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_predicted": 4}, "num_predicted 4 must leave some of num_blocks 4 to be seen"),
        (
            {"negatives": ("hard",), "num_predicted": 1},
            "hard negatives alone need num_predicted >= 2",
        ),
        ({"kernel": 2}, "kernel must be odd, got 2"),
        ({"crop_size": 40}, "crop_size 40 must be a multiple of res5's stride 16"),
    ],
)
def test_settings_that_ask_nothing_fail(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


def whole() -> MultiTask:
    task = build()
    torch.manual_seed(0)
    return MultiTask(Encoder(EncoderSpec("tiny")), {"cpc": task}, {"cpc": 1.0}).eval()


def judge(model, start: int = 0, stop: int = NUM_VIDEOS, rank: int = 0, world_size: int = 1):
    inner = getattr(model, "module", model)
    spec = inner.tasks["cpc"].clip_spec
    generator = torch.Generator().manual_seed(1)
    looks = torch.randn(NUM_VIDEOS, 1, 3, 1, 4, 4, generator=generator)
    noise = torch.randn(NUM_VIDEOS, 1, 3, spec.num_frames, 32, 32, generator=generator)
    clips = (3 * looks.repeat_interleave(8, -1).repeat_interleave(8, -2) + noise)[start:stop]
    times = torch.zeros(stop - start, 1, spec.num_frames).double()
    batch = ClipBatch({spec: clips}, {spec: times}, torch.tensor([0, 1, 0, 3])[start:stop])
    rng = row_random(0, "v", rank=rank, world_size=world_size, num_rows=stop - start, device=CPU)
    return model(inner.make_views(batch, rng))


def half(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    model = DistributedDataParallel(whole())
    loss, results = judge(model, 2 * rank, 2 * rank + 2, rank, 2)
    loss.backward()
    metric_sums = {"loss": loss.detach() / 2, **results["cpc"].metric_sums}
    for value in metric_sums.values():
        dist.all_reduce(value)
    if rank == 0:
        gradients = {name: p.grad for name, p in model.module.named_parameters()}
        torch.save((metric_sums, gradients), f"{folder}/result.pt")
    dist.destroy_process_group()


def test_two_ranks_ask_the_questions_of_one(tmp_path):
    mp.spawn(half, (str(tmp_path),), nprocs=2)
    metric_sums, gradients = torch.load(tmp_path / "result.pt")
    model = whole()
    loss, results = judge(model)
    loss.backward()
    torch.testing.assert_close(metric_sums.pop("loss"), loss.detach(), rtol=1e-5, atol=1e-6)
    for name, value in results["cpc"].metric_sums.items():
        assert metric_mean(metric_sums[name]) == pytest.approx(
            metric_mean(value), rel=1e-4, abs=1e-5
        ), name
    for name, parameter in model.named_parameters():
        scale = parameter.grad.abs().max().clamp_min(1e-6)
        torch.testing.assert_close(
            gradients[name] / scale, parameter.grad / scale, rtol=0, atol=1e-4, msg=name
        )
