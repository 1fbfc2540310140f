"""`videossl score`: J and F of the masks of any method, in the official tables."""

import argparse
from pathlib import Path

from videossl.errors import UserError
from videossl.eval.davis import read_tree
from videossl.eval.scoring import (
    check_results,
    format_objects,
    format_table,
    global_scores,
    score_results,
    scores_record,
    versions,
    write_json,
    write_tables,
)
from videossl.workers import num_cores

EXAMPLE = """example:
  videossl score results/trained --davis /data/DAVIS --split val -o scores
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `videossl score`."""
    parser.add_argument("results", type=Path, help="folder of <sequence>/<frame>.png")
    parser.add_argument(
        "--davis", type=Path, required=True, metavar="ROOT", help="root of a DAVIS tree with masks"
    )
    parser.add_argument(
        "--split", default="val", help="list in ImageSets/2016 or ImageSets/2017 (default: val)"
    )
    parser.add_argument("--sequences", metavar="A,B", help="only these sequences of the split")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: cores)")
    parser.add_argument(
        "-o", "--out", type=Path, required=True, help="folder for the tables and result.json"
    )
    parser.epilog = EXAMPLE


def run(args: argparse.Namespace) -> int:
    """Scores, writes and prints; old tables of the same set go first, so that none can pass for this run's."""
    only = args.sequences.split(",") if args.sequences else None
    sequences = read_tree(
        args.davis, split=args.split, only=only, need_frames=False, need_masks=True
    )
    check_results(args.results, sequences)
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"{args.out} is a file: --out takes a folder")
    for name in (
        f"global_results-{args.split}.csv",
        f"per-sequence_results-{args.split}.csv",
        "result.json",
    ):
        (args.out / name).unlink(missing_ok=True)
    scores = score_results(args.results, sequences, num_workers=args.workers or num_cores())
    write_tables(args.out, args.split, scores)
    record = {
        "command": "videossl score",
        "results": str(args.results),
        "davis": str(args.davis),
        "split": args.split,
        "versions": versions(),
    }
    write_json(args.out / "result.json", {**record, **scores_record(scores)})
    print(f"{format_objects(scores)}\n\n{format_table({args.results.name: global_scores(scores)})}")
    print(f"written to {args.out}")
    return 0
