"""Intervals over sequences against a slow loop and against cases with a known answer."""

import numpy as np
import pytest

from videossl.tracking.scoring import (
    GLOBAL_COLUMNS,
    ObjectScore,
    bootstrap_intervals,
    format_differences,
    global_scores,
    paired_difference,
)

# Sequences of unequal numbers of objects: where a mean of means would differ from the official mean.
OBJECTS = {"ant": 3, "bee": 1, "cat": 2, "dog": 1, "eel": 5}


def scores(seed: int, objects: dict[str, int] = OBJECTS) -> list[ObjectScore]:
    random = np.random.default_rng(seed)
    return [
        ObjectScore(name, number + 1, tuple(random.random(12)), tuple(random.random(12)))
        for name, count in objects.items()
        for number in range(count)
    ]


def level(name: str, value: float, number: int = 1) -> ObjectScore:
    return ObjectScore(name, number, (value,) * 8, (value,) * 8)


def draws(num_resamples: int, seed: int) -> list[list[str]]:
    """The names drawn, as often as they are."""
    counts = np.random.default_rng(seed).multinomial(5, np.full(5, 0.2), size=num_resamples)
    return [
        [n for n, times in zip(OBJECTS, row, strict=True) for _ in range(times)] for row in counts
    ]


@pytest.mark.parametrize("column", GLOBAL_COLUMNS)
def test_intervals_agree_with_a_loop_over_draws(column: str) -> None:
    row = scores(0)
    means = [
        global_scores([s for name in draw for s in row if s.sequence == name])[column]
        for draw in draws(200, seed=3)
    ]
    low, high = bootstrap_intervals(row, num_resamples=200, seed=3)[column]
    assert low == pytest.approx(np.quantile(means, 0.025), abs=1e-12)
    assert high == pytest.approx(np.quantile(means, 0.975), abs=1e-12)


def test_equal_sequences_leave_no_spread() -> None:
    row = [level(name, 0.5) for name in OBJECTS]
    assert bootstrap_intervals(row)["J-Mean"] == pytest.approx((0.5, 0.5))


def test_of_two_sequences_the_interval_spans_both() -> None:
    # Both draws of one sequence alone have probability 1/4 each, far above 2.5 %.
    assert bootstrap_intervals([level("ant", 0.2), level("bee", 0.6)])["F-Mean"] == (0.2, 0.6)


def test_of_two_values_over_many_sequences_the_interval_is_the_binomial_one() -> None:
    row = [level(f"s{i}", float(i % 2)) for i in range(100)]
    low, high = bootstrap_intervals(row)["J-Mean"]
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.05, 0.5 + 1.96 * 0.05), abs=0.011)


def test_one_sequence_has_no_interval() -> None:
    row = [level("ant", 0.2), level("ant", 0.9, 2)]
    assert bootstrap_intervals(row) == {}
    found = paired_difference(row, [[level("ant", 0.1), level("ant", 0.2, 2)]])
    assert found.intervals == {}
    assert found.difference["J&F-Mean"] == pytest.approx(0.4)
    assert (found.sequences_won, found.num_sequences) == (1, 1)


def test_a_constant_gain_is_certain_however_much_sequences_differ() -> None:
    levels = dict(zip(OBJECTS, (0.1, 0.8, 0.3, 0.6, 0.5), strict=True))
    main = [level(name, value + 0.05) for name, value in levels.items()]
    found = paired_difference(main, [[level(name, value) for name, value in levels.items()]])
    assert found.intervals["J&F-Mean"] == pytest.approx((0.05, 0.05))
    low, high = bootstrap_intervals(main)["J&F-Mean"]
    assert high - low > 0.2
    assert found.sequences_won == 5


def test_differences_are_to_the_mean_of_the_other_rows() -> None:
    main, others = scores(0), [scores(1), scores(2), scores(3)]
    found = paired_difference(main, others)
    mean = np.mean([global_scores(other)["J-Mean"] for other in others])
    assert found.difference["J-Mean"] == pytest.approx(global_scores(main)["J-Mean"] - mean)
    low, high = found.intervals["J-Mean"]
    assert low < found.difference["J-Mean"] < high


def test_the_interval_of_several_rows_is_that_of_their_mean() -> None:
    low, high = bootstrap_intervals(scores(0), scores(1), scores(2))["J-Mean"]
    means = [
        np.mean(
            [
                global_scores([s for name in draw for s in scores(seed) if s.sequence == name])[
                    "J-Mean"
                ]
                for seed in range(3)
            ]
        )
        for draw in draws(100, seed=0)
    ]
    assert (low, high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.05)
    exact = bootstrap_intervals(scores(0), scores(1), scores(2), num_resamples=100)["J-Mean"]
    assert exact == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=1e-12)


def test_a_row_neither_beats_nor_differs_from_itself() -> None:
    found = paired_difference(scores(0), [scores(0), scores(0), scores(0)])
    assert found.sequences_won == 0
    assert found.intervals["F-Recall"] == pytest.approx((0, 0), abs=1e-12)


def test_the_same_seed_gives_the_same_interval() -> None:
    assert bootstrap_intervals(scores(0)) == bootstrap_intervals(scores(0))
    assert bootstrap_intervals(scores(0), seed=1) != bootstrap_intervals(scores(0))


def test_rows_of_other_objects_fail() -> None:
    with pytest.raises(ValueError, match="only rows that score the same objects"):
        paired_difference(scores(0), [scores(0)[:-1]])
    with pytest.raises(ValueError, match="only rows that score the same objects"):
        bootstrap_intervals(scores(0), scores(0)[::-1])


def test_the_text_has_a_line_per_row() -> None:
    main, other = [level("ant", 0.5), level("bee", 0.7)], [level("ant", 0.4), level("bee", 0.8)]
    text = format_differences(
        "trained",
        {"lab": 0.6, "trained": 0.6},
        {"lab": bootstrap_intervals(other)},
        {"lab": paired_difference(main, [other])},
    )
    assert text.splitlines() == [
        "row      J&F-Mean            trained minus row     sequences won",
        "lab       60.0 [40.0, 80.0]   +0.0 [-10.0, +10.0]  1 of 2",
        "trained   60.0",
    ]
