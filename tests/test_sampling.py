import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from videossl.data.sampling import (
    draw_clip_times,
    permuted_index,
    plan_clip_times,
    usable_span,
    window_motion,
)
from videossl.rng import generator
from videossl.types import ClipSpec

WINDOW = ClipSpec(5, 4, 1 / 15, 64, min_gap_seconds=0.3, window_seconds=2.4)
CLIP = ClipSpec(1, 8, 1 / 15, 64)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 500), st.integers(0, 10), st.integers(0, 10))
def test_the_order_shows_every_video_once(length, seed, epoch):
    order = [permuted_index(i, length, "epoch", epoch, seed=seed) for i in range(length)]
    assert sorted(order) == list(range(length))


def test_orders_of_epochs_and_seeds_differ_and_look_random():
    orders = {
        (seed, epoch): tuple(permuted_index(i, 200, "epoch", epoch, seed=seed) for i in range(200))
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
    with pytest.raises(ValueError, match=r"position 5 is outside \[0, 5\)"):
        permuted_index(5, 5, seed=0)


@settings(max_examples=100, deadline=None)
@given(st.floats(2.0, 60.0), st.integers(0, 10_000), st.floats(-5, 5))
def test_times_stay_inside_the_span_and_keep_their_gaps(seconds, seed, begin):
    span = usable_span(begin, begin + seconds, 25.0, [1.0] * 32)
    for spec in (WINDOW, CLIP):
        times = draw_clip_times(span, spec, generator(seed))
        assert times.shape == (spec.num_clips, spec.num_frames)
        assert times.min() >= begin + 1 / 25
        assert times.max() <= begin + seconds - min(1.0, 0.1 * seconds) + 1e-9
        steps = times[:, 1:] - times[:, :-1]
        torch.testing.assert_close(steps, torch.full_like(steps, spec.seconds_between_frames))
        gaps = times[1:, 0] - times[:-1, 0]
        assert (gaps >= spec.min_gap_seconds - 1e-9).all()
        if spec.num_clips > 1:
            assert times.max() - times.min() <= spec.window_seconds + 1e-9


def test_short_specs_lie_inside_the_longest_window():
    span = usable_span(0, 30, 25.0, [1.0] * 32)
    for seed in range(20):
        times = plan_clip_times(span, [CLIP, WINDOW], generator(seed))
        assert times[CLIP].min() >= times[WINDOW].min() - 1e-9
        assert times[CLIP].max() <= times[WINDOW].max() + 1e-9


def test_windows_go_where_the_file_moves():
    motion = [0.0] * 16 + [1.0] * 16  # only the second half moves
    span = usable_span(0, 32, 25.0, motion)
    starts = torch.stack(
        [draw_clip_times(span, CLIP, generator(seed))[0, 0] for seed in range(100)]
    )
    assert (starts > 15.5).all()


def test_without_known_motion_starts_are_uniform():
    span = usable_span(0, 40, 25.0, ())
    starts = torch.stack(
        [draw_clip_times(span, CLIP, generator(seed))[0, 0] for seed in range(400)]
    )
    share = (starts < (span.begin + span.end) / 2).double().mean()
    assert abs(float(share) - 0.5) < 4 * math.sqrt(0.25 / 400)


def test_window_motion_is_the_mean_of_the_bins_it_touches():
    span = usable_span(0, 8, 8.0, [0, 1, 2, 3, 4, 5, 6, 7])
    # The span begins one frame (0.125 s) into the file; [1.125, 3.125] touches the bins 1, 2 and 3.
    assert window_motion(span, 1.0, 2.0) == 2.0


def test_a_video_too_short_fails():
    with pytest.raises(ValueError, match=r"0\.\d+ s of video cannot hold 1\.400 s"):
        draw_clip_times(usable_span(0, 1, 25, ()), WINDOW, generator(0))
