"""Questions whose answers are rows of the batch: places of own keys, masks, and precision under autocast."""

import pytest
import torch

from videossl.pretext._losses import (
    candidates,
    chance_of,
    finds_own,
    info_nce,
    own_last,
    own_place,
    similarities,
)

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
    ordered = own_last(scores, excluded)
    assert ordered.tolist() == [[-torch.inf, -1.0, 0.0, 1.0], [0.0, -torch.inf, 3.0, 1.0]]
    assert own_place(ordered).tolist() == [3, 3]
    assert chance_of(ordered).tolist() == pytest.approx([1 / 3, 1 / 3])
    without = excluded | torch.tensor([False, False, False, False, True])
    assert finds_own(scores, without).tolist() == [1.0, 1.0]


def test_what_has_collapsed_finds_nothing():
    """All embeddings alike: each key is as good as the others, and a tie scores what a guess scores."""
    keys, excluded = candidates(torch.ones(2, 2), torch.ones(3, 2), IS_OWN)
    scores = similarities(torch.ones(2, 2), keys)
    assert finds_own(scores, excluded).tolist() == pytest.approx([1 / 3, 1 / 3])
    ordered = own_last(scores, excluded)
    assert (ordered.argmax(1) == own_place(ordered)).tolist() == [False, False]


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
