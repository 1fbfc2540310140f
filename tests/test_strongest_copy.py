"""strongest_copy against the dense definition, for every way a cell may look."""

import itertools

import pytest
import torch
from dense_attention import dense_loop, random_inputs
from torch import Tensor
from torch.nn import functional

from videossl.models.attention_topk import strongest_copy


def channels_last(frames: Tensor) -> list[Tensor]:
    return list(frames.permute(0, 2, 3, 1))


def copied(query: Tensor, keys: Tensor, values: Tensor, **settings: object) -> Tensor:
    """The first row of inputs that are channels first, answered channels first."""
    found = strongest_copy(
        query[0].permute(1, 2, 0), channels_last(keys[0]), channels_last(values[0]), **settings
    )
    return found.permute(2, 0, 1)


@pytest.mark.parametrize("max_bytes", [None, 1, 5000])
@pytest.mark.parametrize("top_k", [1, 4, 1000])
@pytest.mark.parametrize(
    ("radius", "mask", "unmasked_frames"),
    [
        (None, "square", 0),
        (0, "square", 0),
        (2, "square", 0),
        (3, "circle", 0),
        (2, "square", 1),
        (2, "circle", 3),
        (20, "square", 1),
    ],
)
def test_equals_the_dense_loop(
    radius: int | None, mask: str, unmasked_frames: int, top_k: int, max_bytes: int | None
) -> None:
    inputs = random_inputs(num_rows=1)
    expected = dense_loop(*inputs, 0.3, radius, mask, top_k, unmasked_frames)[0]
    got = copied(
        *inputs,
        temperature=0.3,
        radius=radius,
        mask=mask,
        top_k=top_k,
        unmasked_frames=unmasked_frames,
        max_bytes=max_bytes,
    )
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (3, 4), (1, 17), (9, 19), (7, 6), (13, 5), (18, 25)])
@pytest.mark.parametrize("radius", [None, 4])
def test_any_frame_size_equals_the_dense_loop(size: tuple[int, int], radius: int | None) -> None:
    inputs = random_inputs(num_rows=1, num_frames=2, height=size[0], width=size[1])
    expected = dense_loop(*inputs, 0.5, radius, "square", 6, 0)[0]
    got = copied(*inputs, temperature=0.5, radius=radius, top_k=6)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("radius", "unmasked_frames"), [(None, 0), (2, 0), (2, 1)])
def test_weights_may_be_those_among_all_cells(radius: int | None, unmasked_frames: int) -> None:
    query, keys, values = random_inputs(num_rows=1)
    got = copied(
        query,
        keys,
        values,
        temperature=0.7,
        radius=radius,
        top_k=3,
        unmasked_frames=unmasked_frames,
        renormalize=False,
    )
    for y, x in itertools.product(range(7), range(8)):
        similarity = torch.einsum("d,mdij->mij", query[0, :, y, x], keys[0]) / 0.7
        i, j = torch.meshgrid(torch.arange(7), torch.arange(8), indexing="ij")
        if radius is not None:
            outside = torch.maximum((i - y).abs(), (j - x).abs()) > radius
            similarity[unmasked_frames:, outside] = -torch.inf
        weights = similarity.flatten().softmax(0)
        kept, cells = weights.topk(3)
        expected = values[0].movedim(1, -1).flatten(0, 2)[cells].T @ kept
        torch.testing.assert_close(got[:, y, x], expected, atol=1e-5, rtol=1e-5)


def test_moves_beyond_the_radius_are_not_found() -> None:
    generator = torch.Generator().manual_seed(1)
    features = functional.normalize(torch.randn(1, 32, 20, 24, generator=generator), dim=1)
    places = torch.arange(480.0).view(1, 1, 1, 20, 24)
    found = copied(
        features.roll(6, 3), features[:, None], places, temperature=0.01, radius=5, top_k=1
    )
    assert not (found[0, 6:-6, 6:-6] == places[0, 0, 0].roll(6, 1)[6:-6, 6:-6]).any()


def test_top_k_is_taken_over_the_whole_memory() -> None:
    query = torch.ones(1, 1, 1, 1)
    keys = torch.tensor([3.0, 2.0, 1.0]).view(1, 3, 1, 1, 1)
    values = torch.eye(3).view(1, 3, 3, 1, 1)
    found = copied(query, keys, values, temperature=1.0, radius=1, top_k=2).flatten()
    assert found[2] == 0
    torch.testing.assert_close(found[:2], torch.tensor([3.0, 2.0]).softmax(0))


def test_a_cap_on_memory_changes_nothing_but_the_memory() -> None:
    resource = pytest.importorskip("resource", reason="peak memory is read with getrusage")
    inputs = random_inputs(1, 8, 64, 2, 60, 106)
    frames = [channels_last(t[0]) for t in inputs[1:]]
    query = inputs[0][0].permute(1, 2, 0)
    settings = {"temperature": 0.05, "radius": 12, "top_k": 10}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    small = strongest_copy(query, *frames, **settings, max_bytes=4 * 2**20)
    grown_bytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown_bytes < 100e6  # the dense matrix alone is 1.3 GB
    torch.testing.assert_close(small, strongest_copy(query, *frames, **settings))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"radius": -1}, "radius"),
        ({"mask": "star"}, "square or circle"),
        ({"top_k": 0}, "top_k must be >= 1"),
        ({"distance_sigma": 0.0}, "distance_sigma must be None or > 0"),
    ],
)
def test_settings_out_of_range_fail(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        copied(*random_inputs(), **{"temperature": 1.0, "top_k": 5, **change})


def test_frames_of_other_sizes_fail() -> None:
    query, keys, values = random_inputs()
    with pytest.raises(ValueError, match=r"keys must be frames \(h, w, D\)"):
        copied(query[:, :, 1:], keys, values, temperature=1.0, top_k=5)
    with pytest.raises(ValueError, match="values must be"):
        copied(query, keys, values[:, :2], temperature=1.0, top_k=5)


@pytest.mark.parametrize("max_bytes", [None, 5000])
@pytest.mark.parametrize("size", [(5, 6), (18, 25)])
@pytest.mark.parametrize("mask", ["square", "circle"])
@pytest.mark.parametrize("radius", [4, None])
def test_weights_fall_off_as_a_gaussian_of_the_distance(
    size: tuple[int, int], radius: int | None, mask: str, max_bytes: int | None
) -> None:
    inputs = random_inputs(num_rows=1, num_frames=2, height=size[0], width=size[1])
    expected = dense_loop(*inputs, 0.3, radius, mask, 5, 0, distance_sigma=1.7)[0]
    got = copied(
        *inputs,
        temperature=0.3,
        radius=radius,
        mask=mask,
        top_k=5,
        distance_sigma=1.7,
        max_bytes=max_bytes,
    )
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
