import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from videossl.config import SamplingRules
from videossl.data.sampling import (
    VideoTimes,
    draw_clip_times,
    plan_clip_times,
    starts_on_key_frame,
    usable_shots,
    window_motion,
)
from videossl.rng import generator
from videossl.types import ClipSpec

WINDOW = ClipSpec(5, 4, 1 / 15, 64, min_gap_seconds=0.3, window_seconds=2.4)
CLIP = ClipSpec(1, 8, 1 / 15, 64)
RULES = SamplingRules()


def plan(
    video: VideoTimes, spec: ClipSpec, seed: int, rules: SamplingRules = RULES
) -> torch.Tensor:
    return plan_clip_times(video, [spec], rules, generator(seed))[spec]


def first_times(video: VideoTimes, count: int, rules: SamplingRules = RULES) -> np.ndarray:
    return np.array([float(plan(video, CLIP, seed, rules)[0, 0]) for seed in range(count)])


@settings(max_examples=100, deadline=None)
@given(st.floats(2.0, 60.0), st.integers(0, 10_000), st.floats(-5, 5))
def test_times_stay_clear_of_the_ends_and_keep_their_gaps(seconds, seed, begin):
    video = VideoTimes(begin, begin + seconds, 25.0, [1.0] * 32)
    margin = 1.0 if seconds >= 5 else 0.1 * seconds
    for spec in (WINDOW, CLIP):
        if seconds - margin - 1 / 25 < spec.min_span_seconds:
            continue
        times = plan(video, spec, seed)
        assert times.shape == (spec.num_clips, spec.num_frames)
        assert times.min() >= begin + 1 / 25 - 1e-9
        assert times.max() <= begin + seconds - margin + 1e-9
        steps = times[:, 1:] - times[:, :-1]
        torch.testing.assert_close(steps, torch.full_like(steps, spec.seconds_between_frames))
        gaps = times[1:, 0] - times[:-1, 0]
        assert (gaps >= spec.min_gap_seconds - 1e-9).all()
        if spec.num_clips > 1:
            assert times.max() - times.min() <= spec.window_seconds + 1e-9


def test_gaps_have_ranges_of_their_own():
    spec = ClipSpec(3, 1, 1 / 15, 64, gap_ranges=((0.5, 1.0), (0.2, 0.8)))
    assert (spec.min_span_seconds, spec.max_span_seconds) == (0.7, 1.8)
    gaps = np.array(
        [np.diff(plan(VideoTimes(0, 20, 25.0), spec, seed)[:, 0]) for seed in range(400)]
    )
    for gap, (least, most) in zip(gaps.T, spec.gap_ranges, strict=True):
        assert least <= gap.min() < least + 0.02
        assert most - 0.02 < gap.max() <= most
        assert gap.mean() == pytest.approx((least + most) / 2, abs=0.03)
    short = np.array([np.diff(plan(VideoTimes(0, 1.5, 25.0), spec, s)[:, 0]) for s in range(400)])
    share = (1.5 - 0.15 - 1 / 25 - 0.7) / 1.1  # of the ranges that the usable part leaves
    assert short[:, 0].max() <= 0.5 + 0.5 * share
    assert short[:, 0].min() >= 0.5


def test_gap_ranges_that_are_none_fail():
    with pytest.raises(ValueError, match=r"3 clips have 2 gaps, got 1 gap_ranges"):
        ClipSpec(3, 1, 0.1, 32, gap_ranges=((0.1, 0.2),))
    with pytest.raises(ValueError, match=r"must be \(least, most\)"):
        ClipSpec(2, 1, 0.1, 32, gap_ranges=((0.3, 0.2),))


def test_without_the_rule_windows_reach_both_ends():
    video = VideoTimes(0, 4, 25.0)
    rules = SamplingRules(skip_ends=False)
    times = np.array([plan(video, CLIP, seed, rules).numpy() for seed in range(300)])
    assert times.min() < 1 / 25
    assert times.max() > 3.6
    assert usable_shots(video, rules) == [(0, 4 - 1 / 25)]


def test_short_specs_lie_inside_the_longest_window():
    video = VideoTimes(0, 30, 25.0, [1.0] * 32)
    for seed in range(20):
        times = plan_clip_times(video, [CLIP, WINDOW], RULES, generator(seed))
        assert times[CLIP].min() >= times[WINDOW].min() - 1e-9
        assert times[CLIP].max() <= times[WINDOW].max() + 1e-9


def test_windows_go_where_the_file_moves():
    video = VideoTimes(0, 32, 25.0, [0.0] * 16 + [1.0] * 16)  # only the second half moves
    assert (first_times(video, 100) > 15.5).all()
    uniform = first_times(video, 300, SamplingRules(weight_motion=False))
    assert abs((uniform > 15.5).mean() - 0.5) < 5 * math.sqrt(0.25 / 300)


def test_without_known_motion_starts_are_uniform():
    starts = first_times(VideoTimes(0, 40, 25.0), 400)
    middle = (1 / 25 + 39 - CLIP.clip_seconds) / 2
    assert abs((starts < middle).mean() - 0.5) < 4 * math.sqrt(0.25 / 400)


def test_window_motion_is_the_mean_of_the_bins_it_touches():
    video = VideoTimes(0, 8, 8.0, [0, 1, 2, 3, 4, 5, 6, 7])
    # [1.125, 3.125] touches the bins 1, 2 and 3; [7.5, 9.5] only the last.
    assert window_motion(video, np.array([1.125, 7.5]), 2.0).tolist() == [2.0, 7.0]


@pytest.mark.parametrize("group", [12, 32])
def test_no_clip_starts_on_a_key_frame(group):
    fps = 25.0
    video = VideoTimes(0, 20, fps, (), np.arange(0, 20, group / fps))
    keys = set(range(0, 500, group))

    def on_key(rules: SamplingRules) -> int:
        shown = 0
        for seed in range(200):
            starts = plan(video, WINDOW, seed, rules)[:, 0].numpy()
            shown += any(int(start * fps + 1e-6) in keys for start in starts)
        return shown

    assert on_key(RULES) == 0
    assert on_key(SamplingRules(avoid_key_frames=False)) > 200 * (5 / group) / 3


def test_key_frames_cannot_be_avoided_where_all_frames_are_such():
    video = VideoTimes(0, 20, 25.0, (), np.arange(0, 20, 1 / 25))
    assert not starts_on_key_frame(video, np.arange(1, 9, 0.3)).any()
    assert plan(video, WINDOW, 0).shape == (5, 4)


def test_no_window_holds_a_cut():
    video = VideoTimes(0, 20, 25.0, (), np.empty(0), (3.0, 3.2, 9.4, 16.0))
    for seed in range(200):
        times = plan(video, WINDOW, seed)
        first, last = float(times.min()), float(times.max())
        assert not any(first < cut <= last for cut in video.cuts)
    loose = SamplingRules(avoid_cuts=False)
    held = 0
    for seed in range(200):
        times = plan(video, WINDOW, seed, loose)
        held += any(float(times.min()) < cut <= float(times.max()) for cut in video.cuts)
    assert held > 40


def test_all_shots_that_hold_a_window_are_used():
    video = VideoTimes(0, 20, 25.0, (), np.empty(0), (6.0, 6.4, 12.0))
    starts = first_times(video, 400)
    in_shots = [((starts >= a) & (starts < b)).mean() for a, b in [(0, 6), (6.4, 12), (12, 19)]]
    # In proportion to the room that each leaves: all but the length of a clip.
    rooms = np.array([6 - 0.04, 5.6, 7.0]) - CLIP.clip_seconds
    np.testing.assert_allclose(in_shots, rooms / rooms.sum(), atol=0.1)
    assert sum(in_shots) == 1.0


def test_a_video_too_short_fails():
    with pytest.raises(ValueError, match=r"0\.\d+ s of video cannot hold 1\.400 s"):
        plan(VideoTimes(0, 1, 25.0), WINDOW, 0)
    cut_up = VideoTimes(0, 3, 25.0, (), np.empty(0), (0.5, 1.0, 1.5, 2.0, 2.5))
    with pytest.raises(ValueError, match=r"0\.\d+ s of video cannot hold 1\.400 s"):
        plan(cut_up, WINDOW, 0)
    assert plan(replace(cut_up, cuts=()), WINDOW, 0).shape == (5, 4)


def test_times_are_a_function_of_the_generator():
    video = VideoTimes(0, 20, 25.0, [1.0] * 32)
    shots = usable_shots(video, RULES)
    one, two = (draw_clip_times(video, shots, WINDOW, RULES, generator(5)) for _ in range(2))
    assert torch.equal(one, two)
