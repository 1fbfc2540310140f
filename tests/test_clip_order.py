"""Which order are clips shown in: classes by counting, the baseline against a slow loop, what is learned from features."""

import itertools

import pytest
import torch

from videossl.models.encoder import Encoder, EncoderSpec
from videossl.models.heads import TupleHead
from videossl.pretext.clip_order import ClipOrderConfig, Task, orders
from videossl.rng import row_random
from videossl.types import ClipBatch, FeatureMaps, metric_mean


def build(**settings) -> Task:
    torch.manual_seed(0)
    config = ClipOrderConfig(crop_size=32, num_frames=2, **{"clip_jitter": 0, **settings})
    return Task(config, Encoder(EncoderSpec("tiny")).stages)


def features_on_a_line(num_videos: int, num_clips: int) -> torch.Tensor:
    """Clip k of each video has k times the one direction of all as its feature, beside what the video is like."""
    random = torch.Generator().manual_seed(1)
    direction, own = (
        torch.randn(128, generator=random),
        torch.randn(num_videos, 1, 128, generator=random),
    )
    place = torch.arange(float(num_clips))[None, :, None]
    return (place * direction + 0.1 * own).flatten(0, 1)[:, :, None, None, None]


@pytest.mark.parametrize(
    ("num_clips", "merge", "answers"), [(3, False, 6), (3, True, 3), (4, True, 12)]
)
def test_orders_are_counted_as_in_the_papers(num_clips, merge, answers):
    shown, labels = orders(num_clips, merge_reversals=merge)
    assert set(shown) == set(itertools.permutations(range(num_clips)))
    assert sorted(set(labels)) == list(range(answers))
    for (a, x), (b, y) in itertools.product(zip(shown, labels, strict=True), repeat=2):
        assert (x == y) == (a == b or (merge and a == b[::-1]))


@pytest.mark.parametrize("merge", [False, True])
def test_order_is_learned_where_features_carry_it(merge):
    task = build(num_clips=4 if merge else 3, merge_reversals=merge, dropout=0.0, cells=1)
    count = task.config.num_clips
    features = {"clips": FeatureMaps(features_on_a_line(8, count), 1, 16)}
    targets = {"thumbnails": torch.zeros(8, count, 8, 8)}
    optimizer = torch.optim.Adam(task.parameters(), lr=1e-2)
    for _ in range(60):
        result = task(features, targets)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
    assert metric_mean(result.metric_sums["accuracy"]) > 0.95
    assert metric_mean(result.metric_sums["chance"]) == pytest.approx(1 / (12 if merge else 6))


@pytest.mark.parametrize(("num_clips", "merge"), [(3, False), (4, True)])
def test_the_cheat_takes_the_shortest_way(num_clips, merge):
    """Against a loop over all ways and orders: time may run forth or back along the way, which is a guess."""
    task = build(num_clips=num_clips, merge_reversals=merge).eval()
    torch.manual_seed(0)
    noise = torch.randn(20, num_clips, 8, 8)
    steady = torch.arange(float(num_clips))[None, :, None, None].expand(20, -1, 8, 8)
    thumbnails = torch.cat([noise, steady])
    shown, labels = orders(num_clips, merge_reversals=merge)
    answer_of = dict(zip(shown, labels, strict=True))
    expected = []
    for video, order in itertools.product(thumbnails, shown):
        seen = [video[clip] for clip in order]  # the places are all that the rule knows
        length = {
            way: sum(float((seen[i] - seen[j]).abs().mean()) for i, j in itertools.pairwise(way))
            for way in shown
        }
        way = min(length, key=length.__getitem__)
        ranks = tuple(way.index(place) for place in range(num_clips))
        back = tuple(num_clips - 1 - rank for rank in ranks)
        expected.append(sum(answer_of[r] == answer_of[order] for r in (ranks, back)) / 2)
    features = {"clips": FeatureMaps(torch.randn(40 * num_clips, 128, 1, 1, 1), 1, 16)}
    targets = {"thumbnails": thumbnails}
    found = metric_mean(task(features, targets).metric_sums["shortcut_baseline"])
    assert found == pytest.approx(sum(expected) / len(expected))
    answers = task.predictions(features, targets)
    assert answers.labels.tolist() == labels * 40
    assert answers.numbers["shortcut_baseline"].tolist() == expected


def test_questions_show_the_orders_of_their_labels():
    task = build(num_clips=3)
    spec = task.clip_spec
    clips = torch.arange(3.0)[None, :, None, None, None, None].expand(2, 3, 3, 2, 32, 32)
    batch = ClipBatch({spec: clips}, {spec: torch.zeros(2, 3, 2).double()}, torch.arange(2))
    rows = row_random(0, "v", rank=0, world_size=1, num_rows=2, device=torch.device("cpu"))
    asked = task.shortcut_inputs(task.make_views(batch, rows))
    shown, labels = orders(3, merge_reversals=False)
    assert [tuple(f) for f in asked.frames[:, ::2, 0, 0, 0].int().tolist()] == shown * 2
    assert asked.labels.tolist() == labels * 2


def test_the_tuple_head_equals_a_loop_over_tuples():
    torch.manual_seed(0)
    tuples = [(0, 1, 2), (2, 0, 1), (1, 3, 0)]
    head = TupleHead(6, tuples, hidden=5, num_answers=2, dropout=0.0).eval()
    vectors = torch.randn(3, 4, 6)
    found = head(vectors)
    for b, (q, chosen) in itertools.product(range(3), enumerate(tuples)):
        x = head.standardize(vectors[b])[list(chosen)]
        pairs = [(0, 1), (0, 2), (1, 2)]
        related = [
            torch.relu(head.pair(torch.cat([x[i], x[j], (x[i] - x[j]).abs()]))) for i, j in pairs
        ]
        p = head.project(x).view(3, 4, 32)
        cosines = [torch.cosine_similarity(p[i], p[j], dim=-1) for i, j in pairs]
        expected = head.answer(torch.cat(related)[None]) + head.compare(torch.cat(cosines)[None])
        torch.testing.assert_close(found[b, q], expected[0])
