"""Which clip is of the same video: against a slow loop, over ranks, and where videos repeat."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from videossl.engine.multitask import MultiTask
from videossl.models.encoder import Encoder, EncoderSpec
from videossl.pretext.contrastive import ContrastiveConfig, Task
from videossl.rng import row_random
from videossl.types import ClipBatch, FeatureMaps, tally_value

CPU = torch.device("cpu")
NUM_VIDEOS = 4


def build() -> MultiTask:
    torch.manual_seed(0)
    encoder = Encoder(EncoderSpec("tiny"))
    config = ContrastiveConfig(crop_size=32, num_frames=2, hidden=16, embedding=8)
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
    tallies = results["contrastive"].tallies
    assert tally_value(tallies["accuracy"]) == sum(right) / 8
    assert tally_value(tallies["chance"]) == pytest.approx(sum(chance) / 8)


def test_thumbnails_alone_find_clips_of_videos_of_different_colours():
    model = build()
    task = model.tasks["contrastive"]
    colours = torch.randn(4, 1, 192).expand(-1, 2, -1).reshape(8, 192)
    features = {"clips": FeatureMaps(torch.randn(8, 128, 1, 1, 1), 1, 16)}
    targets = {"thumbnails": colours + 0.01 * torch.randn(8, 192), "videos": torch.arange(4)}
    assert tally_value(task(features, targets).tallies["cheat"]) == 1.0


def half(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    model = DistributedDataParallel(build())
    loss, results = judge(model, 2 * rank, 2 * rank + 2)
    loss.backward()
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    accuracy = results["contrastive"].tallies["accuracy"].clone()
    dist.all_reduce(accuracy)
    if rank == 0:
        gradients = {name: p.grad for name, p in model.module.named_parameters()}
        torch.save((mean / 2, accuracy, gradients), f"{folder}/result.pt")
    dist.destroy_process_group()


def test_two_ranks_ask_the_question_of_one(tmp_path):
    mp.spawn(half, (str(tmp_path),), nprocs=2)
    mean, accuracy, gradients = torch.load(tmp_path / "result.pt")
    model = build()
    loss, results = judge(model)
    loss.backward()
    torch.testing.assert_close(mean, loss.detach(), rtol=1e-5, atol=1e-6)
    assert torch.equal(accuracy, results["contrastive"].tallies["accuracy"])
    for name, parameter in model.named_parameters():
        scale = parameter.grad.abs().max().clamp_min(1e-6)
        torch.testing.assert_close(
            gradients[name] / scale, parameter.grad / scale, rtol=0, atol=1e-4, msg=name
        )
