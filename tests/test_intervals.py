"""Bootstrap intervals: against the normal theory where it holds, and over videos rather than questions."""

import numpy as np
import pytest

from videossl.stats import bootstrap, bootstrap_over_videos, too_few


def test_interval_of_a_mean_is_that_of_the_normal_theory():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    estimate, low, high = bootstrap_over_videos(values, np.ones(400), np.arange(400))
    error = values.std() / 20
    assert estimate == pytest.approx(values.mean())
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_repeated_questions_about_a_video_do_not_narrow_the_interval():
    values = np.random.default_rng(1).normal(size=50)
    once = bootstrap_over_videos(values, np.ones(50), np.arange(50))
    often = bootstrap_over_videos(values.repeat(30), np.ones(1500), np.arange(50).repeat(30))
    assert often == pytest.approx(once)


def test_both_forms_agree_and_weights_count():
    random = np.random.default_rng(2)
    values, weights = random.normal(size=90), random.uniform(size=90)
    videos = np.repeat(np.arange(30), 3)
    mean = bootstrap_over_videos(values, weights, videos, seed=5)
    general = bootstrap(lambda w: float((w * values).sum() / w.sum()), weights, videos, seed=5)
    assert mean == pytest.approx(general)
    assert mean.estimate == pytest.approx(np.average(values, weights=weights))


def test_nothing_asked_is_nan_and_not_zero():
    nothing = np.zeros(3)
    assert all(np.isnan(bootstrap_over_videos(np.ones(3), nothing, np.arange(3))))
    assert all(np.isnan(bootstrap(lambda w: 1.0, nothing, np.arange(3))))


def test_below_ten_videos_it_is_said_that_they_are_too_few():
    assert [too_few(count) for count in (1, 9, 10, 11)] == [
        "1 video: too few to tell",
        "9 videos: too few to tell",
        "",
        "",
    ]
