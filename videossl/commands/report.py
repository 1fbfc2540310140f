"""`videossl report RUN...`: runs on one self-contained HTML page."""

import argparse
from pathlib import Path

EXAMPLE = """examples:
  videossl report runs/mine -o report.html
  videossl report runs/a runs/b --results tracking/a probes/b -o both.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs")
    parser.add_argument(
        "--results",
        nargs="+",
        default=[],
        type=Path,
        metavar="FOLDER",
        help="of probe, track, pretext-eval or detect, beside those found below the runs; each goes to the run that its "
        "checkpoint is of, one of track-small or of --features stands under its own name; that of an exported encoder "
        "goes to the only run, marked with the file's name",
    )
    parser.add_argument("-o", "--out", required=True, type=Path, help="the HTML file to write")
    parser.epilog = EXAMPLE


def run(args: argparse.Namespace) -> int:
    """Reads the runs and writes the page."""
    from dataclasses import replace
    from datetime import datetime

    from videossl.errors import UserError
    from videossl.io.output_files import check_writable_file, write_text
    from videossl.report.run_page import report_page
    from videossl.report.run_record import own_results, owner_of, read_run
    from videossl.report.run_results import read_results, result_paths

    if args.out.suffix.lower() not in (".html", ".htm"):  # nothing else is overwritten by a slip
        raise UserError(f"-o {args.out}: a report is a page, name a file that ends in .html")
    check_writable_file(args.out, option="-o")
    runs = [read_run(folder) for folder in args.runs]
    runs = [replace(run, results=own_results(run, runs)) for run in runs]
    for folder in args.results:
        paths = result_paths(folder)
        if not paths:
            raise UserError(f"--results {folder} holds no result.json")
        for found in read_results(paths):
            owner, result = owner_of(found, runs)
            known = {one.folder.resolve() for one in owner.results}
            if result.folder.resolve() not in known:
                owner.results.append(result)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(args.out, report_page(runs, date=datetime.now()))
    print(f"written to {args.out}")
    return 0
