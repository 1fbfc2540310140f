"""Where a patch lies beside another: cells against slicing, colours by their formula, the baseline against a slow loop."""

import itertools

import pytest
import torch

from videossl.color import encoder_input, normalize_lab, rgb_to_lab
from videossl.models.encoder import Encoder, EncoderSpec
from videossl.pretext._views import without_green_magenta
from videossl.pretext.relative_position import RelativePositionConfig, Task
from videossl.rng import row_random
from videossl.types import ClipBatch, FeatureMaps, metric_mean

CPU = torch.device("cpu")
SPACE_TIME = {"cells": "space-time", "num_frames": 2, "time_gap": 3, "time_jitter": 1}


def build(**settings) -> Task:
    torch.manual_seed(0)
    settings = {
        "crop_size": 16,
        "gap": 6,
        "jitter": 2,
        "colour": "keep",
        "dropout": 0.0,
        **settings,
    }
    return Task(RelativePositionConfig(**settings), Encoder(EncoderSpec("tiny")).stages)


def views_of(task: Task, clips: torch.Tensor):
    spec = task.clip_spec
    times = torch.zeros(len(clips), 1, spec.num_frames).double()
    batch = ClipBatch({spec: clips[:, None]}, {spec: times}, torch.arange(len(clips)))
    rng = row_random(0, "v", rank=0, world_size=1, num_rows=len(clips), device=CPU)
    return task.make_views(batch, rng)


def where_clips(task: Task, num: int) -> torch.Tensor:
    """Clips whose pixels say where they are: frame, row, column."""
    spec = task.clip_spec
    axes = [torch.arange(float(n)) for n in (spec.num_frames, spec.crop_size, spec.crop_size)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).expand(num, -1, -1, -1, -1)


@pytest.mark.parametrize(
    ("settings", "answers", "shape"),
    [({}, 8, (1, 64)), (SPACE_TIME, 26, (14, 64)), ({"num_frames": 3}, 8, (3, 64))],
)
def test_neighbours_lie_where_their_labels_say(settings, answers, shape):
    task = build(**settings)
    assert (task.clip_spec.num_frames, task.clip_spec.crop_size) == shape
    clips = where_clips(task, 30)
    views = views_of(task, clips)
    asked = task.shortcut_inputs(views)
    assert asked.num_answers == answers
    frames = task.config.num_frames
    centre, neighbour = asked.frames[:, 0, :, 0, 0], asked.frames[:, frames, :, 0, 0]
    step = torch.tensor([frames + task.config.time_gap, 22, 22])
    slack = torch.tensor([2 * task.config.time_jitter, 4, 4])
    expected = torch.tensor([task.directions[label] for label in asked.labels]) * step
    assert ((neighbour - centre - expected).abs() <= slack).all()
    assert asked.labels.tolist() == list(range(answers)) * 30
    assert asked.videos.tolist() == [video for video in range(30) for _ in range(answers)]
    # Each patch is a cut of its clip, moved on its own, and they never overlap.
    first = views.inputs["cells"][:, :, 0, 0, 0].long().unflatten(0, (30, -1))
    assert (first.float().std(0) > 0).all(0).tolist() == [bool(settings == SPACE_TIME), True, True]
    for video, cell in itertools.product(range(3), range(answers + 1)):
        t, y, x = first[video, cell].tolist()
        cut = clips[video, :, t : t + frames, y : y + 16, x : x + 16]
        assert torch.equal(views.inputs["cells"][video * (answers + 1) + cell], cut)
    size = torch.tensor([frames, 16, 16])
    apart = (first[:, :, None] - first[:, None]).abs() >= size
    itself = torch.eye(answers + 1, dtype=torch.bool)
    assert (apart.any(-1) | itself).all()


def test_dropped_colours_leave_one_channel_of_each_patch():
    task = build(colour="drop")
    rgb = torch.rand(6, 3, 1, 1, 1)
    lab = normalize_lab(rgb_to_lab(rgb, 1), 1).expand(-1, -1, 1, 64, 64).contiguous()
    cells = views_of(task, lab).inputs["cells"].unflatten(0, (6, 9))
    assert (cells[:, :, 1:] == 0).all()
    shown = set()
    for video, cell in itertools.product(range(6), range(9)):
        grey = [encoder_input_of(float(rgb[video, c, 0, 0, 0])) for c in range(3)]
        found = float(cells[video, cell, 0, 0, 0, 0])
        nearest = min(range(3), key=lambda c: abs(grey[c] - found))
        assert found == pytest.approx(grey[nearest], abs=1e-3)
        shown.add(nearest)
    assert shown == {0, 1, 2}


def encoder_input_of(grey: float) -> float:
    return float(normalize_lab(rgb_to_lab(torch.full((3, 1, 1), grey)))[0, 0, 0])


def test_colours_that_differ_from_green_to_magenta_become_one():
    base = torch.tensor([0.5, 0.4, 0.6])
    axis = torch.tensor([-1.0, 2.0, -1.0])
    rgb = torch.stack([base + shift * axis for shift in (-0.1, 0.0, 0.07)])
    lab = normalize_lab(rgb_to_lab(rgb, 1), 1)[:, :, None, None, None]
    projected = without_green_magenta(lab)
    torch.testing.assert_close(
        projected[1:], projected[:1].expand(2, -1, -1, -1, -1), atol=1e-3, rtol=0
    )
    # B = I - a a^T / (a^T a), as the paper has it.
    matrix = torch.eye(3) - torch.outer(axis, axis) / axis.dot(axis)
    expected = normalize_lab(rgb_to_lab((matrix @ base)[None], 1), 1)
    torch.testing.assert_close(projected[0, :, 0, 0, 0], expected[0], atol=1e-3, rtol=0)
    grey = encoder_input(torch.full((1, 3, 1, 4, 4), 120, dtype=torch.uint8), dim=1)
    torch.testing.assert_close(without_green_magenta(grey), grey, atol=1e-3, rtol=0)
    red = normalize_lab(rgb_to_lab(torch.tensor([[1.0, 0.0, 0.0]]), 1), 1)[:, :, None, None, None]
    assert torch.isfinite(without_green_magenta(red)).all()  # outside of sRGB, as the projection is


@pytest.mark.parametrize("settings", [{}, SPACE_TIME])
def test_the_cheat_compares_facing_edges(settings):
    """Against a loop; in smooth clips, cut without a gap, edges that face each other tell more than chance."""
    task = build(**{**settings, "gap": 0, "jitter": 0, "time_gap": 0, "time_jitter": 0}).eval()
    torch.manual_seed(1)
    spec = task.clip_spec
    coarse = torch.randn(5, 3, spec.num_frames, 16, 16)
    clips = torch.nn.functional.interpolate(
        coarse, (spec.num_frames, spec.crop_size, spec.crop_size), mode="trilinear"
    )
    views = views_of(task, clips)
    cells = views.inputs["cells"].unflatten(0, (5, -1))
    times = min(2, task.config.num_frames)
    small = torch.stack([torch.nn.functional.adaptive_avg_pool3d(c, (times, 8, 8)) for c in cells])
    neighbours = [i for i in range(cells.shape[1]) if i != task.centre]
    lengths = (times, 8, 8)
    for row, neighbour in enumerate(neighbours):
        video, scores = row % 5, []
        for direction in task.directions:
            total, count = 0.0, 0
            for place in itertools.product(*(range(n) for n in lengths)):
                # A place of the centre's face, and the one that faces it in the neighbour.
                on_face = all(
                    d == 0 or place[axis] == (lengths[axis] - 1 if d > 0 else 0)
                    for axis, d in enumerate(direction)
                )
                if on_face:
                    facing = tuple(
                        p if d == 0 else (0 if d > 0 else n - 1)
                        for p, d, n in zip(place, direction, lengths, strict=True)
                    )
                    own, other = small[video, task.centre], small[video, neighbour]
                    total += float((own[:, *place] - other[:, *facing]).abs().sum())
                    count += 3
            scores.append(total / count)
        assert int(views.targets["edges"][video, row]) == scores.index(min(scores))
    features = {"cells": FeatureMaps(torch.randn(5 * cells.shape[1], 128, 1, 2, 2), 1, 16)}
    shortcut_baseline = metric_mean(task(features, views.targets).metric_sums["shortcut_baseline"])
    assert shortcut_baseline > 2 / len(task.directions)
    answers = task.predictions(features, views.targets)
    assert float((answers.baselines["edges"] == answers.labels).float().mean()) == pytest.approx(
        shortcut_baseline
    )


@pytest.mark.parametrize("settings", [{}, SPACE_TIME])
def test_position_is_learned_where_features_carry_it(settings):
    task = build(grid=1, **settings)
    random = torch.Generator().manual_seed(0)
    count = len(task.starts)
    own = torch.randn(6, 1, 128, generator=random)
    at_place = torch.randn(1, count, 128, generator=random)
    features = {"cells": FeatureMaps((own + at_place).flatten(0, 1)[..., None, None, None], 1, 16)}
    targets = {"edges": torch.zeros(6, count - 1, dtype=torch.int64)}
    optimizer = torch.optim.Adam(task.parameters(), lr=1e-2)
    for _ in range(40):
        result = task(features, targets)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
    assert metric_mean(result.metric_sums["accuracy"]) > 0.95
    assert metric_mean(result.metric_sums["chance"]) == pytest.approx(1 / (count - 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gap": 3, "jitter": 2}, "gap 3 must be at least twice the jitter 2"),
        ({"time_gap": 1, "time_jitter": 1}, "time_gap 1 must be at least twice the jitter 1"),
    ],
)
def test_patches_that_may_overlap_fail(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)
