"""Walks over patches: the loss against every path by hand, closed forms, what is cut and dropped, and that it learns."""

import itertools
import math

import numpy as np
import pytest
import torch

from videossl.color import normalize_lab, rgb_to_lab
from videossl.config import validate
from videossl.data.synthetic import Scene
from videossl.engine.multitask import MultiTask
from videossl.errors import UserError
from videossl.models.encoder import Encoder, EncoderSpec, StageInfo
from videossl.pretext.random_walk import (
    RandomWalkConfig,
    Task,
    keep_edges,
    return_by_nearest,
    walk,
)
from videossl.rng import row_random
from videossl.types import ClipBatch, FeatureMaps, metric_mean

CPU = torch.device("cpu")
SMALL = {"crop_size": 32, "patch_size": 16, "grid": 3, "frame_jitter": 4}


def build(**settings) -> Task:
    torch.manual_seed(0)
    stages = Encoder(EncoderSpec("tiny", "res3")).stages
    return Task(RandomWalkConfig(**{**SMALL, **settings}), stages)


def model_of(task: Task) -> MultiTask:
    torch.manual_seed(0)
    encoder = Encoder(EncoderSpec("tiny", "res3"))
    return MultiTask(encoder, {"random_walk": task}, {"random_walk": 1.0})


def rows(count: int, step: int = 0, rank: int = 0, world_size: int = 1):
    return row_random(
        3, "views", step, rank=rank, world_size=world_size, num_rows=count, device=CPU
    )


def batch_of(task: Task, clips: torch.Tensor) -> ClipBatch:
    """A batch of the clips (B, 3, T, H, W)."""
    spec = task.clip_spec
    times = torch.zeros(len(clips), 1, spec.num_frames).double()
    return ClipBatch({spec: clips[:, None]}, {spec: times}, torch.arange(len(clips)))


def noise(task: Task, num_videos: int) -> torch.Tensor:
    spec = task.clip_spec
    shape = (num_videos, 3, spec.num_frames, spec.crop_size, spec.crop_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def all_kept(nodes: torch.Tensor) -> torch.Tensor:
    num_videos, num_frames, num_nodes = nodes.shape[:3]
    return torch.ones(num_videos, 2, num_frames - 1, num_nodes, num_nodes, dtype=torch.bool)


def test_the_loss_sums_over_every_path_there_and_back():
    """Four nodes, three frames: each of the paths of each length is followed by itself."""
    task = build(grid=2, num_frames=3, temperature=0.3, edge_dropout=0.4).train()
    targets = task.make_views(batch_of(task, noise(task, 2)), rows(2)).targets
    kept = targets["kept"]
    assert not kept.all()
    maps = FeatureMaps(torch.randn(2 * 3 * 4, 64, 1, 4, 4), 1, 4)
    result = task({"patches": maps}, targets)
    with torch.no_grad():
        z = task.head(maps.data.mean((2, 3, 4)))
        z = (z / z.norm(dim=1, keepdim=True)).view(2, 3, 4, -1).double()

    def step(video: int, start: int, way: int, leaves: int, reaches: int) -> float:
        """The probability of an edge between frames `start` and `start` + 1: way 0 there, 1 back."""
        near, far = (z[video, start + way], z[video, start + 1 - way])
        strength = [
            math.exp(float(near[leaves] @ far[node]) / 0.3)
            if kept[video, way, start, leaves, node]
            else 0.0
            for node in range(4)
        ]
        return strength[reaches] / sum(strength)

    def comes_home(video: int, length: int, begins: int, ends: int) -> float:
        total = 0.0
        for between in itertools.product(range(4), repeat=2 * length - 1):
            path = (begins, *between, ends)
            probability = 1.0
            for at in range(2 * length):
                way = 0 if at < length else 1
                start = at if way == 0 else 2 * length - 1 - at
                probability *= step(video, start, way, path[at], path[at + 1])
            total += probability
        return total

    losses, right = [], []
    for video, node in itertools.product(range(2), range(4)):
        shares = [comes_home(video, length, node, node) for length in (1, 2)]
        losses += [-math.log(share + 1e-20) for share in shares]  # dropout may leave no way
        ends = [comes_home(video, 2, node, end) for end in range(4)]
        assert sum(ends) == pytest.approx(1)
        right.append(max(range(4), key=ends.__getitem__) == node)
    assert float(result.loss.detach()) == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert metric_mean(result.metric_sums["accuracy"]) == pytest.approx(sum(right) / 8)
    assert metric_mean(result.metric_sums["chance"]) == pytest.approx(1 / 4)
    answers = task.predictions({"patches": maps}, targets)
    assert (answers.scores.argmax(1) == answers.labels).tolist() == right
    assert answers.videos.tolist() == [0] * 4 + [1] * 4


def test_nodes_that_are_all_alike_walk_anywhere():
    nodes = torch.ones(2, 4, 9, 5) / 5**0.5
    walks = walk(nodes, all_kept(nodes), temperature=0.05)
    torch.testing.assert_close(walks.home, torch.full_like(walks.home, 1 / 9))


@pytest.mark.parametrize(("temperature", "is_home"), [(0.5, False), (0.05, True)])
def test_orthogonal_nodes_in_frames_that_stand_still_have_a_closed_form(temperature, is_home):
    """One step stays with p and goes to each other node alike: 1 / N + (1 - 1 / N) lambda^n of n steps are at home."""
    nodes = torch.eye(6).expand(1, 4, 6, 6)
    home = walk(nodes, all_kept(nodes), temperature=temperature).home.diagonal(dim1=2, dim2=3)
    edge = math.exp(1 / temperature)
    decay = (edge - 1) / (edge + 5)
    for length in (1, 2, 3):
        expected = 1 / 6 + 5 / 6 * decay ** (2 * length)
        torch.testing.assert_close(home[0, length - 1], torch.full((6,), expected))
    assert (float(-home.log().mean()) < 1e-6) == is_home


def test_nodes_that_trade_places_are_followed():
    """Each frame shows the same six nodes in another order: a walk is where its node is, and comes home."""
    orders = torch.stack([torch.randperm(6) for _ in range(4)])
    nodes = torch.eye(6)[orders][None]
    walks = walk(nodes, all_kept(nodes), temperature=0.05)
    for frame in range(1, 4):
        found = walks.away[0, frame - 1].argmax(-1)
        assert orders[frame][found].tolist() == orders[0].tolist()
    assert walks.home[0, -1].argmax(-1).tolist() == list(range(6))


def test_the_gradient_reaches_every_frame_and_is_that_of_the_loss():
    nodes = torch.randn(1, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    kept = keep_edges(torch.rand(1, 2, 2, 4, 4), 0.3)

    def loss(nodes):
        return walk(nodes, kept, temperature=0.7).home.diagonal(dim1=2, dim2=3).log().mean()

    assert torch.autograd.gradcheck(loss, nodes)
    loss(nodes).backward()
    assert bool((nodes.grad.abs().sum(-1) > 0).all())


def test_dropped_edges_are_not_walked_and_no_row_loses_all():
    draws = torch.rand(50, 2, 3, 4, 4)
    kept = keep_edges(draws, 0.9)
    assert (draws < 0.9).all(-1).any(), "some rows would be empty"
    assert kept.any(-1).all()
    assert keep_edges(draws, 0.0).all()
    share = keep_edges(torch.rand(40, 2, 3, 49, 49), 0.1).float().mean()
    assert float(share) == pytest.approx(0.9, abs=0.002)
    nodes = torch.nn.functional.normalize(torch.randn(50, 4, 4, 8), dim=-1)
    walks = walk(nodes, kept, temperature=0.05)
    assert float(walks.away[:, 0][~kept[:, 0, 0]].max()) == 0
    torch.testing.assert_close(walks.home.sum(-1), torch.ones(50, 3, 4))


def test_edges_are_dropped_in_training_alone_and_by_the_rows_own_draws():
    task = build(edge_dropout=0.5).train()
    batch = batch_of(task, noise(task, 4))
    whole = task.make_views(batch, rows(4)).targets
    assert float(whole["kept"].float().mean()) == pytest.approx(0.5, abs=0.05)
    half = batch_of(task, noise(task, 4)[2:])
    second = task.make_views(half, rows(2, rank=1, world_size=2)).targets
    for name, values in whole.items():
        assert torch.equal(values[2:], second[name]), name
    assert task.eval().make_views(batch, rows(4)).targets["kept"].all()


@pytest.mark.parametrize(("crop_size", "starts"), [(32, (0, 8, 16)), (31, (0, 8, 15))])
def test_patches_are_the_pixels_of_their_places_and_each_frame_has_its_own(crop_size, starts):
    task = build(patch_area=(1.0, 1.0), num_frames=3, crop_size=crop_size)
    clips = noise(task, 5)
    views = task.make_views(batch_of(task, clips), rows(5))
    places = views.targets["places"].long()  # (B, T, N, 2)
    patches = views.inputs["patches"].unflatten(0, places.shape[:3])
    for video, frame, node in itertools.product(range(5), range(3), range(9)):
        row, column = places[video, frame, node].tolist()
        pixels = clips[video, :, frame, row : row + 16, column : column + 16]
        torch.testing.assert_close(patches[video, frame, node, :, 0], pixels)
    offsets = places[:, :, 0]
    grid = list(itertools.product(starts, repeat=2))
    assert torch.equal(places - offsets[:, :, None], torch.tensor(grid).expand_as(places))
    assert offsets.min() >= 0
    assert offsets.max() <= 8
    pairs = itertools.combinations(range(3), 2)
    differ = [(offsets[:, a] != offsets[:, b]).any(-1) for a, b in pairs]
    assert float(torch.stack(differ).float().mean()) > 0.8


def test_patches_show_random_squares_of_themselves():
    """Channels a and b say where a pixel is."""
    task = build(num_frames=2)
    side = task.clip_spec.crop_size
    place = torch.stack(torch.meshgrid(*[torch.arange(float(side)) + 0.5] * 2, indexing="ij"))
    clips = torch.cat([torch.zeros(1, side, side), place])[None, :, None].expand(40, -1, 2, -1, -1)
    views = task.make_views(batch_of(task, clips), rows(40))
    corners = views.targets["places"].flatten(0, 2)
    shown = views.inputs["patches"][:, 1:, 0]  # (B T N, 2, 16, 16)
    pixel = (shown[:, 0, -1, 0] - shown[:, 0, 0, 0]) / 15  # pixels of the frame for one of a patch
    assert 0.7 - 1e-3 <= float(pixel.min().square()) < 0.71
    assert 0.89 < float(pixel.max().square()) <= 0.9 + 1e-3
    # Of a square, but where its first sample lies outside of the middle of the clip's first pixel.
    torch.testing.assert_close(
        (shown[:, 1, 0, -1] - shown[:, 1, 0, 0]) / 15, pixel, atol=5e-3, rtol=0
    )
    first = shown[:, :, 0, 0] - pixel[:, None] / 2 - corners  # where the square begins in its patch
    room = 16 * (1 - pixel[:, None])
    assert float(first.min()) >= -1e-3
    assert float((room - first).min()) >= -1e-3
    share = first / room
    assert share.mean().item() == pytest.approx(0.5, abs=0.05)
    assert share.std().item() == pytest.approx(12**-0.5, abs=0.03)


def test_a_node_knows_nothing_but_its_patch():
    """What lies outside of a patch, and where it lies, does not reach it: else cells could be told instead of matched."""
    task = build(patch_area=(1.0, 1.0), frame_jitter=0, num_frames=2)
    model = model_of(task).eval()
    tile = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    clips = tile.repeat(1, 2, 4, 4)[None].clone()  # every patch shows the same four tiles

    def features(clips):
        views = model.make_views(batch_of(task, clips), rows(1))
        with torch.no_grad():
            return model.encode(views)["random_walk"]["patches"].data

    alike = features(clips)
    torch.testing.assert_close(alike, alike[:1].expand_as(alike), rtol=1e-4, atol=1e-5)
    clips[:, :, 0, :8, :8] += 1.0  # the corner of the first frame: in its first patch alone
    changed = (features(clips) - alike).abs().flatten(1).amax(1) > 1e-4
    assert changed.nonzero().flatten().tolist() == [0]


def test_the_rule_of_nearest_colours_equals_a_slow_walk():
    described = torch.randn(6, 4, 9, 3, generator=torch.Generator().manual_seed(0))
    found = return_by_nearest(described)
    frames = [0, 1, 2, 3, 2, 1, 0]
    for video, start in itertools.product(range(6), range(9)):
        at = start
        for here, there in itertools.pairwise(frames):
            gaps = (described[video, there] - described[video, here, at]).norm(dim=1)
            at = int(gaps.argmin())
        assert int(found[video, start]) == at
    still = described[:, :1].expand(-1, 4, -1, -1)
    assert torch.equal(return_by_nearest(still), torch.arange(9).expand(6, -1))


def test_the_cheat_is_what_the_colours_of_the_quarters_answer():
    task = build().eval()
    views = task.make_views(batch_of(task, noise(task, 6)), rows(6))
    quarters = [
        views.inputs["patches"][:, :, 0, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8].mean((2, 3))
        for y, x in itertools.product(range(2), repeat=2)
    ]
    answer = return_by_nearest(torch.cat(quarters, 1).view(6, 4, 9, 12))
    right = answer == torch.arange(9)
    assert 0 < float(right.float().mean()) < 1
    features = {"patches": FeatureMaps(torch.randn(6 * 4 * 9, 64, 1, 4, 4), 1, 4)}
    metric_sums = task(features, views.targets).metric_sums
    assert metric_mean(metric_sums["shortcut_baseline"]) == pytest.approx(
        float(right.float().mean())
    )
    answers = task.predictions(features, views.targets)
    assert torch.equal(answers.baselines["colours"], answer.flatten())


def test_the_distance_gone_tells_who_follows_what_is_seen_from_who_stays_in_a_cell():
    """A still video whose last frame is cut a cell off: what is seen has moved by a cell, and lies where it lay."""
    task = build(patch_area=(1.0, 1.0), num_frames=3).eval()
    places = torch.stack([task.corners + 8, task.corners + 8, task.corners])[None]
    kept = torch.ones(1, 2, 2, 9, 9, dtype=torch.bool)
    by_colour = torch.arange(9)[None]
    targets = {"kept": kept, "places": places, "by_colour": by_colour}
    with torch.no_grad():
        task.head.weight.copy_(torch.eye(64).repeat(2, 1))
        task.head.bias.zero_()
    # A feature for each place of the video: nine in the first frame, of which four are seen again in the last.
    seen = {}
    channel = [seen.setdefault(tuple(p.tolist()), len(seen)) for p in places.flatten(0, 2)]
    maps = torch.eye(64)[channel][:, :, None, None, None]
    answers = task.predictions({"patches": FeatureMaps(maps, 1, 4)}, targets)
    again = [y < 2 and x < 2 for y, x in itertools.product(range(3), range(3))]
    assert answers.numbers["same cell distance"].tolist() == pytest.approx([8 * 2**0.5] * 9)
    torch.testing.assert_close(
        answers.numbers["distance"][again], torch.zeros(4), atol=1e-4, rtol=0
    )
    uniform = torch.full((5,), math.log(9))  # those not seen again go anywhere
    torch.testing.assert_close(answers.numbers["entropy"][[not a for a in again]], uniform)


def scenes(seeds, task: Task) -> torch.Tensor:
    """(B, 3, T, H, W): rendered bodies before a background that pans."""
    spec = task.clip_spec
    clips = [
        np.stack([image for image, _ in scene.frames(spec.num_frames)])
        for scene in (Scene(seed, height=spec.crop_size, width=spec.crop_size) for seed in seeds)
    ]
    rgb = torch.from_numpy(np.stack(clips)).float().permute(0, 4, 1, 2, 3) / 255
    return normalize_lab(rgb_to_lab(rgb, dim=1), dim=1)


def test_training_learns_to_come_home_on_scenes_it_never_saw():
    task = build(crop_size=72, patch_size=32, grid=3, frame_jitter=4, num_frames=3)
    model = model_of(task)
    held = batch_of(task, scenes(range(100, 112), task))

    def judged():
        with torch.no_grad():
            views = model.eval().make_views(held, rows(12, step=-1))
            loss, results = model(views)
            numbers = task.predictions(
                model.encode(views)["random_walk"], views["random_walk"].targets
            ).numbers
        accuracy = metric_mean(results["random_walk"].metric_sums["accuracy"])
        return float(loss), accuracy, float(numbers["distance"].mean())

    before = judged()
    batches = [batch_of(task, scenes(range(4 * i, 4 * i + 4), task)) for i in range(8)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(48):
        loss, _ = model.train()(model.make_views(batches[step % 8], rows(4, step)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = judged()
    assert before[0] == pytest.approx(math.log(9), abs=0.4)
    assert after[0] < 1.5
    assert before[1] < 2 / 9
    assert after[1] > 3 / 9, "three times chance"
    assert after[2] < 0.8 * before[2], "it follows what is seen"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_size": 17}, "crop_size 17 leaves 3 patches of 16 pixels a side .* raise it to 18"),
        ({"patch_area": (0.9, 0.7)}, r"patch_area must be .* got \[0\.9, 0\.7\]"),
        ({"patch_area": (0.0, 0.7)}, r"0 < least <= most <= 1, got \[0, 0\.7\]"),
        ({"patch_area": (0.7, 1.5)}, r"0 < least <= most <= 1, got \[0\.7, 1\.5\]"),
        ({"num_frames": 1}, "t.num_frames: .*greater than or equal to 2"),
        ({"edge_dropout": 1.0}, "t.edge_dropout: .*less than 1"),
        ({"temperature": 0.0}, "t.temperature: .*greater than 0"),
    ],
)
def test_settings_that_ask_nothing_fail(settings, message):
    with pytest.raises(UserError, match=message):
        validate(RandomWalkConfig, {**SMALL, **settings}, "t")


def test_a_stage_that_strides_in_time_fails():
    stages = {"res3": StageInfo(channels=64, temporal_stride=2, spatial_stride=4)}
    with pytest.raises(
        ValueError, match=r"res3 has temporal stride 2: set encoder\.keep_time=true"
    ):
        Task(RandomWalkConfig(**SMALL), stages)


def test_a_patch_that_cells_do_not_divide_fails():
    with pytest.raises(ValueError, match="patch_size 18 must be a multiple of res3's stride 4"):
        build(patch_size=18)
