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
        "checkpoint lies in",
    )
    parser.add_argument("-o", "--out", required=True, type=Path, help="the HTML file to write")
    parser.epilog = EXAMPLE


def run(args: argparse.Namespace) -> int:
    """Reads the runs and writes the page."""
    from datetime import datetime

    from videossl.errors import UserError
    from videossl.eval.output_folder import check_writable_file
    from videossl.eval.scoring import write_text
    from videossl.report.page import report_page
    from videossl.report.run_record import find_results, read_run

    check_writable_file(args.out, option="-o")
    runs = [read_run(folder) for folder in args.runs]
    for folder in args.results:
        results = find_results(folder)
        if not results:
            raise UserError(f"--results {folder} holds no result.json")
        for result in results:
            checkpoint = Path(str(result.record.get("checkpoint"))).resolve()
            owners = [one for one in runs if checkpoint.is_relative_to(one.folder.resolve())]
            if not owners:
                raise UserError(
                    f"{result.folder} is of {checkpoint}, which is none of the runs: give that run too"
                )
            known = {one.folder.resolve() for one in owners[0].results}
            if result.folder.resolve() not in known:
                owners[0].results.append(result)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(args.out, report_page(runs, date=datetime.now()))
    print(f"written to {args.out}")
    return 0
