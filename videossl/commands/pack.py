"""`videossl pack manifest.parquet -o DIR`."""

import argparse
import logging
import os
from pathlib import Path

from videossl.catalog.pack_settings import PackSettings
from videossl.errors import UserError
from videossl.io.output_files import locks_folder

logger = logging.getLogger("videossl")

EXAMPLE = """Each shot of a sound video becomes an mp4 of constant rate without sound. The same command again goes
on where it was stopped; run to the end twice, it gives the same bytes.

example:
  videossl scan videos/ -o videos.parquet --deep  # finds the cuts and black bars that pack removes
  videossl pack videos.parquet -o packed/         # shard-*.tar (WebDataset) and manifest.parquet
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `pack`."""
    default = PackSettings()
    parser.add_argument("manifest", help="of `videossl scan`, best with --deep")
    parser.add_argument("-o", "--out", required=True, type=Path, metavar="DIR")
    parser.add_argument(
        "--short-side",
        type=int,
        default=default.short_side,
        metavar="PIXELS",
        help="of the pictures; smaller ones keep their size (default: %(default)s)",
    )
    parser.add_argument(
        "--fps", type=float, help="frames a second (default: the average rate of each video)"
    )
    parser.add_argument(
        "--gop",
        type=int,
        default=default.gop,
        metavar="FRAMES",
        help="from key frame to key frame: fewer seek faster and take more room (default: %(default)s)",
    )
    parser.add_argument(
        "--crf",
        type=int,
        default=default.crf,
        help="x264's quality, less is better and larger (default: %(default)s)",
    )
    parser.add_argument(
        "--min-shot",
        type=float,
        default=default.min_shot_seconds,
        metavar="SECONDS",
        help="shorter shots are dropped (default: %(default)s)",
    )
    parser.add_argument(
        "--videos-per-shard",
        type=int,
        default=default.videos_per_shard,
        metavar="N",
        help="of the manifest (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes to transcode with (default: %(default)s)",
    )
    parser.epilog = EXAMPLE


@locks_folder
def run(args: argparse.Namespace) -> int:
    """Packs and returns 0, or 1 if not one video could be packed."""
    from videossl.catalog.packing import pack_videos
    from videossl.data.manifest import read_manifest

    if args.workers < 1:
        raise UserError(f"--workers must be at least 1, got {args.workers}")
    settings = PackSettings(
        short_side=args.short_side,
        fps=args.fps,
        gop=args.gop,
        crf=args.crf,
        min_shot_seconds=args.min_shot,
        videos_per_shard=args.videos_per_shard,
    )
    manifest = read_manifest(args.manifest)
    shallow = sum(entry.is_ok and not entry.is_deep for entry in manifest)
    if shallow:
        logger.info(
            "%d videos were scanned without --deep: their cuts and black bars are unknown and stay",
            shallow,
        )
    summary = pack_videos(manifest, args.out, settings, num_workers=args.workers)
    print(
        f"{summary.num_files} files ({summary.seconds / 3600:.2f} h) in {summary.num_shards} shards, "
        f"{summary.num_bytes / 1e6:.1f} MB; {summary.num_short} shots too short, "
        f"{summary.skipped.total()} videos skipped"
    )
    for reason, count in summary.skipped.most_common(5):
        print(f"skipped, {count} times: {reason}")
    print(f"wrote {args.out / 'manifest.parquet'} ({summary.num_files} rows)")
    return 0 if summary.num_files else 1
