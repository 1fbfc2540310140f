"""`videossl train --config C key=value ...`, alone or under torchrun."""

import argparse
import logging
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from videossl.commands.arguments import add_import_argument, take_permission
from videossl.errors import UserError

if TYPE_CHECKING:  # torch is imported by those who train, not by --help
    from videossl.config import Config
    from videossl.distributed import World
    from videossl.engine.watchdog import Watchdog

EXAMPLE = """examples:
  videossl train --config demo data.manifest=videos.parquet out=runs/first
  videossl train --settings                      # every key of a config; --settings cpc: of one task
  videossl train --config mine.yaml --allow-import   # with tasks: {my_package.my_task: {...}}
  torchrun --nproc_per_node=8 -m videossl train --config real_small \\
      data.manifest=videos.parquet out=runs/a
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--config", help="a name such as real_small, or a file of your own")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that override the file's"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="build everything, take two steps, say what the run would need, write nothing",
    )
    parser.add_argument(
        "--settings",
        nargs="?",
        const="",
        metavar="TASK",
        help="print every setting with its default and meaning, or those of one task, and leave",
    )
    parser.add_argument(
        "--accept-changed-manifest",
        action="store_true",
        help="go on with a manifest that has changed since the run began; what was held out stays held out",
    )
    add_import_argument(parser)
    parser.epilog = EXAMPLE


def check(args: argparse.Namespace) -> None:
    """Raises UserError for a config that is not there or is wrong, and for files it names that are not there."""
    take_permission(args)
    if args.settings is not None:
        return
    if args.config is None:
        raise UserError("--config is needed: a name such as real_small, or a file of your own")
    from videossl.commands.given import check_config
    from videossl.data.manifest_path import given_manifest
    from videossl.engine.run_folder import check_run_folder

    config = check_config(args.config, args.overrides)
    given_manifest(config.data.manifest)
    check_run_folder(config)


def run(args: argparse.Namespace) -> int:
    """Trains to the config's last step; an existing run of the same config is resumed."""
    if args.settings is not None:
        return print_settings(args.settings)
    import torch

    from videossl.commands.monitors import build_monitors
    from videossl.config import load_config
    from videossl.distributed import launched_world, locked_by_main
    from videossl.engine.trainer import Trainer
    from videossl.engine.watchdog import StopRequest, Watchdog
    from videossl.io.output_files import writing_to_folder
    from videossl.workers.pool import num_cores

    config = load_config(args.config, args.overrides)
    with launched_world(config.device) as world:
        if not world.is_main:
            logging.getLogger("videossl").setLevel(logging.WARNING)
        if world.device.type == "cpu":
            processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            threads = config.train.threads_per_process or max(1, num_cores() // processes)
            torch.set_num_threads(threads)
        with StopRequest() as stop, Watchdog(world, config.train.watchdog_seconds) as watchdog:
            monitors = build_monitors(config, world)
            if args.dry_run:
                print_estimate(config, world, watchdog)
                return 0
            with locked_by_main(writing_to_folder(Path(config.out)), world):
                Trainer(
                    config,
                    world,
                    stop=stop,
                    watchdog=watchdog,
                    evaluations=monitors,
                    may_change_manifest=args.accept_changed_manifest,
                ).run()
    return 0


def print_settings(task: str) -> int:
    """Prints the settings of a run, or of the task of this name."""
    from videossl.config import Config, setting_lines

    if not task:
        print("\n".join(setting_lines(Config)))
        return 0
    from videossl.pretext import load
    from videossl.pretext.settings import CONFIGS

    settings = CONFIGS[task] if task in CONFIGS else load(task).Config
    print("\n".join(setting_lines(settings, f"tasks.{task}.")))
    return 0


def print_estimate(config: "Config", world: "World", watchdog: "Watchdog") -> None:
    """Two steps in a folder of their own, which goes away."""
    from videossl.engine.trainer import Trainer, dry_run

    with TemporaryDirectory() as folder:  # of each rank its own
        (Path(folder) / "run").mkdir()
        steps = config.train.model_copy(update={"steps": max(2, config.train.steps)})
        there = config.model_copy(update={"out": f"{folder}/run", "train": steps})
        text = dry_run(Trainer(there, world, watchdog=watchdog), config.train.steps)
    if world.is_main:
        print(text.replace(there.out, config.out))
