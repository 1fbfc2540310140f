"""The measures against cases worked out by hand and against slow loops written from their definitions."""

import numpy as np
import pytest
from numpy.typing import NDArray

from videossl.tracking.points import badja_pck, joint_errors, mean_pck, tapvid_scores


def loop_jhmdb(
    predicted: list[NDArray], truth: list[NDArray], judged: list[NDArray], alpha: float
) -> float:
    """eval_pck.py: a list of normalised distances per joint, the share within alpha, the mean over joints."""
    distances: dict[int, list[float]] = {j: [] for j in range(len(truth[0]))}
    for p, g, v in zip(predicted, truth, judged, strict=True):
        for k in range(1, g.shape[1]):
            xs = [g[j, k, 0] for j in range(len(g)) if v[j, k]]
            ys = [g[j, k, 1] for j in range(len(g)) if v[j, k]]
            for j in range(len(g)):
                if v[j, k]:
                    box = 0.6 * np.hypot(max(xs) - min(xs), max(ys) - min(ys))
                    distances[j].append(np.hypot(*(p[j, k] - g[j, k])) / box)
    shares = [np.mean([d <= alpha for d in found]) for found in distances.values() if found]
    return float(np.mean(shares))


def loop_tapvid(
    tracks: NDArray,
    occluded: NDArray,
    truth: NDArray,
    truth_occluded: NDArray,
    query_frames: NDArray,
    mode: str,
) -> dict[str, float]:
    """The paper's definitions, a point and a frame at a time."""
    deltas, jaccards, right, total = [], [], 0, 0
    for threshold in (1, 2, 4, 8, 16):
        near = visible = true_positive = false_positive = 0
        for n in range(len(truth)):
            for t in range(truth.shape[1]):
                if t == query_frames[n] or (mode == "first" and t < query_frames[n]):
                    continue
                within = np.hypot(*(tracks[n, t] - truth[n, t])) < threshold
                if threshold == 1:
                    total += 1
                    right += occluded[n, t] == truth_occluded[n, t]
                if not truth_occluded[n, t]:
                    visible += 1
                    near += within
                    true_positive += within and not occluded[n, t]
                if not occluded[n, t] and (truth_occluded[n, t] or not within):
                    false_positive += 1
        deltas.append(near / visible)
        jaccards.append(true_positive / (visible + false_positive))
    return {"OA": right / total, "delta_avg": np.mean(deltas), "AJ": np.mean(jaccards)}


def test_joints_are_measured_by_the_box_of_the_judged_ones() -> None:
    # Two judged joints 30 x 40 apart: diagonal 50, size 30. The third, far away, is not judged.
    truth = np.array([[[0, 0], [0, 0], [0, 0]], [[30, 40]] * 3, [[500, 500]] * 3], float)
    places = truth.copy()
    places[0, 0] += 1000  # frame 0 is given
    places[0, 1, 0], places[0, 2, 0], places[1, 1, 1] = 3, 3.1, 40 + 15
    judged = np.array([[True] * 3, [True] * 3, [False] * 3])
    errors = joint_errors(places, truth, judged)
    nan = np.nan
    expected = [[nan, 0.1, 3.1 / 30], [nan, 0.5, 0.0], [nan, nan, nan]]
    np.testing.assert_allclose(errors, expected)
    assert mean_pck([errors], 0.1) == 0.5  # joint 0: 1 of 2 (0.1 itself counts), joint 1: 1 of 2
    assert mean_pck([errors], 0.2) == 0.75
    assert mean_pck([errors], 0.5) == 1.0


def test_frames_are_pooled_per_joint_before_the_mean_over_joints() -> None:
    nan = np.nan
    first = np.array([[nan, 0, 0, 0], [nan, 0, 1, nan]])
    second = np.array([[nan, 1], [nan, nan]])
    assert mean_pck([first, second], 0.1) == (3 / 4 + 1 / 2) / 2


def test_joints_equal_the_slow_loop() -> None:
    random = np.random.default_rng(0)
    truth = [random.uniform(0, 100, (15, length, 2)) for length in (7, 4, 12)]
    places = [g + random.normal(0, 15, g.shape) for g in truth]
    judged = [np.repeat(random.random((15, 1)) > 0.2, g.shape[1], 1) for g in truth]
    errors = [joint_errors(*video) for video in zip(places, truth, judged, strict=True)]
    for alpha in (0.1, 0.2, 0.3, 0.4, 0.5):
        assert mean_pck(errors, alpha) == pytest.approx(loop_jhmdb(places, truth, judged, alpha))


def test_a_lost_joint_and_a_person_without_size_are_wrong() -> None:
    truth = np.zeros((2, 2, 2))
    truth[1] = [[3, 4], [0, 0]]  # in frame 1 both joints are at one place
    places = truth.copy()
    assert mean_pck([joint_errors(places, truth, np.ones((2, 2), bool))], 0.5) == 0
    truth[1, 1] = [3, 4]
    places = truth.copy()
    places[0, 1] = np.nan
    assert mean_pck([joint_errors(places, truth, np.ones((2, 2), bool))], 0.5) == 0.5
    assert np.isnan(mean_pck([joint_errors(places, truth, np.zeros((2, 2), bool))], 0.5))


def test_animal_joints_are_measured_by_the_area_of_the_mask() -> None:
    # Areas 100 and 400: thresholds 2 and 4 pixels, themselves not within.
    truth = np.zeros((3, 3, 2))
    places = np.zeros((3, 3, 2))
    places[:, 1, 0] = [1.9, 2.0, 50]
    places[:, 2, 1] = [3.9, 4.1, 0]
    judged = np.array([[False, True, True], [False, True, True], [False, False, True]])
    areas = np.array([0, 100, 400], float)
    assert badja_pck(places, truth, judged, areas) == 3 / 5
    places[0, 1] = np.nan
    assert badja_pck(places, truth, judged, areas) == 2 / 5
    assert np.isnan(badja_pck(places, truth, np.zeros((3, 3), bool), areas))


def test_animal_joints_equal_the_slow_loop() -> None:
    random = np.random.default_rng(1)
    truth = random.uniform(0, 300, (20, 9, 2))
    places = truth + random.normal(0, 12, truth.shape)
    judged, areas = random.random((20, 9)) > 0.4, random.uniform(2000, 9000, 9)
    hits = [
        np.sqrt(((places[n, t] - truth[n, t]) ** 2).sum()) < 0.2 * np.sqrt(areas[t])
        for t in range(9)
        for n in range(20)
        if judged[n, t]
    ]
    assert badja_pck(places, truth, judged, areas) == pytest.approx(np.mean(hits))


def test_tapvid_scores_equal_a_case_by_hand() -> None:
    # One point, query at frame 1 of 5. Frames 2, 3, 4: off by 1.5 and seen by both; right place, called hidden; hidden in
    # truth, called seen.
    truth = np.zeros((1, 5, 2))
    places = np.zeros((1, 5, 2))
    places[0, 0] = 100
    places[0, 2, 0] = 1.5
    truth_occluded = np.array([[False, False, False, False, True]])
    occluded = np.array([[False, False, False, True, False]])
    values = tapvid_scores(
        places,
        occluded,
        truth=truth,
        truth_occluded=truth_occluded,
        query_frames=np.array([1]),
        mode="first",
    )
    assert values["OA"] == pytest.approx(1 / 3)
    assert values["delta_1"] == 0.5
    assert values["delta_2"] == values["delta_16"] == 1
    assert values["delta_avg"] == pytest.approx((0.5 + 4) / 5)
    # At 1 pixel: nothing true, visible 2, false 2 -> 0 / 4. From 2 pixels on: 1 true, visible 2, false 1 -> 1 / 3.
    assert values["jaccard_1"] == 0
    assert values["jaccard_2"] == pytest.approx(1 / 3)
    assert values["AJ"] == pytest.approx(4 / 3 / 5)
    strided = tapvid_scores(
        places,
        occluded,
        truth=truth,
        truth_occluded=truth_occluded,
        query_frames=np.array([1]),
        mode="strided",
    )
    # Frame 0 counts now: far, seen by both.
    assert strided["OA"] == pytest.approx(2 / 4)
    assert strided["delta_2"] == pytest.approx(2 / 3)
    assert strided["jaccard_2"] == pytest.approx(1 / (3 + 2))


@pytest.mark.parametrize("mode", ["first", "strided"])
def test_tapvid_scores_equal_the_slow_loop(mode: str) -> None:
    random = np.random.default_rng(2)
    truth = random.uniform(0, 256, (9, 12, 2))
    places = truth + random.normal(0, 5, truth.shape)
    truth_occluded, occluded = random.random((2, 9, 12)) < 0.3
    query_frames = random.integers(0, 10, 9)
    expected = loop_tapvid(places, occluded, truth, truth_occluded, query_frames, mode)
    values = tapvid_scores(
        places,
        occluded,
        truth=truth,
        truth_occluded=truth_occluded,
        query_frames=query_frames,
        mode=mode,
    )
    for name, value in expected.items():
        assert values[name] == pytest.approx(value), name


def test_a_video_without_visible_frames_after_its_query_has_no_delta() -> None:
    values = tapvid_scores(
        np.zeros((1, 3, 2)),
        np.ones((1, 3), bool),
        truth=np.zeros((1, 3, 2)),
        truth_occluded=np.array([[False, True, True]]),
        query_frames=np.array([0]),
        mode="first",
    )
    assert values["OA"] == 1
    assert np.isnan(values["delta_avg"])
    assert np.isnan(values["AJ"])
