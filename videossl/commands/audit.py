"""`videossl audit --config C --manifest M -o DIR`: shortcut baselines for each pretext task, and checks for leaks."""

import argparse
from pathlib import Path

from videossl.commands.arguments import add_import_argument, take_permission
from videossl.commands.output import add_json_argument, print_result
from videossl.io.output_files import locks_folder

EXAMPLE = """examples:
  videossl audit --config real_small --manifest videos.parquet -o audits/real_small
  videossl audit --checkpoint runs/real_small -o audits/trained     # config and manifest are the run's
  videossl audit --config real_small --manifest videos.parquet -o audits/ends \\
      data.sampling.skip_ends=false
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--config", help="a name such as real_small, or a file of your own")
    parser.add_argument("--manifest", type=Path, help="written by `videossl scan`")
    parser.add_argument(
        "--checkpoint", metavar="RUN", help="a run, whose model is set beside the baselines"
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder to write into")
    parser.add_argument(
        "--train-clips",
        type=int,
        default=4,
        help="clips of each training video that the baselines learn from (4)",
    )
    parser.add_argument(
        "--heldout-clips",
        type=int,
        default=8,
        help="clips of each held-out video that they are judged on (8)",
    )
    parser.add_argument(
        "--control-videos",
        type=int,
        default=80,
        help="videos to render without an arrow of time, on which no probe may find one (80; 0: none)",
    )
    parser.add_argument(
        "--head-steps",
        type=int,
        default=100,
        help="steps of training the tasks' heads on a frozen random encoder (100; 0: none)",
    )
    parser.add_argument(
        "--no-swap", action="store_true", help="do not code held-out files anew to test on them"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that override the config's"
    )
    add_import_argument(parser)
    add_json_argument(parser)
    parser.epilog = EXAMPLE


def check(args: argparse.Namespace) -> None:
    """Raises UserError for numbers with which nothing could be judged, and for a file where a folder must be."""
    from videossl.audit.shortcut_baselines import MIN_VIDEOS
    from videossl.errors import UserError

    for name, least in (("train_clips", 1), ("heldout_clips", 1), ("head_steps", 0)):
        if getattr(args, name) < least:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} is {getattr(args, name)}: it must be at least {least}")
    if args.control_videos != 0 and args.control_videos < MIN_VIDEOS:
        raise UserError(
            f"--control-videos is {args.control_videos}: it must be at least {MIN_VIDEOS}, or 0 for none"
        )
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"{args.out} is a file: -o takes a folder")
    take_permission(args)
    if args.config is not None:
        from videossl.commands.given import check_config

        check_config(args.config, [*args.overrides, f"out={args.out}"])


@locks_folder
def run(args: argparse.Namespace) -> int:
    """Audits, writes audit.json, audit.md and audit.png, and prints what was found."""
    import torch

    from videossl.audit.battery import Options, run_battery
    from videossl.audit.findings import audit_record, audit_text, draw_audit
    from videossl.audit.subject import Subject, audited_config
    from videossl.distributed import World, choose_device
    from videossl.engine.checkpoint import load_checkpoint
    from videossl.engine.run_folder import environment
    from videossl.io.output_files import write_json
    from videossl.models.encoder_sources import find_checkpoint

    found = find_checkpoint(args.checkpoint) if args.checkpoint else None
    state = load_checkpoint(found) if found else None
    config = audited_config(
        args.config, args.overrides, state=state, manifest=args.manifest, out=args.out
    )
    options = Options(
        args.out,
        train_clips=args.train_clips,
        heldout_clips=args.heldout_clips,
        control_videos=args.control_videos,
        head_steps=args.head_steps,
        swap_files=not args.no_swap,
    )
    args.out.mkdir(parents=True, exist_ok=True)
    world = World(rank=0, size=1, local_rank=0, device=choose_device(config.device))
    if world.device.type == "cpu" and config.train.threads_per_process is not None:
        torch.set_num_threads(config.train.threads_per_process)
    audit = run_battery(Subject(config, world, state, run=found and found.parent.parent), options)
    facts = {
        "command": "videossl audit",
        "checkpoint": args.checkpoint,
        "config": config.model_dump(mode="json"),
        "environment": environment(),
    }
    record = audit_record(audit, facts)
    write_json(args.out / "audit.json", record)
    text = audit_text(audit)
    (args.out / "audit.md").write_text(text + "\n")
    draw_audit(audit, args.out / "audit.png")
    print(f"{text}\n\nwritten to {args.out}")
    print_result(args, record)
    return 0
