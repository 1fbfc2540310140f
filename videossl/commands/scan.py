"""`videossl scan DIR... -o manifest.parquet`."""

import argparse
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from videossl.commands.output import add_json_argument, print_result
from videossl.errors import UserError
from videossl.io.output_files import locks_file, whole_file

if TYPE_CHECKING:  # what reads videos is not waited for before it is needed
    from videossl.catalog.listing import FoundFiles
    from videossl.catalog.near_duplicates import SignatureFile
    from videossl.catalog.scanning import Journal, ScanSummary
    from videossl.catalog.sequence_overlap import FootageFrames, Overlap

logger = logging.getLogger("videossl")

EXAMPLE = """The same command again reads only what is new or has changed, also after Ctrl-C or a crash.

examples:
  videossl scan videos/ -o manifest.parquet              # headers and packets: hundreds of files a second
  videossl scan videos/ -o manifest.parquet --deep       # decodes: damage, cuts, bars, near-duplicates
  videossl scan classes/ -o m.parquet --labels folder    # classes/run/a.mp4 has the label "run"
  videossl scan videos/ -o m.parquet --without-footage DAVIS/    # nothing that will be judged on
  videossl scan packed/ -o m.parquet --deep              # shards of `videossl pack`, byte by byte
  videossl scan list.csv s3://bucket/clips -o m.parquet  # a list (path[,label][,group]) and a URL
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `scan`."""
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="folders (with all below), files, URLs that fsspec opens, lists of those (.csv with the columns "
        "path[,label][,group], .txt, .json)",
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
        metavar="folder|LIST",
        help="'folder': the first folder below the source names the class; or a list with labels: .csv with the "
        "columns path, label and, if you have it, group, or a list of Kinetics, UCF101, HMDB51, SSv2, MMAction",
    )
    parser.add_argument(
        "--group-regex",
        metavar="REGEX",
        help="names the source of a file: the first group of this regular expression, searched in the path below the "
        "source; parts of one source are never split (default: that path without _s0, _part0, -scene-0, _c0)",
    )
    parser.add_argument(
        "--without-footage",
        nargs="+",
        action="extend",
        metavar="PATH",
        help="leave out, and list beside the manifest, videos that show frames of this: a DAVIS tree, folders of "
        "frames, or videos",
    )
    parser.add_argument(
        "--fresh", action="store_true", help="read all videos again, whatever earlier scans found"
    )
    add_json_argument(parser)
    parser.epilog = EXAMPLE


def check(args: argparse.Namespace) -> None:
    """Raises UserError for a file that is no manifest: a slip of the hand would cost a video."""
    out = Path(args.out)
    if out.is_file() and out.stat().st_size:
        with out.open("rb") as file:
            if file.read(4) != b"PAR1":
                raise UserError(
                    f"-o {out} is there and no manifest: name another file, or delete this one"
                )


@locks_file
def run(args: argparse.Namespace) -> int:
    """Scans, writes the manifest and returns 0, or 1 if not one video is sound."""
    from videossl.catalog.listing import find_videos
    from videossl.catalog.near_duplicates import SignatureFile
    from videossl.catalog.pack_plan import SETTINGS
    from videossl.catalog.scanning import Journal
    from videossl.catalog.sequence_overlap import find_footage, read_footage

    if args.workers < 1:
        raise UserError(f"--workers must be at least 1, got {args.workers}")
    if any((Path(source) / SETTINGS).is_file() for source in args.sources):
        return _scan_pack(args)
    footage = find_footage(args.without_footage or ())
    found = find_videos(args.sources, labels=args.labels, group_pattern=args.group_regex)
    journal = Journal(args.out, fresh=args.fresh)
    known = SignatureFile(args.out, fresh=args.fresh) if footage else None
    try:
        frames = read_footage(footage, known, num_workers=args.workers) if known else None
        _read(found, journal, known, args)
        overlap = _compare(found, journal, frames, known, args) if known and frames else None
        summary, num_near = _write(found, journal, args, overlap)
    except BaseException:
        journal.close()
        raise
    finally:
        if known:
            known.close()
    journal.remove()
    _report(found, summary, num_near, overlap, args)
    if not summary.num_ok:
        can = "is left" if summary.num_left_out else "can be decoded"
        logger.warning("not one of the %d videos %s: see the reasons above", len(found.videos), can)
        return 1
    return 0


def _scan_pack(args: argparse.Namespace) -> int:
    """A folder that `videossl pack` filled: its samples are known, and held to the digests that were taken then."""
    from videossl.catalog.packing import packed_entries
    from videossl.catalog.scanning import ScanSummary
    from videossl.data.entry import write_manifest

    if len(args.sources) > 1 or args.labels or args.group_regex or args.without_footage:
        raise UserError(
            "a folder that `videossl pack` filled is scanned by itself: only --deep goes with it, which checks every byte"
        )
    summary = ScanSummary()
    entries = packed_entries(Path(args.sources[0]), is_deep=args.deep)
    write_manifest(summary.counted(entries), args.out)
    print(f"{summary.num_ok} samples ok, {summary.num_broken} broken")
    for reason, count in summary.reasons.most_common():
        print(f"broken, {count} times: {reason}")
    print(f"wrote {args.out} ({summary.num_ok + summary.num_broken} rows)")
    reasons = dict(summary.reasons.most_common())
    print_result(
        args,
        {
            "manifest": args.out,
            "ok": summary.num_ok,
            "broken": summary.num_broken,
            "reasons": reasons,
        },
    )
    return 0 if summary.num_ok else 1


def _read(
    found: "FoundFiles",
    journal: "Journal",
    known: "SignatureFile | None",
    args: argparse.Namespace,
) -> None:
    from videossl.catalog.scanning import scan_videos

    try:
        num_read = scan_videos(
            found.videos, journal, num_workers=args.workers, deep=args.deep, signatures=known
        )
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


def _compare(
    found: "FoundFiles",
    journal: "Journal",
    frames: "FootageFrames",
    known: "SignatureFile",
    args: argparse.Namespace,
) -> "Overlap":
    from videossl.catalog.sequence_overlap import find_overlap

    sound = [video for video in found.videos if journal.entry(video.path).is_ok]
    try:
        return find_overlap(sound, frames, known, num_workers=args.workers)
    except KeyboardInterrupt:
        logger.info("what was read is kept in %s: the same command goes on from there", known.path)
        raise


def _write(
    found: "FoundFiles", journal: "Journal", args: argparse.Namespace, overlap: "Overlap | None"
) -> "tuple[ScanSummary, int | None]":
    from videossl.catalog.scanning import ScanSummary, merge_near_duplicates, scanned_entries
    from videossl.data.entry import write_manifest

    groups, num_near = None, None
    if args.deep:
        groups, num_near = merge_near_duplicates(found.videos, journal)
    left_out = overlap.reasons if overlap else {}
    summary = ScanSummary()
    entries = scanned_entries(found.videos, journal, groups, left_out)
    write_manifest(summary.counted(entries), args.out)
    if overlap:
        with whole_file(_list_of(args.out)) as partial:
            partial.write_text(overlap.table(), encoding="utf-8")
        return summary, num_near
    _list_of(args.out).unlink(missing_ok=True)
    if journal.num_left_out:
        logger.warning(
            "%d videos that the earlier scan left out are in again: this one has no --without-footage",
            journal.num_left_out,
        )
    return summary, num_near


def _report(
    found: "FoundFiles",
    summary: "ScanSummary",
    num_near: int | None,
    overlap: "Overlap | None",
    args: argparse.Namespace,
) -> None:
    listed_in = _list_of(args.out)
    lines = summary.lines(found, num_near=num_near)
    for line in lines + (overlap.lines(listed_in) if overlap else []):
        print(line)
    print(f"wrote {args.out} ({len(found.videos)} rows)")
    result = {"manifest": str(args.out), "rows": len(found.videos)}
    result |= summary.record(found, num_near=num_near)
    print_result(args, result | {"footage": overlap and overlap.record(listed_in)})


def _list_of(manifest: str) -> Path:
    """The list of the videos left out, beside the manifest."""
    return Path(manifest).with_suffix(".left_out.csv")
