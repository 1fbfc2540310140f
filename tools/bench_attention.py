"""Time and memory of the attention copy against its dense form and torch's scaled_dot_product_attention.

    python tools/bench_attention.py [--rounds 3]

Training rows are forward and backward of a colorization step (2 videos, 64 channels, 16 classes), the last rows one frame of
mask propagation. Each form runs in a process of its own: memory is what it adds to the process's peak. The dense form keeps
every similarity of a query cell with every memory cell.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from videossl.models.attention import attention_copy

TEMPERATURE = 0.07
CASES: dict[str, dict[str, Any]] = {
    "train, 24 x 24 cells, 3 references": {"side": 24, "frames": 3, "train": True},
    "train, 64 x 64 cells, 3 references": {"side": 64, "frames": 3, "train": True},
    "train, 64 x 64 cells, 1 reference, radius 6": {
        "side": 64,
        "frames": 1,
        "radius": 6,
        "train": True,
    },
    "propagate, 60 x 60 cells, 8 references, radius 12": {"side": 60, "frames": 8, "radius": 12},
}
FORMS = ("videossl", "sdpa", "dense")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("CASE", "FORM"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(CASES[args.one[0]], args.one[1], args.rounds)))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print("| | form | s | times as long as videossl | MiB | off by |")
    print("|---|---|---|---|---|---|")
    for case in CASES:
        ours = None
        for form in FORMS:
            command = [sys.executable, __file__, "--rounds", str(args.rounds), "--one", case, form]
            result = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            ours = ours or result
            ratio = result["seconds"] / ours["seconds"]
            print(
                f"| {case} | {form} | {result['seconds']:.3f} | {ratio:.2f} | {result['mib']:.0f} | {result['off']:.0e} |"
            )


def measure(case: dict[str, Any], form: str, rounds: int) -> dict[str, float]:
    """Best seconds of some rounds, MiB above what the inputs took, the greatest difference to the dense form (8 x 8)."""
    copy = {"videossl": tiled, "sdpa": sdpa, "dense": dense}[form]
    off = float((copy(*tensors(8, 2, False), 2) - dense(*tensors(8, 2, False), 2)).abs().max())
    inputs = tensors(case["side"], case["frames"], case.get("train", False))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = min(timed(copy, inputs, case) for _ in range(rounds))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "mib": (peak - before) / 1024, "off": off}


def timed(copy: Callable[..., Tensor], inputs: tuple[Tensor, ...], case: dict[str, Any]) -> float:
    """Seconds of one pass."""
    begin = time.perf_counter()
    with torch.set_grad_enabled(case.get("train", False)):
        copied = copy(*inputs, case.get("radius"))
    if case.get("train", False):
        copied.square().sum().backward()
    return time.perf_counter() - begin


def tensors(side: int, frames: int, train: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Query, keys and values of 2 rows, 64 channels, 16 classes."""
    torch.manual_seed(0)
    query = F.normalize(torch.randn(2, 64, side, side), dim=1).requires_grad_(train)
    keys = F.normalize(torch.randn(2, frames, 64, side, side), dim=2).requires_grad_(train)
    return query, keys, torch.randn(2, frames, 16, side, side)


def tiled(query: Tensor, keys: Tensor, values: Tensor, radius: int | None) -> Tensor:
    """What the project uses."""
    return attention_copy(query, keys, values, temperature=TEMPERATURE, radius=radius)


def sdpa(query: Tensor, keys: Tensor, values: Tensor, radius: int | None) -> Tensor:
    """torch's own; a window is a mask of all pairs there."""
    q, k, v = (_cells(t) for t in (query[:, None], keys, values))
    mask = None if radius is None else window(query, keys, radius)
    copied = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1 / TEMPERATURE)
    return copied.mT.unflatten(2, query.shape[2:])


def dense(query: Tensor, keys: Tensor, values: Tensor, radius: int | None) -> Tensor:
    """By the formula: all similarities at once."""
    q, k, v = (_cells(t) for t in (query[:, None], keys, values))
    similarity = q @ k.mT / TEMPERATURE
    if radius is not None:
        similarity = similarity.masked_fill(~window(query, keys, radius), -torch.inf)
    return (similarity.softmax(-1) @ v).mT.unflatten(2, query.shape[2:])


def window(query: Tensor, keys: Tensor, radius: int) -> Tensor:
    """(h w, M h w) bool: which pairs of cells are near enough."""
    height, width = query.shape[2:]
    y = torch.arange(height).repeat_interleave(width)
    x = torch.arange(width).repeat(height)
    near = torch.maximum((y[:, None] - y).abs(), (x[:, None] - x).abs()) <= radius
    return near.repeat(1, keys.shape[1])


def _cells(frames: Tensor) -> Tensor:
    """(N, M, D, h, w) to (N, M h w, D)."""
    return frames.movedim(2, -1).flatten(1, 3)


if __name__ == "__main__":
    main()
