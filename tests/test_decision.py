"""The mask with the greatest expected J, against a loop over all thresholds and cases that can be said by hand."""

import numpy as np
import pytest
import torch

from videossl.tracking.propagation import greatest_expected_iou, propagate
from videossl.tracking.protocol import preset


def slow_mask(part: np.ndarray, power: float) -> np.ndarray:
    """Pixels of one object, by trying each threshold with sums over pixels."""
    p = part**power / (part**power + (1 - part) ** power)
    best, chosen = -1.0, 0.5
    for level in range(13, 129):
        mask = p > level / 256
        outside = p[~mask & (p > 13 / 256)].sum()
        expected = p[mask].sum() / max(mask.sum() + outside, 1)
        if expected > best:
            best, chosen = expected, level / 256
    return p > chosen


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("seed", range(6))
def test_the_mask_is_the_best_of_all_thresholds(seed, power):
    rng = np.random.default_rng(seed)
    part = rng.random((20, 30)) ** (1 + seed)  # from even to mostly small shares
    shares = torch.from_numpy(np.stack([1 - part, part]))
    found = greatest_expected_iou(shares, power=power).numpy()
    np.testing.assert_array_equal(found == 1, slow_mask(part, power))


def test_an_object_of_small_shares_is_found_whole():
    # All thresholds below .3 give the same mask: expected J .3, where the largest share finds nothing (0).
    part = torch.zeros(10, 12)
    part[2:6, 3:9] = 0.3
    shares = torch.stack([1 - part, part])
    assert shares.argmax(0).sum() == 0
    assert torch.equal(greatest_expected_iou(shares), (part > 0).long())


def test_sure_shares_are_decided_as_by_the_largest():
    generator = torch.Generator().manual_seed(0)
    part = torch.where(torch.rand(16, 16, generator=generator) < 0.4, 0.97, 0.02)
    shares = torch.stack([1 - part, part])
    assert torch.equal(greatest_expected_iou(shares), shares.argmax(0))


def test_two_objects_share_no_pixel_and_each_has_its_own_threshold():
    clear, faint = torch.zeros(8, 8), torch.zeros(8, 8)
    clear[:4], faint[5:] = 0.95, 0.2
    clear[5:] = 0.1  # leaks into the other one, far below its own threshold
    shares = torch.stack([1 - clear - faint, clear, faint])
    found = greatest_expected_iou(shares)
    assert (found[:4] == 1).all()
    assert (found[4] == 0).all()
    assert (found[5:] == 2).all()


@pytest.mark.parametrize(
    "shares", [torch.ones(1, 4, 4), torch.stack([torch.ones(4, 4), torch.zeros(4, 4)])]
)
def test_nothing_is_found_where_nothing_is(shares):
    assert greatest_expected_iou(shares).sum() == 0


def test_what_is_left_of_far_shares_is_no_object():
    part = torch.full((6, 6), 0.04)
    assert greatest_expected_iou(torch.stack([1 - part, part])).sum() == 0


def test_shares_need_not_sum_to_one_and_may_be_just_below_zero():
    part = torch.tensor([[0.9, -0.01, 0.2], [1.02, 0.0, 0.7]])
    shares = torch.stack([1 - part, part])
    expected = torch.tensor([[1, 0, 0], [1, 0, 1]])
    assert torch.equal(greatest_expected_iou(shares, power=2), expected)
    assert torch.equal(greatest_expected_iou(shares * 0.25, power=2), expected)


@pytest.mark.parametrize("refined", [False, True])
def test_a_protocol_decides_by_it(refined):
    """Features that are the same everywhere, so that every cell copies from all of the first mask."""
    features = [torch.nn.functional.normalize(torch.ones(4, 6, 8), dim=0)] * 3
    mask = np.zeros((24, 32), np.uint8)
    mask[6:18, 8:20] = 1
    frame = torch.zeros(3, 24, 32, dtype=torch.uint8)
    frame[:, 6:18, 8:20] = 255
    settings = {"refine_radius": "2"} if refined else {"refine_radius": "none"}
    settings |= {"top_k": "none", "radius": "none", "distance_sigma": "none"}
    areas = {}
    for rule in ("share", "expected_iou"):
        protocol = preset("videossl", {**settings, "decision": rule, "decision_power": "1"})
        found = propagate(features, mask, protocol, object_ids=[1], frame_at=lambda _: frame)
        areas[rule] = int((list(found)[1] == 1).sum())
    # Every cell copies the same share, that of the first mask's area (144 of 768): nothing wins, everything is expected.
    assert areas["share"] == 0
    assert areas["expected_iou"] > 0


def test_a_power_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"decision_power must be > 0 and finite, got 0\.0"):
        preset("videossl", {"decision_power": "0"})
