"""`videossl scan DIR... -o manifest.parquet`."""

import argparse
import logging
import os
from typing import TYPE_CHECKING

from videossl.commands.printing import add_json_argument, print_result
from videossl.errors import UserError

if TYPE_CHECKING:  # what reads videos is not waited for before it is needed
    from videossl.data.journal import Journal
    from videossl.data.listing import FoundFiles
    from videossl.data.scan import ScanSummary

logger = logging.getLogger("videossl")

EXAMPLE = """The same command again reads only what is new or has changed, also after Ctrl-C or a crash.

examples:
  videossl scan videos/ -o manifest.parquet              # headers and packets: hundreds of files a second
  videossl scan videos/ -o manifest.parquet --deep       # decodes: damage, cuts, bars, near-duplicates
  videossl scan classes/ -o m.parquet --labels folder    # classes/run/a.mp4 has the label "run"
  videossl scan list.csv s3://bucket/clips -o m.parquet  # a list (path[,label][,group]) and a URL
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `scan`."""
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="folders (with all below), files, URLs that fsspec opens, lists of those (.csv with the columns "
        "path[,label][,group], or .txt)",
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
        "--deep",
        action="store_true",
        help="decode every frame, in small pictures: damage, motion, black bars, cuts, near-duplicates",
    )
    parser.add_argument(
        "--labels",
        metavar="folder|CSV",
        help="'folder': the first folder below the source names the class; or a CSV file with the columns "
        "path, label and, if you have it, group",
    )
    parser.add_argument(
        "--group-regex",
        metavar="REGEX",
        help="names the source of a file: the first group of this regular expression, searched in the file name; "
        "parts of one source are never split (default: folder/name without _s0, _part0, -scene-0, _c0)",
    )
    parser.add_argument(
        "--fresh", action="store_true", help="read all videos again, whatever earlier scans found"
    )
    add_json_argument(parser)
    parser.epilog = EXAMPLE


def run(args: argparse.Namespace) -> int:
    """Scans, writes the manifest and returns 0, or 1 if not one video is sound."""
    from videossl.data.journal import Journal
    from videossl.data.listing import find_videos

    if args.workers < 1:
        raise UserError(f"--workers must be at least 1, got {args.workers}")
    found = find_videos(args.sources, labels=args.labels, group_pattern=args.group_regex)
    journal = Journal(args.out, fresh=args.fresh)
    try:
        _read(found, journal, args)
        summary, num_near = _write(found, journal, args)
    except BaseException:
        journal.close()
        raise
    journal.remove()
    for line in summary.lines(found, num_near=num_near):
        print(line)
    print(f"wrote {args.out} ({len(found.videos)} rows)")
    result = {"manifest": str(args.out), "rows": len(found.videos)}
    print_result(args, result | summary.record(found, num_near=num_near))
    if not summary.num_ok:
        logger.warning(
            "not one of the %d videos can be decoded: see the reasons above", len(found.videos)
        )
        return 1
    return 0


def _read(found: "FoundFiles", journal: "Journal", args: argparse.Namespace) -> None:
    from videossl.data.scan import scan_videos

    try:
        num_read = scan_videos(found.videos, journal, num_workers=args.workers, deep=args.deep)
    except KeyboardInterrupt:
        num_done = sum(journal.is_current(video, deep=args.deep) for video in found.videos)
        logger.info(
            "%d of %d videos are read and kept in %s: the same command goes on from there",
            num_done,
            len(found.videos),
            journal.path,
        )
        raise
    if num_read < len(found.videos):
        logger.info(
            "%d videos are as an earlier scan found them (--fresh reads them again)",
            len(found.videos) - num_read,
        )


def _write(
    found: "FoundFiles", journal: "Journal", args: argparse.Namespace
) -> "tuple[ScanSummary, int | None]":
    from videossl.data.manifest import write_manifest
    from videossl.data.scan import ScanSummary, merge_near_duplicates, scanned_entries

    groups, num_near = None, None
    if args.deep:
        groups, num_near = merge_near_duplicates(found.videos, journal)
    summary = ScanSummary()
    write_manifest(summary.counted(scanned_entries(found.videos, journal, groups)), args.out)
    return summary, num_near
