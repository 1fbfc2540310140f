"""`videossl pretext-eval`: the pretext tasks of a run on videos that it never trained on, with intervals over videos."""

import argparse
import logging
import shlex
import sys
from pathlib import Path

from videossl.commands.arguments import add_import_argument, take_permission
from videossl.commands.output import add_json_argument, print_result

EXAMPLE = """examples:
  videossl pretext-eval --checkpoint runs/mine -o runs/mine/pretext
  videossl pretext-eval --checkpoint runs/mine --manifest others.parquet --clips-per-video 8 -o others
"""

log = logging.getLogger("videossl")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "--checkpoint", required=True, metavar="RUN", help="a run's folder, or a file of it"
    )
    parser.add_argument(
        "--manifest",
        type=Path,
        help="other videos; those whose source the run trained on are left out (default: what the run held out)",
    )
    parser.add_argument(
        "--clips-per-video",
        type=int,
        default=4,
        metavar="K",
        help="clips asked of each (default 4)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")
    parser.add_argument(
        "-o",
        "--out",
        required=True,
        type=Path,
        help="folder for result.json, table.md and pictures",
    )
    add_import_argument(parser)
    add_json_argument(parser)
    parser.epilog = EXAMPLE


def check(args: argparse.Namespace) -> None:
    """Raises UserError for numbers with which nothing could be judged, and for a file where a folder must be."""
    from videossl.errors import UserError

    if args.clips_per_video < 1:
        raise UserError(f"--clips-per-video is {args.clips_per_video}: it must be at least 1")
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"{args.out} is a file: -o takes a folder")
    take_permission(args)


def run(args: argparse.Namespace) -> int:
    """Asks, judges, writes, prints."""
    from videossl.audit.pretext_accuracy import (
        collect_answers,
        draw_task,
        format_table,
        judge,
        load_run,
        unseen_videos,
        write_pictures,
    )
    from videossl.distributed import choose_device
    from videossl.engine.build import clip_dataset
    from videossl.io.input_files import file_digest
    from videossl.io.output_files import write_json
    from videossl.models.encoder_sources import find_checkpoint
    from videossl.version import __version__

    path = find_checkpoint(args.checkpoint)  # the newest of a run that still trains may change
    trained, digest = load_run(path), file_digest(path)
    manifest, rows = unseen_videos(trained, args.manifest)
    data = clip_dataset(trained.config, trained.model, manifest, rows, shuffle=False)
    log.info("%d videos that step %d of %s has not seen", len(data), trained.step, args.checkpoint)
    args.out.mkdir(parents=True, exist_ok=True)
    found = collect_answers(
        trained.config,
        trained.model,
        data,
        out=args.out,
        clips_per_video=args.clips_per_video,
        device=choose_device(args.device),
    )
    tasks = {
        name: {
            "means": means,
            **(
                judge(found.answers[name], seed=trained.config.seed)
                if name in found.answers
                else {}
            ),
        }
        for name, means in found.means.items()
    }
    record = {
        "command": shlex.join(["videossl", *sys.argv[1:]]),
        "version": __version__,
        "checkpoint": str(args.checkpoint),
        "checkpoint_sha256": digest,
        "step": trained.step,
        "num_videos": found.num_videos,
        "clips_per_video": args.clips_per_video,
        "tasks": tasks,
    }
    write_json(args.out / "result.json", record)
    table = format_table(tasks)
    (args.out / "table.md").write_text(table + "\n")
    for name, task in tasks.items():
        if "accuracy" in task:
            draw_task(args.out / f"{name}.png", name, task)
    write_pictures(args.out, found.pictures)
    print(f"{table}\n\nwritten to {args.out}")
    print_result(args, record)
    return 0
