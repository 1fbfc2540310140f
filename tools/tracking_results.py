"""The table of docs/results.md: J&F of each sequence, of our rows and of published ones, by the official metric.

    python tools/tracking_results.py results/a results/b --published DAVIS/reference/2016 --methods bvs siammask osvos

Folders are those of `videossl track --davis`: rows of their encoders are told apart by the folder's name, of a baseline
without an encoder that is in several the first counts. Published rows are the official per-frame J and F of the DAVIS web
site (`<method>_davis.json`), of the same sequences and frames.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

Scores = dict[str, float]  # J&F in percent by sequence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", help="folders of `videossl track`")
    parser.add_argument("--published", type=Path, metavar="FOLDER")
    parser.add_argument("--methods", nargs="+", default=[], metavar="NAME")
    args = parser.parse_args()
    ours: dict[str, Scores] = {}
    for folder in args.results:
        for name, scores in rows_of(folder).items():
            is_anyones = len(args.results) == 1 or name in ("identity", "flow", "lab")
            ours.setdefault(name if is_anyones else f"{folder.name}, {name}", scores)
    sequences = sorted(next(iter(ours.values())))
    published = {name: published_row(args.published, name, sequences) for name in args.methods}
    print("\n".join(table(ours, published, sequences)))


def rows_of(folder: Path) -> dict[str, Scores]:
    """The rows of a finished run of `videossl track`: means over the objects of each sequence."""
    record = json.loads((folder / "result.json").read_text())
    if not record.get("complete"):
        sys.exit(f"{folder} is not finished: run its command again")
    found = {}
    for name, row in record["rows"].items():
        by_sequence: dict[str, list[float]] = {}
        for scored, values in row["per_object"].items():
            mean = (values["J"]["mean"] + values["F"]["mean"]) / 2
            by_sequence.setdefault(scored.rsplit("_", 1)[0], []).append(100 * mean)
        found[name] = {sequence: float(np.mean(v)) for sequence, v in by_sequence.items()}
    return found


def published_row(folder: Path, name: str, sequences: list[str]) -> Scores:
    """The official values of a method, which are those of frames 1 to N - 2."""
    record = json.loads((folder / f"{name}_davis.json").read_text())
    return {
        sequence: 50 * float(sum(np.mean([float(v) for v in record[sequence][m]]) for m in "JF"))
        for sequence in sequences
    }


def table(
    ours: Mapping[str, Scores], published: Mapping[str, Scores], sequences: list[str]
) -> list[str]:
    """Markdown: a row per sequence, a column per method, the mean last."""
    columns = {**ours, **published}
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for sequence in sequences:
        values = " | ".join(f"{scores[sequence]:.1f}" for scores in columns.values())
        lines.append(f"| {sequence} | {values} |")
    means = " | ".join(
        f"**{np.mean([scores[s] for s in sequences]):.1f}**" for scores in columns.values()
    )
    return [*lines, f"| mean | {means} |"]


if __name__ == "__main__":
    main()
