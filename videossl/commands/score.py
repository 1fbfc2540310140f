"""`videossl score`: J and F of the masks of any method, in the official tables."""

import argparse
import json
from pathlib import Path

from videossl.commands.arguments import names
from videossl.commands.output import add_json_argument, print_result
from videossl.errors import UserError
from videossl.workers.pool import num_cores

COMMAND, RESULT = "videossl score", "result.json"
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
    parser.add_argument(
        "--sequences", type=names, metavar="A,B", help="only these sequences of the split"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: cores)")
    parser.add_argument(
        "-o", "--out", type=Path, required=True, help="folder for the tables and result.json"
    )
    add_json_argument(parser)
    parser.epilog = EXAMPLE


def run(args: argparse.Namespace) -> int:
    """Scores, writes and prints; old tables of the same set go first, so that none can pass for this run's."""
    from videossl.io.output_files import check_writable, write_json
    from videossl.tracking.davis import read_tree
    from videossl.tracking.scoring import (
        check_results,
        format_objects,
        format_table,
        global_scores,
        score_results,
        scores_record,
        versions,
        write_tables,
    )

    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers must be >= 1, got {args.workers}")
    check_writable(args.out)
    _check_result(args.out / RESULT)
    sequences = read_tree(
        args.davis, split=args.split, only=args.sequences, need_frames=False, need_masks=True
    )
    check_results(args.results, sequences)
    for name in (
        f"global_results-{args.split}.csv",
        f"per-sequence_results-{args.split}.csv",
        RESULT,
    ):
        (args.out / name).unlink(missing_ok=True)
    scores = score_results(args.results, sequences, num_workers=args.workers or num_cores())
    write_tables(args.out, args.split, scores)
    record = {
        "command": COMMAND,
        "results": str(args.results),
        "davis": str(args.davis),
        "split": args.split,
        "versions": versions(),
        **scores_record(scores),
    }
    write_json(args.out / RESULT, record)
    print(f"{format_objects(scores)}\n\n{format_table({args.results.name: global_scores(scores)})}")
    print(f"written to {args.out}")
    print_result(args, record)
    return 0


def _check_result(path: Path) -> None:
    """Raises UserError for a result.json that another command wrote: it would be lost."""
    if not path.is_file():
        return
    try:
        command = json.loads(path.read_text())["command"]
    except (OSError, ValueError, KeyError, TypeError):
        command = None
    if command != COMMAND:
        raise UserError(f"{path} is of {command or 'something else'}: choose another --out")
