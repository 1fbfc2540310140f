"""Mutates real video files and runs scan, loader and pack over them: no crash, no hang, and a reason for each bad file.

    python tools/fuzz_decode.py FOLDER_OF_VIDEOS [--count 2000] [--seed 0] [--first 0] [--keep DIR]

Small files of the folder (spread over its folders and formats) and one synthetic file of each format are mutated. A case
is known by its number: `--first N --count 1` brings one back. Exit code 1 if anything went wrong.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from itertools import groupby
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from fuzz_report import HANG_SECONDS, Findings, table, verdict
from mutations import MUTATIONS, Case, case_of, overwritten  # type: ignore[import-not-found]
from numbered_video import VARIANTS, write_numbered_video  # type: ignore[import-not-found]

from videossl.__main__ import COMMANDS, main
from videossl.catalog import scanning
from videossl.catalog.listing import VIDEO_EXTENSIONS
from videossl.data.dataset import ClipDataset, Failure, RawClips
from videossl.data.loader import StepPositions, frame_batches
from videossl.data.manifest import Manifest, read_manifest
from videossl.decode.backends import Backend
from videossl.errors import UserError
from videossl.io.progress import track
from videossl.types import ClipSpec

MAX_SOURCE_BYTES = 400_000  # so that 2,000 cases take minutes
SOURCES_PER_FORMAT = 16  # of one folder
STAGE_SECONDS = 3600.0  # a stage that takes longer hangs as a whole
SPEC = ClipSpec(1, 4, 1 / 12, 48)
SIDE = 64  # pixels, of what is loaded and packed
BATCH, EPOCHS, WORKERS = 8, 2, 2


def fuzz(
    sources: Sequence[Path],
    folder: Path,
    *,
    seed: int,
    numbers: Sequence[int],
    backend: Backend = "auto",
) -> Findings:
    """Writes the cases below `folder` and runs all stages over them."""
    found = Findings()
    cases = _write_cases(sources, folder, seed, numbers)
    names = [case.name for case in cases]
    manifest = folder / "files.parquet"
    _scan(found, "scan", folder / "files", manifest, names)
    _scan(found, "deep", folder / "files", folder / "deep.parquet", names)
    _load(found, "loader", manifest, names, backend)
    if "pack" in COMMANDS:
        _pack(found, "pack", manifest, names)
    else:
        print("pack: skipped, there is no such command")
    changing = [case for case in cases if overwritten(case) is not None]
    if not changing:
        return found
    for case in changing:
        shutil.copyfile(case.source, folder / "changed" / case.name)
    changed = folder / "changed.parquet"
    _scan(Findings(), "changed", folder / "changed", changed, [])
    for case in changing:
        (folder / "changed" / case.name).write_bytes(case.content)
    _load(found, "changed", changed, [case.name for case in changing], backend)
    return found


def sources_in(folder: Path) -> list[Path]:
    """Small videos, evenly from each folder and format."""
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_EXTENSIONS]
    small = [path for path in paths if 0 < path.stat().st_size < MAX_SOURCE_BYTES]
    chosen: list[Path] = []
    key: Callable[[Path], tuple[str, str]] = lambda p: (str(p.parent), p.suffix.lower())  # noqa: E731
    for _, members in groupby(sorted(small, key=lambda p: (key(p), p)), key=key):
        alike = list(members)
        chosen += alike[:: -(-len(alike) // SOURCES_PER_FORMAT)]
    return chosen


def synthetic_sources(folder: Path) -> list[Path]:
    """One file of each format that the tests know."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        write_numbered_video(folder / f"{name}{variant.suffix}", variant)
        for name, variant in VARIANTS.items()
    ]


def _write_cases(
    sources: Sequence[Path], folder: Path, seed: int, numbers: Sequence[int]
) -> list[Case]:
    for name in ("files", "changed"):
        (folder / name).mkdir(parents=True)
    cases = []
    for number in track(numbers, description="mutating"):
        case = case_of(sources, seed=seed, number=number)
        (folder / "files" / case.name).write_bytes(case.content)
        cases.append(case)
    for number, source in enumerate(sources):  # sound ones, to replace those that fail
        for name in ("files", "changed"):
            shutil.copyfile(source, folder / name / f"sound-{number:03d}{source.suffix}")
    return cases


def _scan(found: Findings, stage: str, folder: Path, out: Path, names: Iterable[str]) -> None:
    deep = ["--deep"] if stage == "deep" else []

    def run(log: Path) -> int:
        scanning.scan_video = _timed(scanning.scan_video, log, lambda video, **_: video.path)
        return main(["scan", str(folder), "-o", str(out), "--workers", str(WORKERS), *deep])

    _in_child(found, stage, out.with_suffix(f".{stage}"), run)
    rows = {} if not out.exists() else {Path(e.path).name: e for e in read_manifest(out)}
    for name in names:
        if name not in rows:
            found.note(stage, name, "unreported")
        else:
            found.note(stage, name, "ok" if rows[name].is_ok else "broken", rows[name].reason)


class _TimedDataset(ClipDataset):
    log: Path

    def decode(self, position: int, attempt: int, *into: Any) -> RawClips:
        path = self.source_name(self.row_at(position, attempt))
        return _timed(super().decode, self.log, lambda *_: path)(position, attempt, *into)


def _dataset(manifest: Manifest, backend: Backend) -> _TimedDataset:
    return _TimedDataset(manifest, [SPEC], seed=0, short_side=SIDE, shuffle=False, backend=backend)


def _load(
    found: Findings, stage: str, manifest: Path, names: Iterable[str], backend: Backend
) -> None:
    result = manifest.with_suffix(f".{stage}.json")

    def run(log: Path) -> int:
        dataset = _dataset(read_manifest(manifest), backend)
        dataset.log = log
        failures, shown = _loaded(dataset, stage)
        rows = [dataset.source_name(int(row)) for row in dataset.rows]
        found = {"failures": [vars(f) for f in failures], "shown": shown, "rows": rows}
        result.write_text(json.dumps(found))
        return 0

    _in_child(found, stage, result.with_suffix(".log"), run)
    if not result.exists():
        return
    told = json.loads(result.read_text())
    failed = {Path(f["path"]).name: f for f in told["failures"]}
    usable, shown = ({Path(path).name for path in told[key]} for key in ("rows", "shown"))
    for name in names:
        if name in failed:
            reason, kind = failed[name]["reason"], failed[name]["kind"]
            found.note(stage, name, "replaced", reason, kind)
        elif name in shown:
            found.note(stage, name, "ok")
        else:
            found.note(stage, name, "unreported" if name in usable else "skipped")


def _loaded(dataset: ClipDataset, stage: str) -> tuple[list[Failure], list[str]]:
    """The failures and the videos shown when every row has had EPOCHS turns."""
    num_steps = -(-EPOCHS * len(dataset) // BATCH)
    positions = StepPositions(0, num_steps, rank=0, world_size=1, videos_per_rank=BATCH)
    failures: list[Failure] = []
    shown: set[int] = set()
    batches = frame_batches(
        dataset, positions, num_workers=WORKERS, timeout_seconds=HANG_SECONDS, memory_gib=2.0
    )
    for batch in track(batches, description=f"loading ({stage})", total=num_steps):
        failures += batch.failures
        shown.update(batch.video_ids.tolist())
    return failures, [dataset.source_name(row) for row in shown]


def _pack(found: Findings, stage: str, manifest: Path, names: Iterable[str]) -> None:
    from videossl.catalog import packing

    out = manifest.parent / "packed"

    def run(log: Path) -> int:
        packing.pack_video = _timed(packing.pack_video, log, lambda entry, *_: entry.path)
        options = ["--short-side", str(SIDE), "--workers", str(WORKERS)]
        return main(["pack", str(manifest), "-o", str(out), *options])

    _in_child(found, stage, out.with_suffix(".log"), run)
    if not (out / "skipped.jsonl").exists():
        return
    skipped = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    reasons = {Path(row["path"]).name: row["reason"] for row in skipped}
    packed = set()
    for shard in out.glob("*.tar"):
        with tarfile.open(shard) as tar:
            packed |= {int(name[:8]) for name in tar.getnames()}
    rows = {Path(e.path).name: (row, e.is_ok) for row, e in enumerate(read_manifest(manifest))}
    for name in names:
        row, is_ok = rows[name]
        if not is_ok:
            found.note(stage, name, "skipped")
        elif name in reasons:
            found.note(stage, name, "broken", reasons[name])
        else:
            found.note(stage, name, "ok" if row in packed else "unreported")


def _timed(function: Callable, log: Path, path_of: Callable[..., str]) -> Callable:
    """The function, which also appends a line of how long it took."""

    @wraps(function)
    def timed(*args: Any, **options: Any) -> Any:
        started = time.monotonic()
        try:
            return function(*args, **options)
        finally:
            line = json.dumps([time.monotonic() - started, path_of(*args, **options)]) + "\n"
            file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(file, line.encode())  # at once: several processes append
            os.close(file)

    return timed


def _in_child(found: Findings, stage: str, log: Path, run: Callable[[Path], int]) -> None:
    """Runs a stage in a process of its own, whose death is a finding and not the end."""

    def body() -> None:
        try:
            code = run(log)
        except UserError as error:
            print(f"{stage}: {error}", file=sys.stderr)
            code = 2
        except BaseException:
            traceback.print_exc()
            code = 3
        os._exit(code)

    process = multiprocessing.get_context("fork").Process(target=body)
    process.start()
    process.join(STAGE_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
        found.broken_stages.append(f"{stage}: the main process hangs")
    elif process.exitcode not in (0, 1):
        causes = {2: "it gave up (the message is above)", 3: "an exception reached the user"}
        cause = causes.get(process.exitcode or 0, f"it crashed ({process.exitcode})")
        found.broken_stages.append(f"{stage}: {cause}")
    for line in log.read_text().splitlines() if log.exists() else ():
        seconds, path = json.loads(line)
        found.seconds.append((seconds, stage, Path(path).name))


def keep(found: Findings, folder: Path, kept: Path) -> None:
    """Copies the files that did harm."""
    kept.mkdir(parents=True, exist_ok=True)
    names = {name for _, _, name, _ in found.harm} | {name for _, name, _ in found.hangs}
    for name in sorted(names | {name for _, name in found.unreported}):
        shutil.copyfile(folder / "files" / name, kept / name)


def run() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of videos; it is only read")
    parser.add_argument("--count", type=int, default=2000, help="cases (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first case's number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="for the files that did harm")
    parser.add_argument("--backend", choices=get_args(Backend), default="auto", help="the loader's")
    args = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = sources_in(args.folder) + synthetic_sources(folder / "synthetic")
        numbers = range(args.first, args.first + args.count)
        print(f"{args.count} cases of {len(sources)} videos, seed {args.seed}", flush=True)
        found = fuzz(
            sources, folder / "cases", seed=args.seed, numbers=numbers, backend=args.backend
        )
        if args.keep:
            keep(found, folder / "cases", args.keep)
    print("\n".join(["", *table(found, list(MUTATIONS)), "", *verdict(found)]))
    print(f"{time.monotonic() - started:.0f} s; {'clean' if found.is_clean else 'NOT CLEAN'}")
    return 0 if found.is_clean else 1


if __name__ == "__main__":
    sys.exit(run())
