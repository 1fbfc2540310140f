"""Questions whose answers are rows of the batch: places of own keys, masks, and precision under autocast."""

import pytest
import torch

from videossl.losses.in_batch import candidates, finds_own, own_first, similarities
from videossl.losses.metric import info_nce

OWN = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
EVERYONE = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 3.0]])
IS_OWN = torch.tensor([[True, False, False], [False, True, False]])


def test_own_keys_come_first_and_each_query_has_its_own_once():
    keys, excluded = candidates(OWN, EVERYONE, IS_OWN)
    assert keys.tolist() == [*OWN.tolist(), *EVERYONE.tolist()]
    assert excluded.tolist() == [
        [False, True, True, False, False],
        [True, False, False, True, False],
    ]


def test_a_query_finds_its_own_only_if_nothing_left_scores_more():
    keys, excluded = candidates(OWN, EVERYONE, IS_OWN)
    scores = similarities(torch.tensor([[1.0, -1.0], [0.0, 1.0]]), keys)
    assert finds_own(scores, excluded).tolist() == [1.0, 0.0]  # (3, 3) is nearer to the second
    assert own_first(scores, excluded).tolist() == [
        [1.0, -torch.inf, -1.0, 0.0],
        [1.0, 0.0, -torch.inf, 3.0],
    ]
    without = excluded | torch.tensor([False, False, False, False, True])
    assert finds_own(scores, without).tolist() == [1.0, 1.0]


def test_autocast_changes_no_score():
    torch.manual_seed(0)
    queries = torch.nn.functional.normalize(torch.randn(8, 64) + 3, dim=1)
    keys = torch.nn.functional.normalize(queries + 0.02 * torch.randn(8, 64), dim=1)
    exact = info_nce(queries, keys, temperature=0.05, normalize=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (queries @ keys.T).dtype == torch.bfloat16, "else this test tests nothing"
        torch.testing.assert_close(
            similarities(queries, keys), queries.double() @ keys.double().T, check_dtype=False
        )
        found = info_nce(queries, keys, temperature=0.05, normalize=False)
    assert float(found) == pytest.approx(float(exact), rel=1e-6)
