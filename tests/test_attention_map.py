"""The weights of one cell: copying with them is copying with attention_copy and strongest_copy."""

import pytest
import torch
from dense_attention import random_inputs

from videossl.models.attention import attention_copy, attention_map
from videossl.models.attention_topk import strongest_copy

SETTINGS = [
    {"radius": None},
    {"radius": 2},
    {"radius": 3, "mask": "circle"},
    {"radius": 2, "unmasked_frames": 1},
    {"radius": 3, "mask": "circle", "unmasked_frames": 2},
]


def identity(num_frames: int, height: int, width: int) -> torch.Tensor:
    """Values that name their place: what is copied are the weights themselves, (M, M h w, h, w)."""
    num_cells = num_frames * height * width
    return torch.eye(num_cells).view(num_cells, num_frames, height, width).transpose(0, 1)


@pytest.mark.parametrize("settings", SETTINGS)
def test_weights_are_what_attention_copies_of_an_identity(settings):
    query, keys, _ = random_inputs(num_rows=1)
    num_frames, _, height, width = keys.shape[1:]
    values = identity(num_frames, height, width)
    copied = attention_copy(query, keys, values[None], temperature=0.5, **settings)[0]
    for cell in [(0, 0), (3, 4), (6, 7)]:
        weights = attention_map(query[0], cell, keys[0], temperature=0.5, **settings)
        torch.testing.assert_close(weights.flatten(), copied[:, cell[0], cell[1]])
        assert weights.sum().item() == pytest.approx(1)


FALLING_OFF = [
    {"radius": 3, "distance_sigma": 1.2},
    {"radius": None, "mask": "circle", "distance_sigma": 2.5},
    {"radius": 2, "distance_sigma": 0.8, "unmasked_frames": 1},
]


@pytest.mark.parametrize("settings", SETTINGS + FALLING_OFF)
@pytest.mark.parametrize("top_k", [1, 5, 10_000])
@pytest.mark.parametrize("renormalize", [True, False])
def test_the_strongest_are_those_of_strongest_copy(settings, top_k, renormalize):
    query, keys, _ = random_inputs(num_rows=1)
    num_frames, _, height, width = keys.shape[1:]
    values = identity(num_frames, height, width)
    options = {"temperature": 0.5, "top_k": top_k, "renormalize": renormalize, **settings}
    copied = strongest_copy(
        query[0].permute(1, 2, 0),
        list(keys[0].permute(0, 2, 3, 1)),
        list(values.permute(0, 2, 3, 1)),
        **options,
    )
    for cell in [(0, 0), (3, 4), (6, 7)]:
        weights = attention_map(query[0], cell, keys[0], **options)
        torch.testing.assert_close(weights.flatten(), copied[cell])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature must be > 0"),
        ({"radius": -1}, "radius must be None"),
        ({"mask": "disc"}, "square or circle"),
        ({"top_k": 0}, "top_k must be"),
        ({"distance_sigma": 0.0}, "distance_sigma must be None or > 0, got 0.0"),
    ],
)
def test_settings_out_of_range_fail(settings, message):
    query, keys, _ = random_inputs(num_rows=1)
    with pytest.raises(ValueError, match=message):
        attention_map(query[0], (0, 0), keys[0], **{"temperature": 1.0, **settings})
