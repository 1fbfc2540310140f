"""`videossl scan DIR... -o manifest.parquet`."""

import argparse
import logging
import os

from videossl.data.manifest import write_manifest
from videossl.data.scan import find_videos, scan_files, summary_lines
from videossl.errors import UserError

logger = logging.getLogger("videossl")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `scan`."""
    parser.add_argument(
        "sources", nargs="+", metavar="DIR", help="folders (with all below) or files"
    )
    parser.add_argument("-o", "--out", required=True, help="the manifest to write (Parquet)")
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes to read with (default: %(default)s)",
    )
    parser.add_argument(
        "--group-regex",
        metavar="REGEX",
        help="names the source of a file: the first group of this regular expression, searched in the file name; "
        "parts of one source are never split (default: folder/name without _s0, _part0, -scene-0, _c0)",
    )


def run(args: argparse.Namespace) -> int:
    """Scans, writes the manifest and returns 0, or 1 if not one video is sound."""
    if args.workers < 1:
        raise UserError(f"--workers must be at least 1, got {args.workers}")
    found = find_videos(args.sources)
    entries = scan_files(found.videos, num_workers=args.workers, group_pattern=args.group_regex)
    write_manifest(entries, args.out)
    for line in summary_lines(entries, found):
        print(line)
    print(f"wrote {args.out} ({len(entries)} rows)")
    if not any(entry.is_ok for entry in entries):
        logger.warning(
            "not one of the %d videos can be decoded: see the reasons above", len(entries)
        )
        return 1
    return 0
