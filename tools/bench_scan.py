"""Seconds of a scan, of a deep scan and of opening a packed clip, beside those of an earlier revision in the same run.

    python tools/bench_scan.py FOLDER [--revision REV] [--rounds 3] [--workers 2]

Both take turns, so that a busy machine slows both alike; medians count. Seconds of scans are those of the processor, of all
processes of the command together, and of the clock; those of opening are of the processor.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NUM_CLIPS = 200
OPEN = f"""
import sys, time
import torch
from videossl.data.manifest import read_manifest
from videossl.decode.backends import open_video
torch.set_num_threads(1)
manifest = read_manifest(sys.argv[1])
rows = [entry for entry in manifest if entry.num_frames >= 8][:{NUM_CLIPS}]
for repeat in range(2):  # the first warms up
    begin = time.process_time()
    for entry in rows:
        with open_video(entry.source, short_side=112, index=entry.index()) as reader:
            if len(sys.argv) > 2:
                reader.frames_at([0])
    seconds = time.process_time() - begin
print(1000 * seconds / len(rows))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--revision", default="HEAD", help="to compare with (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    args.folder = str(Path(args.folder).resolve())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        earlier = folder / "earlier"
        git = ("git", "-C", str(ROOT), "worktree")
        subprocess.run([*git, "add", "--detach", str(earlier), args.revision], check=True)
        try:
            report(measure({"now": ROOT, args.revision: earlier}, args, folder), args.revision)
        finally:
            subprocess.run([*git, "remove", "--force", str(earlier)], check=True)
    return 0


def measure(
    codes: dict[str, Path], args: argparse.Namespace, folder: Path
) -> dict[tuple[str, str], list[float]]:
    """Seconds by (what, code)."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for number in range(args.rounds):
        for name, code in codes.items():
            scan = ("scan", args.folder, "--fresh", "--workers", str(args.workers), "-o")
            for what, options in {"scan": (), "scan --deep": ("--deep",)}.items():
                out = folder / f"{code.name}.parquet"
                cpu, wall = timed(code, (*scan, str(out), *options))
                found[f"{what}, processor s", name].append(cpu)
                found[f"{what}, clock s", name].append(wall)
            packed = folder / f"packed_{code.name}"
            if number == 0:
                timed(code, ("pack", str(out), "-o", str(packed), "--short-side", "144"))
            for what, more in {"opening, ms": (), "opening and one frame, ms": ("frame",)}.items():
                command = [sys.executable, "-c", OPEN, str(packed / "manifest.parquet"), *more]
                done = subprocess.run(
                    command,
                    cwd=code,
                    env=environment(code),
                    check=True,
                    capture_output=True,
                    text=True,
                )
                found[what, name].append(float(done.stdout))
            print(f"round {number + 1}, {name}", file=sys.stderr)
    return found


def timed(code: Path, command: tuple[str, ...]) -> tuple[float, float]:
    """Processor and clock seconds of a command of the code in that checkout."""
    before, begin = os.times(), time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "videossl", *command],
        cwd=code,  # which comes before everything else that is imported from
        env=environment(code),
        check=True,
        capture_output=True,
    )
    after = os.times()
    cpu = sum(getattr(after, n) - getattr(before, n) for n in ("children_user", "children_system"))
    return cpu, time.perf_counter() - begin


def environment(code: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}


def report(found: dict[tuple[str, str], list[float]], revision: str) -> None:
    print(f"| what | now | {revision} | ratio |\n|---|---|---|---|")
    for what in dict.fromkeys(what for what, _ in found):
        now, then = (statistics.median(found[what, name]) for name in ("now", revision))
        print(f"| {what} | {now:.2f} | {then:.2f} | {now / then:.2f} |")


if __name__ == "__main__":
    sys.exit(main())
