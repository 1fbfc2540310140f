"""attention_copy against a slow dense loop, its gradient, and where the pointer goes."""

import pytest
import torch
from dense_attention import dense_loop, random_inputs
from torch.nn import functional

from videossl.models.attention import attention_copy, attention_map, attention_statistics


@pytest.mark.parametrize("max_bytes", [2**27, 1])
@pytest.mark.parametrize(
    ("radius", "mask", "unmasked_frames"),
    [
        (None, "square", 0),
        (0, "square", 0),
        (2, "square", 0),
        (3, "circle", 0),
        (2, "square", 1),
        (2, "circle", 1),
    ],
)
def test_equals_the_dense_loop(
    radius: int | None, mask: str, unmasked_frames: int, max_bytes: int
) -> None:
    query, keys, values = random_inputs()
    expected = dense_loop(query, keys, values, 0.3, radius, mask, None, unmasked_frames)
    got = attention_copy(
        query,
        keys,
        values,
        temperature=0.3,
        radius=radius,
        mask=mask,
        unmasked_frames=unmasked_frames,
        max_bytes=max_bytes,
    )
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(3, 4), (1, 17), (9, 19), (7, 6)])
def test_any_frame_size_equals_the_dense_loop(size: tuple[int, int]) -> None:
    query, keys, values = random_inputs(num_rows=1, num_frames=2, height=size[0], width=size[1])
    expected = dense_loop(query, keys, values, 0.5, 4, "square", None, 0)
    got = attention_copy(query, keys, values, temperature=0.5, radius=4)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("max_bytes", [2**27, 64])
@pytest.mark.parametrize(("radius", "unmasked_frames"), [(None, 0), (2, 1), (1, 0)])
def test_gradient_is_exact(radius: int | None, unmasked_frames: int, max_bytes: int) -> None:
    inputs = [t.double().requires_grad_() for t in random_inputs(1, 2, 3, 2, 3, 7)]
    assert torch.autograd.gradcheck(
        lambda q, k, v: attention_copy(
            q,
            k,
            v,
            temperature=0.7,
            radius=radius,
            unmasked_frames=unmasked_frames,
            max_bytes=max_bytes,
        ),
        inputs,
        fast_mode=True,
    )


@pytest.mark.parametrize("shift", [(0, 0), (2, -1), (-3, 3)])
def test_pointer_follows_shifted_features(shift: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    features = functional.normalize(torch.randn(1, 32, 20, 24, generator=generator), dim=1)
    moved = features.roll(shift, (2, 3))
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(24.0), indexing="ij")
    place = torch.stack((y, x))[None, None]
    pointer = attention_copy(moved, features[:, None], place, temperature=0.01, radius=4)
    inner = pointer[0, :, 4:-4, 4:-4] - place[0, 0, :, 4:-4, 4:-4]
    expected = -torch.tensor(shift, dtype=torch.float32)[:, None, None].expand_as(inner)
    torch.testing.assert_close(inner, expected, atol=1e-3, rtol=0)


def test_bfloat16_features_are_compared_in_float32() -> None:
    query, keys, values = (t.bfloat16() for t in random_inputs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = attention_copy(query, keys, values, temperature=0.05, radius=2)
    expected = attention_copy(
        query.float(), keys.float(), values.float(), temperature=0.05, radius=2
    )
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"radius": -1}, "radius"),
        ({"mask": "star"}, "square or circle"),
    ],
)
def test_settings_out_of_range_fail(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention_copy(*random_inputs(), **{"temperature": 1.0, **change})


def test_values_of_another_size_fail() -> None:
    query, keys, values = random_inputs()
    with pytest.raises(ValueError, match="values must be"):
        attention_copy(query, keys, values[:, :, :, 1:], temperature=1.0)


def test_peak_memory_stays_far_below_the_dense_matrix() -> None:
    resource = pytest.importorskip("resource", reason="peak memory is read with getrusage")
    query, keys, values = random_inputs(1, 8, 64, 2, 60, 106)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with torch.no_grad():
        attention_copy(query, keys, values, temperature=0.05, radius=12)
    grown_bytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown_bytes < 400e6  # the dense matrix alone is 1.3 GB


@pytest.mark.parametrize("radius", [None, 2])
def test_the_map_of_a_cell_holds_the_weights_it_is_read_with(radius):
    torch.manual_seed(0)
    query, keys = torch.randn(4, 5, 6), torch.randn(3, 4, 5, 6)
    everything = (
        torch.eye(3 * 5 * 6).view(3, 5, 6, -1).permute(0, 3, 1, 2)
    )  # each memory cell a value of its own
    read = attention_copy(query[None], keys[None], everything[None], temperature=0.5, radius=radius)
    for cell in ((0, 0), (2, 5), (4, 3)):
        weights = attention_map(query, cell, keys, temperature=0.5, radius=radius)
        torch.testing.assert_close(weights.flatten(), read[0, :, cell[0], cell[1]])
        assert float(weights.sum()) == pytest.approx(1)


@pytest.mark.parametrize("radius", [None, 2])
@pytest.mark.parametrize("block_bytes", [2**26, 1])
def test_statistics_are_those_of_the_maps(radius, block_bytes, monkeypatch):
    monkeypatch.setattr("videossl.models.attention._BLOCK_BYTES", block_bytes)
    torch.manual_seed(0)
    query, keys = torch.randn(2, 5, 4, 6), torch.randn(2, 3, 5, 4, 6)
    entropy, offset = attention_statistics(query, keys, temperature=0.5, radius=radius)
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    for row in range(2):
        for y, x in [(0, 0), (2, 3), (3, 5)]:
            weights = attention_map(query[row], (y, x), keys[row], temperature=0.5, radius=radius)
            p = weights[weights > 0]
            distance = torch.hypot(rows - y, columns - x)
            torch.testing.assert_close(entropy[row, y, x], -(p * p.log()).sum())
            torch.testing.assert_close(offset[row, y, x], (weights * distance).sum())
