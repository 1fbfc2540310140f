"""log N - InfoNCE against a mutual information that is known: correlated Gaussians and the best critic."""

import math

import pytest
import torch

from videossl.pretext._losses import info_nce, information_bound


def gaussian_critic(information: float, dimensions: int, size: int, generator):
    """The best critic's scores from the two densities, and as inner products of two vectors."""
    rho = math.sqrt(1 - math.exp(-2 * information / dimensions))
    x = torch.randn(size, dimensions, generator=generator, dtype=torch.float64)
    noise = torch.randn(size, dimensions, generator=generator, dtype=torch.float64)
    y = rho * x + math.sqrt(1 - rho**2) * noise
    spread = 1 - rho**2
    queries = torch.cat([rho / spread * x, torch.ones(size, 1, dtype=torch.float64)], 1)
    keys = torch.cat([y, -(rho**2) / (2 * spread) * y.square().sum(1, keepdim=True)], 1)
    conditional = torch.distributions.Normal(rho * x[:, None], math.sqrt(spread))
    marginal = torch.distributions.Normal(0.0, 1.0)
    ratio = (
        (conditional.log_prob(y[None]) - marginal.log_prob(y[None])).sum(-1) if size < 50 else None
    )
    return queries, keys, ratio


def bounds(information: float, dimensions: int, size: int, batches: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(batches):
        queries, keys, _ = gaussian_critic(information, dimensions, size, generator)
        loss = info_nce(queries, keys, temperature=1.0, normalize=False)
        found.append(information_bound(loss, torch.full((size,), size))[0])
    return torch.stack(found)


def test_the_inner_products_are_the_density_ratio():
    """Up to what a row adds to all its scores, which the softmax does not see."""
    generator = torch.Generator().manual_seed(1)
    queries, keys, ratio = gaussian_critic(2.0, 3, 20, generator)
    difference = queries @ keys.T - ratio
    torch.testing.assert_close(difference, difference[:, :1].expand_as(difference))


@pytest.mark.parametrize("size", [1024, 2048])
@pytest.mark.parametrize("share", [0.1, 0.4, 0.7])
def test_the_bound_is_tight_below_seven_tenths_of_its_ceiling(size, share):
    information = share * math.log(size)
    found = bounds(information, 2, size, batches=6)
    assert float(found.mean()) == pytest.approx(information, rel=0.05)


@pytest.mark.parametrize("size", [16, 256])
@pytest.mark.parametrize("dimensions", [2, 64])
@pytest.mark.parametrize("information", [0.5, 3.0, 9.0])
def test_the_bound_holds_and_never_passes_its_ceiling(size, dimensions, information):
    found = bounds(information, dimensions, size, batches=40)
    error = float(found.std() / math.sqrt(len(found)))
    assert float(found.mean()) <= information + 3 * error
    assert float(found.max()) <= math.log(size) + 1e-6  # of rounding


def test_the_ceiling_is_the_mean_of_log_n():
    bound, ceiling = information_bound(torch.tensor(0.5), torch.tensor([4, 16]))
    assert float(ceiling) == pytest.approx((math.log(4) + math.log(16)) / 2)
    assert float(bound) == pytest.approx(float(ceiling) - 0.5)
