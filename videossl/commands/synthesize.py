"""`videossl synthesize -o DIR`: the embedded synthetic videos and a DAVIS-layout tree with exact masks."""

import argparse
from pathlib import Path

EXAMPLE = """example:
  videossl synthesize -o synthetic --videos 24   # synthetic/videos/*.mp4 and synthetic/davis/
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("-o", "--out", required=True, type=Path, help="folder to write into")
    parser.add_argument("--videos", type=int, default=24, help="number of mp4 files (default 24)")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each (default 4)")
    parser.add_argument(
        "--sequences", type=int, default=3, help="sequences of the DAVIS tree (default 3)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.epilog = EXAMPLE


def run(args: argparse.Namespace) -> int:
    """Renders; files that exist are kept, so an interrupted run goes on where it stopped."""
    from videossl.data.synthetic import render_davis, render_video
    from videossl.io.progress import track
    from videossl.rng import fold

    paths = [args.out / "videos" / f"scene_{index:04d}.mp4" for index in range(args.videos)]
    missing = [(index, path) for index, path in enumerate(paths) if not path.exists()]
    for index, path in track(missing, description="rendering videos"):
        render_video(path, seed=fold(args.seed, "video", index), seconds=args.seconds)
    names = render_davis(args.out / "davis", seed=args.seed, num_sequences=args.sequences)
    print(
        f"{len(paths)} videos in {args.out / 'videos'}, {len(names)} sequences in {args.out / 'davis'}"
    )
    return 0
