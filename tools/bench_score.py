"""Time of scoring against the benchmark's own way: OpenCV dilations of whole frames, all masks of a sequence at once.

    python tools/bench_score.py --davis DAVIS --split val --results MASKS [--official CHECKOUT] [--rounds 3]
    python tools/bench_score.py        # renders sequences of 480 x 854 with masks that are a little off

The first table is J and F of masks in memory; the second whole commands, which read the PNGs, on one core and on all.
Without `--official` (a checkout of davisvideochallenge/davis2017-evaluation, whose needs must be installed: scikit-image,
pandas, tqdm) its arithmetic is done here by its definition, and its command is not run.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from videossl.io.index_masks import read_mask, write_mask
from videossl.tracking.davis import DavisSequence, read_tree
from videossl.tracking.scoring import score_frame

Scores = list[tuple[float, float]]
Score = Callable[[NDArray[np.bool_], NDArray[np.bool_]], tuple[float, float]]

OFFICIAL = """
import sys; sys.path.insert(0, sys.argv[1])
import cv2; cv2.setNumThreads(1)
from davis2017.evaluation import DAVISEvaluation
DAVISEvaluation(sys.argv[2], "semi-supervised", "val").evaluate(sys.argv[3])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--davis", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--official", type=Path, metavar="CHECKOUT")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.davis is None:
            args.davis, args.results = Path(folder) / "davis", Path(folder) / "results"
            render(args.davis, args.results)
        sequences = read_tree(args.davis, split=args.split, need_frames=False, need_masks=True)
        bench_arithmetic(args, sequences)
        tree, results = official_form(sequences, args.results, Path(folder) / "official")
        bench_commands(args, tree, results, Path(folder))


def bench_arithmetic(args: argparse.Namespace, sequences: Sequence[DavisSequence]) -> None:
    """J and F of what is in memory already, one core."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    cv2.setNumThreads(1)
    theirs = official_score(args.official) if args.official else defined_score
    label = "official" if args.official else "official, by its definition"
    seconds = {label: 0.0, "videossl": 0.0}
    worst, count = 0.0, 0
    for sequence in sequences:
        for index, name in list(enumerate(sequence.frame_names))[1:-1]:
            found = read_mask(args.results / sequence.name / f"{name}.png")
            truth, ids = sequence.mask(index), sequence.object_ids
            forms = {
                label: lambda f=found, t=truth, ids=ids: [theirs(t == n, f == n) for n in ids],
                "videossl": lambda f=found, t=truth, ids=ids: [*score_frame(f, t, ids).values()],
            }
            values = []
            for form, score in forms.items():
                took, value = best_of(args.rounds, score)
                seconds[form] += took
                values.append(np.array(value))
            worst = max(worst, float(np.abs(values[0] - values[1]).max()))
            count += len(ids)
    print(f"J and F of {count} pairs of masks in memory, one core; greatest difference {worst:.1e}")
    print("| | ms per pair | times videossl |")
    print("|---|---|---|")
    for form, total in seconds.items():
        print(f"| {form} | {1000 * total / count:.2f} | {total / seconds['videossl']:.1f} |")


def best_of(rounds: int, score: Callable[[], Scores]) -> tuple[float, Scores]:
    """Least seconds, and what was found."""
    best, value = np.inf, []
    for _ in range(rounds):
        begin = time.perf_counter()
        value = score()
        best = min(best, time.perf_counter() - begin)
    return best, value


def official_score(checkout: Path) -> Score:
    """The functions of the official code."""
    sys.path.insert(0, str(checkout))
    from davis2017.metrics import (  # type: ignore[import-not-found]
        db_eval_boundary,
        db_eval_iou,
    )

    return lambda truth, mask: (db_eval_iou(truth, mask), db_eval_boundary(truth, mask))


def defined_score(truth: NDArray[np.bool_], mask: NDArray[np.bool_]) -> tuple[float, float]:
    """Intersection over union, and F of boundaries dilated by OpenCV over the whole frame."""
    union = np.sum(truth | mask)
    j = float(np.sum(truth & mask) / union) if union else 1.0
    radius = int(np.ceil(0.008 * np.linalg.norm(truth.shape)))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = (y**2 + x**2 <= radius**2).astype(np.uint8)
    edges = []
    for plane in (mask, truth):
        padded = np.pad(plane, ((0, 1), (0, 1)), mode="edge")
        here = padded[:-1, :-1]
        edge = (here ^ padded[:-1, 1:]) | (here ^ padded[1:, :-1]) | (here ^ padded[1:, 1:])
        edges.append(edge)
    found, true = edges
    wide = [cv2.dilate(edge.astype(np.uint8), disk).astype(bool) for edge in edges]
    if not found.any() or not true.any():
        return j, float(not found.any() and not true.any())
    precision, recall = np.sum(found & wide[1]) / np.sum(found), np.sum(true & wide[0]) / true.sum()
    return j, float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def official_form(
    sequences: Sequence[DavisSequence], results: Path, folder: Path
) -> tuple[Path, Path]:
    """The same masks as palette PNGs in a tree of 2017, which is all that the official code reads."""
    lists = folder / "davis" / "ImageSets" / "2017"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("".join(f"{sequence.name}\n" for sequence in sequences))
    for sequence in sequences:
        frames = folder / "davis" / "JPEGImages" / "480p" / sequence.name
        frames.mkdir(parents=True)
        for index, name in enumerate(sequence.frame_names):
            (frames / f"{name}.jpg").touch()  # it counts them
            masks = folder / "davis" / "Annotations" / "480p" / sequence.name
            write_mask(masks / f"{name}.png", sequence.mask(index))
            found = results / sequence.name / f"{name}.png"
            if found.is_file():
                write_mask(folder / "results" / sequence.name / f"{name}.png", read_mask(found))
    return folder / "davis", folder / "results"


def bench_commands(args: argparse.Namespace, tree: Path, results: Path, folder: Path) -> None:
    """Whole processes."""
    ours = [sys.executable, "-m", "videossl", "score", str(results), "--davis", str(tree)]
    ours += ["--out", str(folder / "scores")]
    commands = {"videossl score, one core": (ours, 1)}
    if args.official is not None:
        where = [str(path) for path in (args.official, tree, results)]
        official = [sys.executable, "-c", OFFICIAL, *where]
        commands = {"official evaluator, one core": (official, 1), **commands}
    if len(ALL_CORES) > 1:
        commands[f"videossl score, {len(ALL_CORES)} cores"] = (ours, len(ALL_CORES))
    print("\n| whole command | s | times videossl on one core |")
    print("|---|---|---|")
    seconds = {name: min(timed(*c) for _ in range(args.rounds)) for name, c in commands.items()}
    for name, best in seconds.items():
        print(f"| {name} | {best:.2f} | {best / seconds['videossl score, one core']:.2f} |")


ALL_CORES = sorted(os.sched_getaffinity(0))


def timed(command: Sequence[str], number: int) -> float:
    """Seconds of a process on one core, or on all."""
    cores = ALL_CORES[:1] if number == 1 else ALL_CORES
    begin = time.perf_counter()
    subprocess.run(
        command,
        check=True,
        capture_output=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    return time.perf_counter() - begin


def render(davis: Path, results: Path) -> None:
    """Four sequences of two discs that move, and masks of them that are a few pixels off."""
    y, x = np.mgrid[:480, :854]
    lists = davis / "ImageSets" / "2017"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("".join(f"discs-{i}\n" for i in range(4)))
    for number in range(4):
        random = np.random.default_rng(number)
        for t in range(40):
            for root, off in ((davis / "Annotations" / "480p", 0), (results, 4)):
                mask = np.zeros((480, 854), np.uint8)
                for index, radius in ((1, 90), (2, 50)):
                    centre = random.normal((150 * index + t, 200 * index + 3 * t), off)
                    mask[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2] = index
                write_mask(root / f"discs-{number}" / f"{t:05d}.png", mask)


if __name__ == "__main__":
    main()
