"""`videossl doctor`: what this machine can do, in one table, and how to mend what it cannot."""

import argparse
import sys
from pathlib import Path

from videossl.commands.output import add_json_argument, print_result

EXAMPLE = """Decoders and codecs are tried on a small video written for it. Exit code 0: scan, train and track can
run here; 1: something that they need is missing or broken, and its row says how to mend it.

examples:
  videossl doctor
  videossl doctor --out /data/runs     # can runs be written there, and how fast?
  videossl doctor --json > doctor.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="also try to write here, beside the working folder",
    )
    add_json_argument(parser)
    parser.epilog = EXAMPLE


def run(args: argparse.Namespace) -> int:
    """Looks, prints, and returns 0 if nothing required is wrong, else 1."""
    from videossl.doctor.examination import examine, write_table

    targets = [Path(), *([] if args.out is None else [args.out])]
    rows = examine(targets)
    if args.json:
        print_result(args, [row.as_dict() for row in rows])
    else:
        write_table(rows, sys.stdout)
    return 1 if any(row.stops for row in rows) else 0
