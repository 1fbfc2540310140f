"""`videossl embed`: one feature for each video of a manifest, in a Parquet file; alone or under torchrun."""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videossl.commands.output import add_json_argument, print_result

if TYPE_CHECKING:  # torch is imported by those who embed, not by --help
    from videossl.distributed import World
    from videossl.export.loading import Loaded

log = logging.getLogger("videossl")

EXAMPLE = """A stopped command goes on when it is given again. A video that fails has a row with the reason and no feature;
exit code 1 if all do.

examples:
  videossl embed videos.parquet --checkpoint runs/mine -o features.parquet
  torchrun --nproc_per_node=8 -m videossl embed videos.parquet --checkpoint encoder.safetensors -o features.parquet
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    add = parser.add_argument
    add("manifest", type=Path, help="of `videossl scan` or `pack`; labels are handed on")
    add(
        "--checkpoint",
        required=True,
        metavar="SOURCE",
        help="a run's folder, a file of it, an exported encoder or a URL",
    )
    add("-o", "--out", type=Path, required=True, metavar="FILE.parquet", help="file to write")
    add(
        "--clips-per-video",
        type=int,
        default=10,
        metavar="K",
        help="spread evenly over the video; the feature is their mean (default 10)",
    )
    add("--stage", help="whose mean over time and space is taken (default: the deepest)")
    add("--device", default="auto", help="auto, cpu or cuda (default auto)")
    add_json_argument(parser)
    parser.epilog = EXAMPLE


def check(args: argparse.Namespace) -> None:
    """Raises UserError for a file that cannot be written."""
    from videossl.io.output_files import check_writable_file

    check_writable_file(args.out, option="-o")


def run(args: argparse.Namespace) -> int:
    """Loads, embeds what is missing, says how many videos failed."""
    import torch

    from videossl.data.manifest import read_manifest
    from videossl.distributed import launched_world, locked_by_main, of_main
    from videossl.io.output_files import writing_file
    from videossl.probe.embedding import ClipReader
    from videossl.probe.feature_store import FeatureTable
    from videossl.workers.pool import num_cores

    manifest = read_manifest(args.manifest)
    with launched_world(args.device) as world:
        if not world.is_main:
            logging.getLogger("videossl").setLevel(logging.WARNING)
        cores = max(1, num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        if world.device.type == "cpu":
            torch.set_num_threads(cores)
        loaded = _load(args, world)
        reader = ClipReader(manifest, loaded.encoder.clip, args.clips_per_video)
        settings = _settings(args, loaded, world)
        _check_equal(settings)
        table = FeatureTable(args.out, loaded.encoder, reader, settings)
        with locked_by_main(writing_file(args.out), world):
            if of_main(table.is_finished, world):
                log.info("%s is there already, of these settings: nothing to do", args.out)
                if world.is_main:
                    table.drop_parts()  # of a run that was stopped at its very end
            else:
                table.make(world, num_workers=max(1, cores - 1))
        return _report(args, table.encoder.num_channels, settings) if world.is_main else 0


def _load(args: argparse.Namespace, world: "World") -> "Loaded":
    """The encoder on every rank, of the file that the main one found: a run that still trains has a newer one soon."""
    from videossl.distributed import of_main
    from videossl.export.loading import is_url, load

    loaded: list[Loaded] = []

    def find() -> str:
        loaded.append(load(args.checkpoint, stage=args.stage))
        return args.checkpoint if is_url(args.checkpoint) else str(loaded[0].path)

    found = of_main(find, world)
    return loaded[0] if loaded else load(found, stage=args.stage)


def _check_equal(settings: dict[str, Any]) -> None:
    """Raises UserError where hosts have other files under the same names."""
    from videossl.distributed import is_equal_on_all_ranks
    from videossl.errors import UserError
    from videossl.probe.feature_store import settings_digest

    if not is_equal_on_all_ranks(int(settings_digest(settings), 16)):
        raise UserError(
            "the processes read different weights or manifests: give files that are the same on all hosts"
        )


def _settings(args: argparse.Namespace, loaded: "Loaded", world: "World") -> dict[str, Any]:
    """All that a feature depends on, and what made it."""
    from videossl.export.loading import file_sha256
    from videossl.models.encoder_file import weights_digest
    from videossl.version import __version__

    return {
        "format": 1,
        "version": __version__,
        "encoder": loaded.encoder.describe(),
        "weights_sha256": weights_digest(loaded.encoder.encoder.state_dict()),
        "manifest": args.manifest.name,
        "manifest_sha256": file_sha256(args.manifest),
        "clips_per_video": args.clips_per_video,
        "feature": "mean over clips of the mean over time and space of the stage",
        "device": world.device.type,
    }


def _report(args: argparse.Namespace, channels: int, settings: dict[str, Any]) -> int:
    """Prints what the file holds; the exit code."""
    from videossl.probe.feature_store import count_status

    counts = count_status(args.out)
    failed = f"; {counts['broken']} failed, each with its reason" if counts["broken"] else ""
    print(f"{args.out}: {counts['ok']} features of {channels} numbers{failed}")
    print_result(args, {"file": str(args.out), **counts, "channels": channels, **settings})
    if counts["broken"] and not counts["ok"]:
        print("videossl embed: every video failed, the file says why", file=sys.stderr)
        return 1
    return 0
