"""How far the order of samples and the manifest reach: a billion samples, ten million rows, measured on this machine.

    python tools/bench_scale.py [--rows 10000000] [--folder /tmp]

Nothing is downloaded: one small real video is rendered, and every row of the large manifest points at it.
"""

import argparse
import multiprocessing
import tempfile
import time
from dataclasses import asdict
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from videossl.data.dataset import ClipDataset
from videossl.data.entry import SCHEMA, sound_entry
from videossl.data.manifest import read_manifest
from videossl.data.sampling import Permutation
from videossl.data.synthetic import render_video
from videossl.decode.index import read_index
from videossl.decode.source import VideoSource
from videossl.types import ClipSpec

BILLION = 10**9
BATCH_ROWS = 100_000
SPEC = ClipSpec(1, 16, 4 / 30, 96)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--folder", default=None, help="for 3 GB of temporary files")
    args = parser.parse_args()
    order()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        manifest(Path(folder), args.rows, args.workers)


def order() -> None:
    """Start and rate of the order of a billion samples, one by one and in blocks."""
    started = time.perf_counter()
    permutation = Permutation(BILLION, "epoch", 0, seed=0)
    first = permutation[0]
    line("order of 1e9 samples: start to first index", time.perf_counter() - started, "s")
    started = time.perf_counter()
    positions = range(first % 1000, 10**9, 10_007)
    for position in positions[:50_000]:
        permutation[position]
    line("  one by one", 50_000 / (time.perf_counter() - started), "indices/s")
    started = time.perf_counter()
    for block in range(20):
        permutation.take(np.arange(block * 65_536, (block + 1) * 65_536))
    line("  in blocks of 65,536", 20 * 65_536 / (time.perf_counter() - started), "indices/s")


def manifest(folder: Path, num_rows: int, num_workers: int) -> None:
    """Size, memory and time to the first sample of a manifest that many workers share."""
    path, small = folder / "manifest.parquet", folder / "small.parquet"
    video = render(folder)
    write_rows(small, video, 1)
    write_rows(path, video, num_rows)
    print(f"manifest of {num_rows} rows: {path.stat().st_size / 1e6:.0f} MB as Parquet")
    started = time.perf_counter()
    read_manifest(path)
    line("  first opening, with the copy that is mapped", time.perf_counter() - started, "s")
    mapped = next(folder.glob(".*.arrow"))
    print(f"  the mapped copy: {mapped.stat().st_size / 1e6:.0f} MB")
    first_sample(small, 0)  # what any decoding costs: the libraries' own memory
    before = proportional_memory()
    started = time.perf_counter()
    dataset = ClipDataset(read_manifest(path), [SPEC], seed=0, short_side=96)
    context = multiprocessing.get_context("fork")
    queue: SimpleQueue = context.SimpleQueue()
    release = context.Event()
    workers = [
        context.Process(target=decode_one, args=(dataset, number, queue, release))
        for number in range(num_workers)
    ]
    for worker in workers:
        worker.start()
    finished = [queue.get() for _ in workers]
    after = sum(proportional_memory(str(worker.pid)) for worker in workers) + proportional_memory()
    release.set()
    for worker in workers:
        worker.join()
    line(f"  memory more, this process and its {num_workers} workers", (after - before) / 1e6, "MB")
    line("  opening to the first sample", min(finished) - started, "s")
    line("  opening to a sample of every worker", max(finished) - started, "s")


def render(folder: Path) -> VideoSource:
    path = folder / "video.mp4"
    render_video(path, seed=0)
    return VideoSource(str(path))


def write_rows(path: Path, source: VideoSource, num_rows: int) -> None:
    """Rows of one video under changing groups, one of a hundred broken."""
    row = asdict(sound_entry(read_index(source), source, group=""))
    rows = [{**row, "status": "broken" if n % 100 == 99 else "ok"} for n in range(BATCH_ROWS)]
    batch = pa.RecordBatch.from_pylist(rows, schema=SCHEMA)
    column = SCHEMA.get_field_index("group")
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        for start in range(0, num_rows, BATCH_ROWS):
            groups = [f"source-{number // 8:08d}" for number in range(start, start + BATCH_ROWS)]
            part = batch.set_column(column, SCHEMA.field(column), pa.array(groups))
            writer.write_batch(part.slice(0, min(BATCH_ROWS, num_rows - start)))


def decode_one(dataset: ClipDataset, number: int, queue: SimpleQueue, release: Event) -> None:
    torch.set_num_threads(1)  # the parent's pool of threads does not outlive a fork
    dataset[number]
    queue.put(time.perf_counter())
    release.wait()  # memory that all hold is shared by all: measured while all are there


def first_sample(path: Path, position: int) -> None:
    ClipDataset(read_manifest(path), [SPEC], seed=0, short_side=96)[position]


def proportional_memory(pid: str = "self") -> int:
    """Bytes of a process, each shared page divided by those that share it."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(text for text in lines if text.startswith("Pss:")).split()[1]) * 1024


def line(what: str, value: float, unit: str) -> None:
    print(f"{what}: {value:,.3g} {unit}" if value < 100 else f"{what}: {value:,.0f} {unit}")


if __name__ == "__main__":
    main()
