"""Which clip is of the same video: against a slow loop, over ranks, and where videos repeat."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from videossl.engine.multitask import MultiTask
from videossl.models.encoder import Encoder, EncoderSpec
from videossl.models.heads import KeyQueue
from videossl.pretext import _losses
from videossl.pretext.contrastive import ContrastiveConfig, Task
from videossl.rng import row_random
from videossl.types import ClipBatch, FeatureMaps, metric_mean

CPU = torch.device("cpu")
NUM_VIDEOS = 4


def build(**settings) -> MultiTask:
    torch.manual_seed(0)
    encoder = Encoder(EncoderSpec("tiny"))
    config = ContrastiveConfig(crop_size=32, num_frames=2, hidden_dim=16, embed_dim=8, **settings)
    return MultiTask(
        encoder, {"contrastive": Task(config, encoder.stages)}, {"contrastive": 1.0}
    ).eval()


def batch(model: MultiTask, start: int, stop: int, videos: list[int]) -> ClipBatch:
    spec = model.tasks["contrastive"].clip_spec
    generator = torch.Generator().manual_seed(1)
    # Each video has a look of its own: features of mere noise are so alike that gradients cancel to rounding.
    looks = torch.randn(NUM_VIDEOS, 1, 3, 1, 4, 4, generator=generator)
    noise = torch.randn(NUM_VIDEOS, 2, 3, spec.num_frames, 32, 32, generator=generator)
    clips = (3 * looks.repeat_interleave(8, -1).repeat_interleave(8, -2) + noise)[start:stop]
    times = torch.zeros(stop - start, 2, spec.num_frames).double()
    return ClipBatch({spec: clips}, {spec: times}, torch.tensor(videos[start:stop]))


def judge(model, start: int = 0, stop: int = NUM_VIDEOS, videos=(0, 1, 2, 3), rank: int = 0):
    rng = row_random(0, "v", rank=rank, world_size=1, num_rows=stop - start, device=CPU)
    inner = getattr(model, "module", model)
    return model(inner.make_views(batch(inner, start, stop, list(videos)), rng))


@pytest.mark.parametrize("videos", [(0, 1, 2, 3), (0, 1, 0, 3)])
def test_loss_and_answers_equal_a_slow_loop(videos):
    model = build()
    task = model.tasks["contrastive"]
    loss, results = judge(model, videos=videos)
    views = model.make_views(batch(model, 0, 4, list(videos)), None)
    with torch.no_grad():
        features = model.encode(views)["contrastive"]["clips"].data.mean((2, 3, 4))
        z = torch.nn.functional.normalize(task.head(features), dim=1)
    losses, right, chance = [], [], []
    for i in range(8):
        partner = i + 1 if i % 2 == 0 else i - 1
        candidates = [j for j in range(8) if j == partner or videos[j // 2] != videos[i // 2]]
        scores = {j: float(z[i] @ z[j]) / 0.1 for j in candidates}
        losses.append(math.log(sum(math.exp(s) for s in scores.values())) - scores[partner])
        right.append(max(scores, key=scores.get) == partner)
        chance.append(1 / len(candidates))
    assert float(loss.detach()) == pytest.approx(sum(losses) / 8, rel=1e-5)
    metric_sums = results["contrastive"].metric_sums
    assert metric_mean(metric_sums["accuracy"]) == sum(right) / 8
    assert metric_mean(metric_sums["chance"]) == pytest.approx(sum(chance) / 8)


def test_thumbnails_alone_find_clips_of_videos_of_different_colours():
    model = build()
    task = model.tasks["contrastive"]
    colours = torch.randn(4, 1, 192).expand(-1, 2, -1).reshape(8, 192)
    features = {"clips": FeatureMaps(torch.randn(8, 128, 1, 1, 1), 1, 16)}
    targets = {"thumbnails": colours + 0.01 * torch.randn(8, 192), "videos": torch.arange(4)}
    assert metric_mean(task(features, targets).metric_sums["shortcut_baseline"]) == 1.0


def half(rank: int, folder: str, settings: dict) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    model = DistributedDataParallel(build(**settings))
    loss, results = judge(model, 2 * rank, 2 * rank + 2)
    loss.backward()
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    accuracy = results["contrastive"].metric_sums["accuracy"].clone()
    dist.all_reduce(accuracy)
    if rank == 0:
        gradients = {name: p.grad for name, p in model.module.named_parameters()}
        torch.save((mean / 2, accuracy, gradients), f"{folder}/result.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mode": "moco", "queue_size": 16},
        {"loss": "triplet"},
        {"loss": "nce"},
        {"loss": "n_pair"},
    ],
    ids=str,
)
def test_two_ranks_ask_the_question_of_one(settings, tmp_path):
    mp.spawn(half, (str(tmp_path), settings), nprocs=2)
    mean, accuracy, gradients = torch.load(tmp_path / "result.pt")
    model = build(**settings)
    loss, results = judge(model)
    loss.backward()
    torch.testing.assert_close(mean, loss.detach(), rtol=1e-5, atol=1e-6)
    assert torch.equal(accuracy, results["contrastive"].metric_sums["accuracy"])
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue  # the slow copy
        scale = parameter.grad.abs().max().clamp_min(1e-6)
        # A bias that the loss hardly sees is a small sum of large terms, which processors round by up to 1e-3 of it.
        torch.testing.assert_close(
            gradients[name] / scale, parameter.grad / scale, rtol=0, atol=2e-3, msg=name
        )


def labels_and_embeddings(model, videos=(0, 1, 2, 3)):
    task = model.tasks["contrastive"]
    views = model.make_views(batch(model, 0, 4, list(videos)), None)
    with torch.no_grad():
        features = model.encode(views)["contrastive"]["clips"].data.mean((2, 3, 4))
        raw = task.head(features)
    return torch.nn.functional.normalize(raw, dim=1), raw, torch.tensor(videos).repeat_interleave(2)


@pytest.mark.parametrize(
    "loss", ["contrastive", "triplet", "lifted_structured", "soft_nearest_neighbour"]
)
def test_other_losses_are_those_of_the_family_on_videos_as_labels(loss):
    model = build(loss=loss)
    z, _, labels = labels_and_embeddings(model)
    settings = {"temperature": 0.1} if loss == "soft_nearest_neighbour" else {}
    expected = getattr(_losses, loss)(z, labels, **settings)
    torch.testing.assert_close(judge(model)[0], expected)


def test_n_pair_compares_raw_products_and_nce_weighs_others_as_noise():
    model = build(loss="n_pair")
    _, raw, _ = labels_and_embeddings(model)
    expected = (_losses.n_pair(raw[::2], raw[1::2]) + _losses.n_pair(raw[1::2], raw[::2])) / 2
    torch.testing.assert_close(judge(model)[0], expected)

    videos = (0, 1, 0, 3)
    model = build(loss="nce")
    z, _, _ = labels_and_embeddings(model, videos)
    total = 0.0
    for i in range(8):
        partner = i + 1 if i % 2 == 0 else i - 1
        noise = [j for j in range(8) if videos[j // 2] != videos[i // 2]]
        log_k = math.log(len(noise))
        total += math.log1p(math.exp(log_k - float(z[i] @ z[partner]) / 0.1))
        total += sum(math.log1p(math.exp(float(z[i] @ z[j]) / 0.1 - log_k)) for j in noise)
    assert float(judge(model, videos=videos)[0].detach()) == pytest.approx(total / 8, rel=1e-5)


def test_the_bound_on_information_is_log_n_less_the_loss():
    loss, results = judge(build(), videos=(0, 1, 0, 3))
    metric_sums = results["contrastive"].metric_sums
    terms = [5, 7, 5, 7]  # the right clip, and both clips of each video that is not one's own
    ceiling = sum(math.log(n) for n in terms) / 4
    assert metric_mean(metric_sums["mutual_information_ceiling"]) == pytest.approx(
        ceiling, rel=1e-5
    )
    found = metric_mean(metric_sums["mutual_information"])
    assert found == pytest.approx(ceiling - float(loss.detach()), abs=1e-5)


def test_answers_are_the_metrics_row_by_row():
    for settings in ({}, {"mode": "moco", "queue_size": 6}):
        model = build(**settings)
        task = model.tasks["contrastive"]
        if settings:
            task.queue.videos[:3] = torch.tensor([0, 1, 9])
        views = model.make_views(batch(model, 0, 4, [0, 1, 2, 3]), None)
        with torch.no_grad():
            features = model.encode(views)["contrastive"]
            metric_sums = task(features, views["contrastive"].targets).metric_sums
        answers = task.predictions(features, views["contrastive"].targets)
        right = (answers.scores.argmax(1) == answers.labels).float().mean()
        assert float(right) == pytest.approx(metric_mean(metric_sums["accuracy"]))
        shortcut_baseline = (answers.baselines["thumbnails"] == answers.labels).float().mean()
        assert float(shortcut_baseline) == pytest.approx(
            metric_mean(metric_sums["shortcut_baseline"])
        )


def test_the_queue_keeps_the_newest_keys_and_skips_what_did_not_count():
    torch.manual_seed(0)
    queue = KeyQueue(5, 2, 1)
    pushed = [(float(i), torch.full((3, 2), float(i))) for i in range(1, 4)]
    for number, keys in pushed:
        videos = torch.full((3,), int(number))
        queue.push(keys, keys[:, :1], videos, skipped=torch.tensor(number == 2))
    # 1 1 1 and then, 2 being skipped, 3 3 3 from the fourth place on.
    assert queue.videos.tolist() == [3, 1, 1, 3, 3]
    assert queue.keys[:, 0].tolist() == [3, 1, 1, 3, 3]
    assert int(queue.next_place) == 1
    many = torch.arange(8.0)[:, None].expand(-1, 2)  # more than the queue holds: the last stay
    queue.push(many, many[:, :1], torch.arange(8), skipped=torch.tensor(False))
    assert sorted(queue.videos.tolist()) == [3, 4, 5, 6, 7]
    assert queue.keys[:, 0].tolist() == queue.videos.tolist()


def test_the_slow_copy_follows_and_its_keys_come_in_after_the_step():
    model = build(mode="moco", queue_size=6, momentum=0.75).train()
    task = model.tasks["contrastive"]
    before = [p.clone() for p in (*model.slow_encoder.parameters(), *task.slow_head.parameters())]
    loss, _ = judge(model)
    loss.backward()
    fast = (*model.encoder.parameters(), *task.head.parameters())
    assert all(p.grad is not None for p in fast)
    with torch.no_grad():
        for parameter in fast:
            parameter -= 0.1 * parameter.grad
    assert (task.queue.videos == -1).all()
    model.after_step(torch.tensor(False))
    after = [p.clone() for p in (*model.slow_encoder.parameters(), *task.slow_head.parameters())]
    assert all(p.grad is None for p in model.slow_encoder.parameters())
    for old, new, followed in zip(before, after, fast, strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * followed)
    assert task.queue.videos.tolist() == [0, 1, 2, 3, -1, -1]
    judge(model)
    model.after_step(torch.tensor(True))  # a step that did not count leaves no trace
    again = (*model.slow_encoder.parameters(), *task.slow_head.parameters())
    assert all(torch.equal(old, new) for old, new in zip(after, again, strict=True))
    assert task.queue.videos.tolist() == [0, 1, 2, 3, -1, -1]


def test_keys_of_the_same_video_are_no_negatives():
    model = build(mode="moco", queue_size=4)
    task = model.tasks["contrastive"]
    views = model.make_views(batch(model, 0, 4, [0, 1, 2, 3]), None)["contrastive"]
    features = {
        name: FeatureMaps(torch.randn(4, 128, 1, 1, 1), 1, 16) for name in ("clips", "keys")
    }
    task.queue.videos[:] = torch.tensor([0, 0, 1, 7])
    q = torch.nn.functional.normalize(task.head(features["clips"].data[..., 0, 0, 0]), dim=1)
    k = torch.nn.functional.normalize(task.slow_head(features["keys"].data[..., 0, 0, 0]), dim=1)
    losses = []
    for i in range(4):
        keys = [k[i]] + [
            key for key, v in zip(task.queue.keys, [0, 0, 1, 7], strict=True) if v != i
        ]
        scores = [math.exp(float((q[i] @ key).detach()) / 0.1) for key in keys]
        losses.append(-math.log(scores[0] / sum(scores)))
    found = float(task(features, views.targets).loss.detach())
    assert found == pytest.approx(sum(losses) / 4, rel=1e-5)


def test_keys_of_another_manifest_are_keys_of_nobody():
    model = build(mode="moco", queue_size=4)
    task = model.tasks["contrastive"]
    task.queue.videos[:] = torch.tensor([0, 1, 2, 3])
    keys = task.queue.keys.clone()
    task.forget_videos()
    assert task.queue.videos.tolist() == [-1] * 4
    assert torch.equal(task.queue.keys, keys)


def test_a_queue_with_another_loss_fails():
    with pytest.raises(ValueError, match="mode moco goes with loss info_nce, got triplet"):
        ContrastiveConfig(mode="moco", loss="triplet")
