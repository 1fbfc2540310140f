"""What InfoNCE says of a mutual information that is known: estimate against truth and ceiling, for batches of 16 to 4096.

    python tools/plot_mutual_information.py -o docs/mutual_information.png

Prints the table of docs/mutual_information.md. Pairs of Gaussians of D dimensions, each dimension correlated by rho, have
I = -D / 2 log(1 - rho^2); the critic is the best one, log p(y | x) / p(y).
"""

import argparse
import math
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

from videossl.losses.metric import info_nce

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SIZES = (16, 64, 256, 1024, 4096)
DIMENSIONS = (2, 64)
SAMPLES = 16_384  # per point, in batches of N


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True, help="the picture")
    args = parser.parse_args()
    figure, axes = plt.subplots(1, len(DIMENSIONS), figsize=(11, 4.6), sharey=True)
    shares = (0.1, 0.3, 0.5, 0.7, 0.9, 1.1)
    print("| D | N | ceiling log N | " + " | ".join(f"I = {s:g} log N" for s in shares) + " |")
    print("|---|---|---|" + "---|" * len(shares))
    for axis, dimensions in zip(axes, DIMENSIONS, strict=True):
        axis.plot([0, 10], [0, 10], color="black", linewidth=1, label="truth")
        for number, size in enumerate(SIZES):
            ceiling = math.log(size)
            found = [estimate(share * ceiling, dimensions, size) for share in shares]
            said = " | ".join(
                f"{value:.2f} ({value / (s * ceiling):.0%})"
                for value, s in zip(found, shares, strict=True)
            )
            print(f"| {dimensions} | {size} | {ceiling:.2f} | {said} |")
            truths = [step / 2 for step in range(1, 21)]
            curve = [estimate(truth, dimensions, size) for truth in truths]
            axis.plot(truths, curve, color=f"C{number}", label=f"N = {size}")
            axis.axhline(ceiling, color=f"C{number}", linestyle=":", linewidth=1)
        axis.set_title(f"{dimensions} dimensions (dotted: ceilings log N)")
        axis.set_xlabel("true mutual information, nats")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("log N - InfoNCE, nats")
    axes[0].legend(loc="upper left", framealpha=1)
    figure.tight_layout()
    figure.savefig(args.out, dpi=90)


def estimate(information: float, dimensions: int, size: int) -> float:
    """log N - InfoNCE of the best critic, mean over batches of `size` pairs with this mutual information in nats."""
    generator = torch.Generator().manual_seed(0)
    batches = max(4, SAMPLES // size)
    losses = [
        info_nce(
            *critic(information, dimensions, size, generator), temperature=1.0, normalize=False
        )
        for _ in range(batches)
    ]
    return math.log(size) - float(torch.stack(losses).mean())


def critic(
    information: float, dimensions: int, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Queries and keys (N, D + 1) whose inner products are log p(y | x) / p(y), but for what depends on x alone."""
    rho = math.sqrt(1 - math.exp(-2 * information / dimensions))
    x = torch.randn(size, dimensions, generator=generator, dtype=torch.float64)
    noise = torch.randn(size, dimensions, generator=generator, dtype=torch.float64)
    y = rho * x + math.sqrt(1 - rho**2) * noise
    spread = 1 - rho**2
    queries = torch.cat([rho / spread * x, torch.ones(size, 1, dtype=torch.float64)], 1)
    own = -(rho**2) / (2 * spread) * y.square().sum(1, keepdim=True)
    return queries, torch.cat([y, own], 1)


if __name__ == "__main__":
    main()
