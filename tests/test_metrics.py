"""J and F against the official evaluator's recorded output, published per-frame values and slow definitions."""

import importlib.util
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

from videossl.io.index_masks import read_mask
from videossl.tracking.region_contour import (
    bounding_window,
    region_and_contour,
    statistics,
    tolerance_pixels,
)

SHARED = Path(__file__).parents[2] / "shared"
DAVIS = SHARED / "data" / "davis"
needs_golden = pytest.mark.skipif(
    not (SHARED / "reference" / "davis_golden.json").exists(),
    reason="no shared reference folder beside the checkout",
)
needs_davis = pytest.mark.skipif(
    not DAVIS.exists(), reason="no shared DAVIS data beside the checkout"
)
METHODS = ("osvos", "osvoss", "sfls", "siammask", "stm")


def golden_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "golden", SHARED / "reference" / "davis_golden_gen.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def j_and_f(pred: NDArray[np.bool_], gt: NDArray[np.bool_]) -> tuple[float, float]:
    """J and F of whole frames."""
    return region_and_contour(pred, gt, radius=tolerance_pixels(*gt.shape))


def slow_contour_accuracy(pred: NDArray[np.bool_], gt: NDArray[np.bool_]) -> float:
    """The definition, pixel by pixel."""
    height, width = gt.shape
    radius = math.ceil(0.008 * math.sqrt(height**2 + width**2))

    def edges(mask: NDArray[np.bool_]) -> set[tuple[int, int]]:
        found = set()
        for y in range(height):
            for x in range(width):
                below = mask[y + 1, x] if y + 1 < height else mask[y, x]
                right = mask[y, x + 1] if x + 1 < width else mask[y, x]
                diagonal = mask[y + 1, x + 1] if y + 1 < height and x + 1 < width else mask[y, x]
                if mask[y, x] != below or mask[y, x] != right or mask[y, x] != diagonal:
                    found.add((y, x))
        return found

    def near(points: set[tuple[int, int]], others: set[tuple[int, int]]) -> float:
        hits = [any((y - v) ** 2 + (x - u) ** 2 <= radius**2 for v, u in others) for y, x in points]
        return sum(hits) / len(hits)

    pred_edge, gt_edge = edges(pred), edges(gt)
    if not pred_edge or not gt_edge:
        return float(not pred_edge and not gt_edge)
    precision, recall = near(pred_edge, gt_edge), near(gt_edge, pred_edge)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@needs_golden
@pytest.mark.parametrize("sequence", ["alpha", "beta", "gamma", "delta"])
def test_equals_the_official_evaluator(sequence: str) -> None:
    golden = json.loads((SHARED / "reference" / "davis_golden.json").read_text())["per_object"]
    frames = golden_generator().frames(sequence)
    num_objects = max(int(value) for value in np.unique(frames[0][0]) if value != 255)
    for number in range(1, num_objects + 1):
        expected = golden[f"{sequence}_{number}"]
        pairs = [(pred == number, gt == number) for gt, pred in frames[1:-1]]
        for place, measure in enumerate("JF"):
            values = [j_and_f(pred, gt)[place] for pred, gt in pairs]
            np.testing.assert_allclose(values, expected[f"{measure}_frames"], atol=1e-6)
            for name, value in statistics(values).as_dict().items():
                assert value == pytest.approx(expected[measure][name], abs=1e-6)


@pytest.fixture(scope="module")
def truth() -> dict[str, list[NDArray[np.uint8]]]:
    names = (DAVIS / "ImageSets" / "2016" / "val_shared.txt").read_text().split()
    folder = DAVIS / "Annotations" / "480p"
    return {
        name: [read_mask(path) for path in sorted((folder / name).glob("*.png"))] for name in names
    }


def scored(
    masks: list[NDArray[np.uint8]], folder: Path
) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    for index, mask in list(enumerate(masks))[1:-1]:
        yield read_mask(folder / f"{index:05d}.png") == 1, mask == 1


@needs_davis
@pytest.mark.parametrize("method", METHODS)
def test_equals_the_published_values_of(
    method: str, truth: dict[str, list[NDArray[np.uint8]]]
) -> None:
    published = json.loads((DAVIS / "reference" / "2016" / f"{method}_davis.json").read_text())
    assert len(truth) == 13
    for name, masks in truth.items():
        pairs = list(scored(masks, DAVIS / "results" / "2016" / method / name))
        for place, measure in enumerate("JF"):
            values = [j_and_f(pred, gt)[place] for pred, gt in pairs]
            expected = [float(value) for value in published[name][measure]]
            # 1e-9: a value on the edge of the rounding interval.
            np.testing.assert_allclose(
                values, expected, atol=5e-4 + 1e-9, rtol=0, err_msg=f"{name} {measure}"
            )


@pytest.mark.parametrize("seed", range(12))
def test_contour_accuracy_equals_the_slow_definition(seed: int) -> None:
    random = np.random.default_rng(seed)
    height, width = random.integers(20, 45, 2)
    y, x = np.mgrid[:height, :width]
    masks = []
    for _ in range(2):
        centre_y, centre_x = random.uniform(0, height), random.uniform(0, width)
        mask = ((y - centre_y) / random.uniform(3, 12)) ** 2 + (
            (x - centre_x) / random.uniform(3, 12)
        ) ** 2 <= 1
        masks.append(mask ^ (random.random((height, width)) < 0.01))
    assert j_and_f(*masks)[1] == pytest.approx(slow_contour_accuracy(*masks), abs=1e-12)


def test_tolerance_is_8_pixels_at_480p() -> None:
    assert tolerance_pixels(480, 854) == 8


@pytest.mark.parametrize(
    ("pred_is_empty", "gt_is_empty", "expected"),
    [(True, True, 1.0), (True, False, 0.0), (False, True, 0.0), (False, False, 1.0)],
)
def test_empty_masks_score_as_defined(
    pred_is_empty: bool, gt_is_empty: bool, expected: float
) -> None:
    square = np.zeros((40, 50), bool)
    square[5:20, 30:50] = True
    empty = np.zeros_like(square)
    pred, gt = (empty if pred_is_empty else square), (empty if gt_is_empty else square)
    assert j_and_f(pred, gt) == (expected, expected)


def test_a_full_frame_has_no_contour() -> None:
    full = np.ones((40, 50), bool)
    assert j_and_f(full, full)[1] == 1.0
    assert j_and_f(full, ~full)[1] == 1.0


@pytest.mark.parametrize("num_frames", [256, 257, 300, 1000])
def test_decay_of_long_sequences_does_not_wrap(num_frames: int) -> None:
    falling = statistics(np.linspace(1, 0, num_frames))
    assert falling.decay == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize(
    ("values", "mean", "recall", "decay"),
    [([0.5], 0.5, 0.0, 0.0), ([1.0, 0.0], 0.5, 0.5, 1.0), ([1, 1, 0.5, 0.5, 0.0], 0.6, 0.4, 0.75)],
)
def test_statistics_of_few_frames(
    values: list[float], mean: float, recall: float, decay: float
) -> None:
    got = statistics(values)
    assert (got.mean, got.recall, got.decay) == pytest.approx((mean, recall, decay))


def test_statistics_without_frames_fails() -> None:
    with pytest.raises(ValueError, match="at least 3 frames"):
        statistics([])


@pytest.mark.parametrize("seed", range(6))
def test_parts_of_a_frame_score_as_the_whole_frame(seed: int) -> None:
    random = np.random.default_rng(seed)
    pred, gt = np.zeros((2, 120, 160), bool)
    top, left = random.integers(1, 60, 2)
    pred[top : top + 30, left : left + 40] = True
    gt[top + 3 : top + 36, left - 1 : left + 30] = random.random((33, 31)) < 0.9
    window = bounding_window(pred, gt, margin=1)
    radius = tolerance_pixels(120, 160)
    got = region_and_contour(pred[window], gt[window], radius=radius)
    union = np.count_nonzero(pred | gt)
    assert got == (np.count_nonzero(pred & gt) / union, j_and_f(pred, gt)[1])
