"""Time and memory of one frame of label propagation against the dense algorithm of DINO's script.

    python tools/bench_propagation.py [--rounds 3] [--dense-rounds 2] [--device cpu]
    python tools/bench_propagation.py --checkpoint RUN     # and frames a second with an encoder, at 480p, 20 context frames

256 channels, 8 context frames, radius 12, top 10; 480 x 854 pixels at stride 16, 8 and 4. Each form runs in a process of its
own: memory is what it adds to the process's peak. The dense form keeps every similarity of a query cell with every cell of
the memory, masks and sorts them (eval_video_segmentation.py); at stride 4 it would need 40 GB, so there it goes through the
query cells in blocks, which costs it no arithmetic. Both read the same features, and their labels are compared.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from videossl.models.attention_topk import strongest_copy

CHANNELS, FRAMES, LABELS, RADIUS, TOP_K, TEMPERATURE = 256, 8, 2, 12, 10, 0.07
CELLS = {16: (30, 53), 8: (60, 106), 4: (120, 214)}  # by stride
DENSE_QUERIES = {16: None, 8: None, 4: 1284}  # cells at a time; None = all
CAP_MIB = 16
FORMS = ("dense", "videossl", "capped")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dense-rounds", type=int, default=2, help="the first makes its window")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--checkpoint", type=Path, metavar="RUN")
    parser.add_argument("--one", nargs=2, metavar=("STRIDE", "FORM"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        rounds = args.dense_rounds if args.one[1] == "dense" else args.rounds
        print(json.dumps(measure(int(args.one[0]), args.one[1], rounds, args.device)))
        return
    where = f"{torch.get_num_threads()} threads" if args.device == "cpu" else args.device
    print(f"torch {torch.__version__}, {where}; labels of videossl and dense compared")
    print("| stride (cells) | form | s | dense / this | us per cell | MiB | off by |")
    print("|---|---|---|---|---|---|---|")
    for stride, (height, width) in CELLS.items():
        results = {form: in_process(args, stride, form) for form in FORMS}
        for form, result in results.items():
            name = f"videossl, {CAP_MIB} MiB cap" if form == "capped" else form
            print(
                f"| {stride} ({height} x {width}) | {name} | {result['seconds']:.3f} "
                f"| {results['dense']['seconds'] / result['seconds']:.1f} "
                f"| {1e6 * result['seconds'] / (height * width):.0f} | {result['mib']:.0f} | {result['off']:.0e} |"
            )
    if args.checkpoint is not None:
        bench_encoder(args.checkpoint, args.device, args.rounds)


def in_process(args: argparse.Namespace, stride: int, form: str) -> dict[str, float]:
    """What `measure` says in a fresh process."""
    command = [sys.executable, __file__, "--one", str(stride), form, "--device", args.device]
    command += ["--rounds", str(args.rounds), "--dense-rounds", str(args.dense_rounds)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def measure(stride: int, form: str, rounds: int, device: str) -> dict[str, float]:
    """Best seconds of some rounds, MiB above what the inputs took, the greatest difference of labels to the dense form."""
    size = CELLS[stride]
    query, keys, values = tensors(*size, device)
    off = 0.0
    if form != "dense":
        small = tensors(16, 20, device)
        off = float((run(form, *small) - dense(*small, None)).abs().max())
    read_peak(device)
    before = read_peak(device)
    best = float("inf")
    for _ in range(rounds):
        begin = time.perf_counter()
        if form == "dense":
            dense(query, keys, values, DENSE_QUERIES[stride])
        else:
            run(form, query, keys, values)
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return {"seconds": best, "mib": read_peak(device) - before, "off": off}


def read_peak(device: str) -> float:
    """MiB that this process, or its GPU memory, had at most."""
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return torch.cuda.max_memory_allocated() / 2**20


def tensors(height: int, width: int, device: str) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Unit features of a query and of the memory, channels last, and shares of labels."""
    torch.manual_seed(0)
    query, *keys = functional.normalize(
        torch.randn(1 + FRAMES, height, width, CHANNELS).to(device), dim=3
    ).unbind()
    return query, keys, list(torch.rand(FRAMES, height, width, LABELS).to(device).softmax(3))


def run(form: str, query: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """What the project uses."""
    return strongest_copy(
        query,
        keys,
        values,
        temperature=TEMPERATURE,
        top_k=TOP_K,
        radius=RADIUS,
        max_bytes=CAP_MIB * 2**20 if form == "capped" else None,
    )


def dense(
    query: Tensor, keys: list[Tensor], values: list[Tensor], num_queries: int | None
) -> Tensor:
    """exp of all similarities, the window as a factor, those below the k-th zeroed, columns normalised.

    Step by step what the script does, laid out as there: targets by sources, then sources by targets.
    """
    height, width, dim = query.shape
    sources = torch.stack(keys).view(FRAMES, -1, dim).mT.contiguous()
    labels = torch.stack(values).view(-1, LABELS).T
    copied = []
    for part in torch.arange(height * width).split(num_queries or height * width):
        targets = query.view(-1, dim)[part].expand(FRAMES, -1, -1).contiguous()
        affinity = torch.exp(torch.bmm(targets, sources) / TEMPERATURE)
        affinity *= window(height, width, part.to(query.device))
        affinity = affinity.transpose(2, 1).reshape(-1, len(part))
        least = affinity.topk(TOP_K, dim=0).values.amin(0)
        affinity[affinity < least] = 0
        affinity = affinity / affinity.sum(0, keepdim=True)
        copied.append(labels @ affinity)
    return torch.cat(copied, 1).T.view(height, width, LABELS)


@lru_cache(maxsize=1)
def _window_of_all(height: int, width: int) -> Tensor:
    """1 where cells are near enough, else 0: made once for a sequence there, so not timed after the first round."""
    y = torch.arange(height).repeat_interleave(width)
    x = torch.arange(width).repeat(height)
    near = torch.maximum((y[:, None] - y).abs(), (x[:, None] - x).abs()) <= RADIUS
    return near.float()


def window(height: int, width: int, part: Tensor) -> Tensor:
    """The rows of some targets, for each memory frame: (M, targets, sources)."""
    if len(part) == height * width:
        return _window_of_all(height, width).to(part.device).expand(FRAMES, -1, -1)
    cells = torch.arange(height * width, device=part.device)
    y, x = cells // width, cells % width
    near = torch.maximum((y[part, None] - y).abs(), (x[part, None] - x).abs()) <= RADIUS
    return near.float()


def bench_encoder(checkpoint: Path, device: str, rounds: int) -> None:
    """Frames a second of a whole row: encoding at 480p and stride 8, and reading 20 frames of context."""
    from videossl.engine.checkpoint import restore_encoder
    from videossl.tracking.features import EncoderFeatures
    from videossl.tracking.protocol import preset
    from videossl.tracking.sequence import Footage
    from videossl.tracking.tracking import Row, measure_pace

    encoder = restore_encoder(checkpoint)
    coarse = [name for name, info in encoder.stages.items() if info.spatial_stride == 8]
    if not coarse:
        sys.exit(f"{checkpoint}: the encoder has no stage of stride 8, whose pace this is about")
    stage = coarse[0]
    protocol = preset("crw", {"first_copies": "once", "first_unmasked": "false"})
    extractor = EncoderFeatures(encoder, stage=stage, device=device)
    row = Row("bench", protocol, lambda: extractor)
    mask = torch.zeros(480, 854, dtype=torch.uint8).numpy()
    footage = Footage("noise", Noise(), tuple(map(str, range(64))), mask, (1,), 24.0)
    paces = [measure_pace(row, footage) for _ in range(rounds)]
    encode = min(pace.encode_seconds for pace in paces)
    read = min(pace.propagate_seconds for pace in paces)
    print(
        f"\n{encoder.spec.name} {stage}, 480 x 854, stride 8, 20 context frames: {encode:.4f} s to encode a frame, "
        f"{read:.4f} s to propagate, {1 / (encode + read):.1f} frames a second"
    )


class Noise:
    """Frames without content, at once."""

    num_frames, native_size = 64, (480, 854)

    def read(self, indices: Sequence[int], size: tuple[int, int]) -> Tensor:
        """See FrameSource."""
        return torch.randint(0, 256, (len(indices), 3, *size), dtype=torch.uint8)


if __name__ == "__main__":
    main()
