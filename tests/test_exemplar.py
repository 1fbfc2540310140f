"""Surrogate classes: which they are, where patches are taken, both questions against slow loops, and two ranks as one."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from videossl.engine.multitask import MultiTask
from videossl.models.encoder import Encoder, EncoderSpec
from videossl.pretext.exemplar import ExemplarConfig, Task, _strong_place
from videossl.rng import row_random
from videossl.types import ClipBatch, FeatureMaps, metric_mean

CPU = torch.device("cpu")
NUM_VIDEOS = 4


def build(**settings) -> Task:
    torch.manual_seed(0)
    settings = {"crop_size": 32, "num_classes": 10, "hidden_dim": 16, "embed_dim": 8, **settings}
    return Task(ExemplarConfig(**settings), Encoder(EncoderSpec("tiny")).stages)


def views_of(task: Task, clips: torch.Tensor):
    spec = task.clip_spec
    times = torch.zeros(len(clips), 1, spec.num_frames).double()
    batch = ClipBatch({spec: clips[:, None]}, {spec: times}, torch.arange(len(clips)))
    rng = row_random(0, "v", rank=0, world_size=1, num_rows=len(clips), device=CPU)
    return task.make_views(batch, rng)


def random_rows(task: Task, videos: tuple[int, ...]):
    random = torch.Generator().manual_seed(2)
    rows = len(videos) * task.config.num_variants
    features = {"patches": FeatureMaps(torch.randn(rows, 128, 1, 2, 2, generator=random), 1, 16)}
    thumbnails = torch.randn(rows, 192, generator=random)
    return features, {"thumbnails": thumbnails, "videos": torch.tensor(videos)}


@pytest.mark.parametrize("videos", [(3, 13, 7, 29), (0, 1, 0, 2)])
@pytest.mark.parametrize("training", [True, False])
def test_both_questions_equal_slow_loops(videos, training):
    """Rows 3 and 13 share one of ten classes; rows of one video are no baselines of each other."""
    task = build(num_variants=3).train(training)
    features, targets = random_rows(task, videos)
    result = task(features, targets)
    with torch.no_grad():
        z = torch.nn.functional.normalize(
            task.head(features["patches"].data.mean((2, 3, 4))), dim=1
        )
        w = torch.nn.functional.normalize(task.classes, dim=1)
    rows = [(video, variant) for video in range(4) for variant in range(3)]
    match_losses, class_losses, right, class_right, shortcut_baseline, terms = (
        [],
        [],
        [],
        [],
        [],
        [],
    )
    for i, (video, variant) in enumerate(rows):
        own = 3 * video + (variant + 1) % 3
        keys = [own] + [j for j in range(12) if videos[j // 3] != videos[video]]
        scores = {j: float(z[i] @ z[j]) / 0.1 for j in keys}
        match_losses.append(math.log(sum(math.exp(s) for s in scores.values())) - scores[own])
        right.append(max(scores, key=scores.get) == own)
        shown = targets["thumbnails"]
        shortcut_baseline.append(
            min(keys, key=lambda j: float((shown[i] - shown[j]).norm())) == own
        )
        terms.append(len(keys))
        logits = (w @ z[i] / 0.1).tolist()
        label = videos[video] % 10
        class_losses.append(math.log(sum(math.exp(s) for s in logits)) - logits[label])
        class_right.append(max(range(10), key=logits.__getitem__) == label)
    expected = sum(class_losses if training else match_losses) / 12
    assert float(result.loss.detach()) == pytest.approx(expected, rel=1e-4)
    metric_sums = {name: metric_mean(value) for name, value in result.metric_sums.items()}
    assert metric_sums["accuracy"] == pytest.approx(sum(right) / 12)
    assert metric_sums["chance"] == pytest.approx(sum(1 / n for n in terms) / 12)
    assert metric_sums["shortcut_baseline"] == pytest.approx(sum(shortcut_baseline) / 12)
    ceiling = sum(math.log(n) for n in terms) / 12
    assert metric_sums["mutual_information_ceiling"] == pytest.approx(ceiling)
    assert metric_sums["mutual_information"] == pytest.approx(
        ceiling - sum(match_losses) / 12, rel=1e-4
    )
    answers = task.eval().predictions(features, targets)
    assert (answers.baselines["thumbnails"] == answers.labels).tolist() == shortcut_baseline
    assert answers.scores.isfinite().sum(1).tolist() == terms
    assert answers.videos.tolist() == [video for video, _ in rows]
    if not training:
        assert (answers.scores.argmax(1) == answers.labels).tolist() == right
    assert ("class_accuracy" in metric_sums) == training, "a held-out video has no class"
    if training:
        assert metric_sums["class_accuracy"] == pytest.approx(sum(class_right) / 12)
        assert metric_sums["class_chance"] == pytest.approx(0.1)


def test_places_are_drawn_in_proportion_to_the_gradient_around_them():
    random = torch.Generator().manual_seed(0)
    clip = torch.randn(1, 3, 1, 20, 20, generator=random) * torch.linspace(0, 3, 20)
    size, margin, num = 4, 6, 20000
    lightness = clip[0, 0, 0].double()
    energy = {}
    for row in range(margin, 20 - margin):
        for column in range(margin, 20 - margin):
            total = 0.0
            for y in range(row - 2, row + 2):
                for x in range(column - 2, column + 2):
                    total += float((lightness[y + 1, x] - lightness[y, x]) ** 2)
                    total += float((lightness[y, x + 1] - lightness[y, x]) ** 2)
            energy[row, column] = total
    # Evenly spaced draws meet each place as often as its share says.
    draws = (torch.arange(num) + 0.5) / num
    places = _strong_place(clip.expand(num, -1, -1, -1, -1), draws, size=size, margin=margin)
    found = {}
    for place in map(tuple, places.tolist()):
        found[place] = found.get(place, 0) + 1 / num
    total = sum(energy.values())
    assert set(found) <= set(energy)
    for place, value in energy.items():
        assert found.get(place, 0.0) == pytest.approx(value / total, abs=2e-3)
    flat = _strong_place(torch.zeros(num, 3, 1, 20, 20), draws, size=size, margin=margin)
    assert len(set(map(tuple, flat.tolist()))) == 64


def test_patches_stay_inside_and_turn_about_their_place():
    """Channels a and b say where a pixel is; recolouring is off."""
    task = build(contrast=1.0, gamma=1.0, hue_degrees=0.0, num_variants=4)
    side = task.clip_spec.crop_size
    rows, columns = torch.meshgrid(*[torch.arange(float(side)) + 0.5] * 2, indexing="ij")
    lightness = torch.randn(20, 1, side, side, generator=torch.Generator().manual_seed(0))
    place = torch.stack([rows, columns]).expand(20, -1, -1, -1)
    patches = views_of(task, torch.cat([lightness, place], 1)[:, :, None]).inputs["patches"]
    place = patches[:, 1:, 0]  # (N, 2, S, S)
    assert place.min() > 0
    assert place.max() < side
    down = (place[:, :, -1] - place[:, :, 0]).mean(
        2
    ) / 31  # pixels of the clip a pixel of the patch
    scale = down.norm(dim=1)
    angle = torch.rad2deg(torch.atan2(-down[:, 1], down[:, 0]))
    assert 1 / 1.4 - 1e-3 <= scale.min() < 0.8
    assert 1.3 < scale.max() <= 1.4 + 1e-3
    assert -20.1 < angle.min() < -15
    assert 15 < angle.max() < 20.1
    centre = place.mean((2, 3)).view(20, 4, 2)
    spread = (centre - centre.mean(1, keepdim=True)).abs().amax()
    assert 3 < spread < 2 * 0.2 * 32


def test_colours_turn_and_lightness_keeps_its_range():
    task = build(gamma=1.0)
    patches = torch.randn(200, 3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    draws = torch.rand(200, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    found = task._recolour(patches, draws)
    lightness = found[:, 0] * 24 + 45
    assert lightness.min() >= -1e-3
    assert lightness.max() <= 100 + 1e-3
    before, after = (torch.complex(p[:, 1], p[:, 2]) for p in (patches, found))
    ratio = after / before  # a, b as one complex number: turned and stretched
    expected = torch.polar(2.0 ** draws[:, 2], math.radians(36) * draws[:, 3])
    torch.testing.assert_close(
        ratio, expected[:, None, None, None].expand_as(ratio), rtol=1e-3, atol=1e-3
    )
    unchanged = task._recolour(patches, torch.zeros(200, 4))
    torch.testing.assert_close(unchanged[:, 1:], patches[:, 1:])


def test_a_context_too_small_for_the_largest_patch_fails():
    with pytest.raises(
        ValueError, match=r"context 2 cannot hold a patch at its largest: it must be at least 2\.31"
    ):
        build(context=2.0)


def judge(model, start: int = 0, stop: int = NUM_VIDEOS, rank: int = 0, world_size: int = 1):
    inner = getattr(model, "module", model)
    spec = inner.tasks["exemplar"].clip_spec
    generator = torch.Generator().manual_seed(1)
    clips = torch.randn(NUM_VIDEOS, 1, 3, 1, 6, 6, generator=generator)
    clips = 2 * clips.repeat_interleave(16, -1).repeat_interleave(16, -2)[start:stop]
    times = torch.zeros(stop - start, 1, 1).double()
    batch = ClipBatch({spec: clips}, {spec: times}, torch.arange(start, stop))
    rng = row_random(0, "v", rank=rank, world_size=world_size, num_rows=stop - start, device=CPU)
    return model(inner.make_views(batch, rng))


def whole() -> MultiTask:
    """In training mode, so that classes are asked for; batch statistics fixed, which ranks do not share by themselves."""
    task = build()
    torch.manual_seed(0)
    model = MultiTask(Encoder(EncoderSpec("tiny")), {"exemplar": task}, {"exemplar": 1.0}).train()
    for part in model.modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            part.eval()
    return model


def half(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    model = DistributedDataParallel(whole())
    loss, results = judge(model, 2 * rank, 2 * rank + 2, rank, 2)
    loss.backward()
    metric_sums = {"loss": loss.detach() / 2, **results["exemplar"].metric_sums}
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
    for name, value in results["exemplar"].metric_sums.items():
        assert metric_mean(metric_sums[name]) == pytest.approx(
            metric_mean(value), rel=1e-4, abs=1e-5
        ), name
    for name, parameter in model.named_parameters():
        scale = parameter.grad.abs().max().clamp_min(1e-6)
        torch.testing.assert_close(
            gradients[name] / scale, parameter.grad / scale, rtol=0, atol=1e-4, msg=name
        )
