import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videossl.data.sampling import Permutation


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 500), st.integers(0, 10), st.integers(0, 10))
def test_the_order_shows_every_video_once(length, seed, epoch):
    order = Permutation(length, "epoch", epoch, seed=seed)
    assert sorted(order[i] for i in range(length)) == list(range(length))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 2**40), st.integers(0, 10), st.data())
def test_many_positions_at_once_give_what_each_gives(length, seed, data):
    order = Permutation(length, seed=seed)
    positions = data.draw(st.lists(st.integers(0, length - 1), max_size=20))
    taken = order.take(np.array(positions, dtype=np.int64))
    assert taken.tolist() == [order[position] for position in positions]


def test_distinct_positions_of_a_billion_are_distinct_videos():
    order = Permutation(10**9, "epoch", 3, seed=1)
    blocks = [
        order.take(np.arange(start, start + 50_000)) for start in (0, 5 * 10**8, 10**9 - 50_000)
    ]
    videos = np.concatenate(blocks)
    assert len(np.unique(videos)) == len(videos)
    assert videos.min() >= 0
    assert videos.max() < 10**9
    # Uniform over the range: the mean of 150,000 draws is within 5 standard errors of the middle.
    assert abs(videos.mean() / 1e9 - 0.5) < 5 * np.sqrt(1 / 12 / len(videos))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(20, 200))
def test_any_number_of_ranks_shows_the_same_order(ranks, per_rank, length):
    order, batch = Permutation(length, seed=2), ranks * per_rank
    steps = range(length // batch)
    shown = [
        [order[s * batch + r * per_rank + i] for r in range(ranks) for i in range(per_rank)]
        for s in steps
    ]
    assert list(itertools.chain(*shown)) == [order[i] for i in range(len(steps) * batch)]


def test_orders_of_epochs_and_seeds_differ_and_look_random():
    orders = {
        (seed, epoch): tuple(Permutation(200, "epoch", epoch, seed=seed))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(set(orders.values())) == 9
    for order in orders.values():
        fixed_points = sum(i == o for i, o in enumerate(order))
        assert fixed_points < 10  # 1 is expected of a random permutation
        rises = sum(a < b for a, b in itertools.pairwise(order))
        assert 70 < rises < 130


def test_a_position_outside_fails():
    order = Permutation(5, seed=0)
    with pytest.raises(IndexError, match=r"position 5 is outside \[0, 5\)"):
        order[5]
    with pytest.raises(IndexError, match=r"positions must be in \[0, 5\)"):
        order.take(np.array([0, -1]))


def test_an_empty_order_fails():
    with pytest.raises(ValueError, match="needs a length from 1"):
        Permutation(0, seed=0)
