"""`videossl probe`: what a representation is worth on labelled videos, beside chance, no training, and labels."""

import argparse
import logging
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videossl.commands.output import add_json_argument, print_result
from videossl.io.output_files import locks_folder

if TYPE_CHECKING:
    from videossl.export.loading import Loaded
    from videossl.probe.protocols import Judged, LoadUntrained, Setting

EXAMPLE = """examples:
  videossl scan classes/ -o labelled.parquet --labels folder
  videossl probe --checkpoint runs/mine --manifest labelled.parquet --protocol linear -o probes/linear
  videossl probe --checkpoint runs/mine --manifest labelled.parquet --protocol finetune --epochs 50 -o probes/finetune
"""

log = logging.getLogger("videossl")
PROTOCOLS = ("linear", "attentive", "knn", "retrieval", "finetune", "fewshot")
OWNED = ("result.json", "table.md", "predictions.csv", "confusion.png", "neighbours.png")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    add = parser.add_argument
    add(
        "--checkpoint",
        required=True,
        metavar="RUN",
        help="a run's folder, a file of it, an exported encoder or a URL",
    )
    add("--manifest", required=True, type=Path, help="labelled videos, see `scan --labels`")
    add("--protocol", required=True, choices=PROTOCOLS, help="what is learned on the features")
    add("-o", "--out", required=True, type=Path, help="folder for result.json, tables and pictures")
    add(
        "--split-file",
        type=Path,
        metavar="CSV",
        help="columns path,split (train, validation, test); default: by source group",
    )
    add(
        "--clips-per-video",
        type=int,
        default=10,
        metavar="K",
        help="spread evenly, answers averaged (default 10)",
    )
    add("--stage", help="whose features (default: the deepest)")
    add(
        "--untrained-seeds",
        type=int,
        default=1,
        metavar="N",
        help="rows of the same encoder untrained (default 1)",
    )
    add("--no-supervised", action="store_true", help="no row trained with labels from scratch")
    group = parser.add_argument_group("training with labels (finetune, and the supervised row)")
    group.add_argument("--epochs", type=int, default=30, help="default 30")
    group.add_argument("--batch-size", type=int, default=16, help="videos a step (default 16)")
    group.add_argument("--lr", type=float, default=1e-3, help="peak, of AdamW (default 1e-3)")
    add("--cache", type=Path, help="of features (default: $VIDEOSSL_CACHE, or ~/.cache/videossl)")
    add("--seed", type=int, default=0, help="of the split and of all that is drawn (default 0)")
    add("--device", default="auto", help="auto, cpu or cuda (default auto)")
    add_json_argument(parser)
    parser.epilog = EXAMPLE


@locks_folder
def run(args: argparse.Namespace) -> int:
    """Splits, encodes, fits, judges, writes, prints."""
    from videossl.data.manifest import read_manifest
    from videossl.distributed import choose_device
    from videossl.export.loading import cache_folder, load
    from videossl.export.video_encoder import VideoEncoder
    from videossl.io.output_files import write_json, write_text
    from videossl.models.encoder_file import untrained_encoder
    from videossl.probe.feature_store import videos_digest
    from videossl.probe.labelled_split import split_labelled
    from videossl.probe.probe_report import format_table, records
    from videossl.probe.protocols import Setting, chance

    manifest = read_manifest(args.manifest)
    split = split_labelled(manifest, seed=args.seed, split_file=args.split_file)
    loaded = load(args.checkpoint, stage=args.stage)
    facts = _facts(args, loaded)  # a run that still trains drops its checkpoints
    encoder = loaded.encoder
    setting = Setting(
        manifest,
        split,
        args.clips_per_video,
        choose_device(args.device),
        args.cache or cache_folder(),
        args.seed,
    )
    _announce(args, setting)

    def untrained(seed: int) -> Any:
        described = encoder.describe()
        return VideoEncoder.of_description(described, untrained_encoder(described, seed)).eval()

    rows = _rows(args, encoder, untrained, setting)
    first = next(iter(rows.values()))
    numbers, guess = records(rows), chance(args.protocol, first, setting)
    table = format_table(args.protocol, numbers, guess)
    record = {
        **facts,
        "videos_sha256": videos_digest(manifest, split.rows),
        "split": {**split.describe(), "file": args.split_file and str(args.split_file)},
        "chance": guess,
        "rows": numbers,
    }
    for name in OWNED:  # no old picture may pass for a new one
        (args.out / name).unlink(missing_ok=True)
    write_json(args.out / "result.json", record)
    write_text(args.out / "table.md", table + "\n")
    _draw(args, first, encoder, setting)
    print(f"{table}\n\nwritten to {args.out}")
    print_result(args, record)
    return 0


def _facts(args: argparse.Namespace, loaded: "Loaded") -> dict[str, Any]:
    """What the numbers are of, and how to get them again."""
    from videossl.engine.run_folder import environment
    from videossl.export.loading import file_sha256

    return {
        "command": shlex.join(["videossl", *sys.argv[1:]]),
        "protocol": args.protocol,
        "checkpoint": str(args.checkpoint),
        "checkpoint_sha256": file_sha256(loaded.path),
        "encoder": loaded.encoder.describe(),
        "manifest": str(args.manifest),
        "clips_per_video": args.clips_per_video,
        "seed": args.seed,
        "recipe": {"epochs": args.epochs, "batch_size": args.batch_size, "lr": args.lr},
        "environment": environment(),
    }


def check(args: argparse.Namespace) -> None:
    """Raises UserError for numbers with which nothing could be judged, and for a folder that cannot be written."""
    from videossl.errors import UserError
    from videossl.io.output_files import check_writable

    least = {"clips_per_video": 1, "untrained_seeds": 0, "epochs": 1, "batch_size": 2}
    for name, value in least.items():
        if getattr(args, name) < value:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} is {getattr(args, name)}: it must be at least {value}")
    if not args.lr > 0:
        raise UserError(f"--lr is {args.lr}: it must be above 0")
    check_writable(args.out, option="-o")


def _announce(args: argparse.Namespace, setting: "Setting") -> None:
    parts = setting.split.describe()
    counts = ", ".join(
        f"{part} {parts[part]['videos']} videos of {parts[part]['groups']} sources"  # type: ignore[index]
        for part in ("train", "validation", "test")
    )
    log.info("%d classes; %s", setting.num_classes, counts)
    if args.protocol == "finetune":
        log.info(
            "rows: fine-tuned, and the same recipe from scratch; options for other rows do not apply"
        )
    elif args.no_supervised:
        log.info("no row of an encoder trained with labels from scratch: --no-supervised")


def _rows(
    args: argparse.Namespace, encoder: Any, untrained: "LoadUntrained", setting: "Setting"
) -> dict[str, "Judged"]:
    from videossl.models.encoder_sources import encoder_name
    from videossl.probe.fine_tuning import Recipe
    from videossl.probe.protocols import finetuned_rows, frozen_rows

    recipe = Recipe(epochs=args.epochs, batch_size=args.batch_size, lr=args.lr, seed=args.seed)
    if args.protocol == "finetune":
        return finetuned_rows(encoder, untrained, setting, recipe)
    return frozen_rows(
        args.protocol,
        encoder_name(args.checkpoint),
        encoder,
        untrained,
        setting,
        untrained_seeds=args.untrained_seeds,
        recipe=None if args.no_supervised else recipe,
    )


def _draw(args: argparse.Namespace, row: "Judged", encoder: Any, setting: "Setting") -> None:
    """The confusion matrix and the answers of the first row, and nearest neighbours by frozen features.

    The numbers are written by then: what cannot be drawn is said, and left out.
    """
    from videossl.probe.probe_report import (
        draw_confusion,
        draw_neighbours,
        nearest,
        write_predictions,
    )
    from videossl.probe.protocols import features_of, parts_of

    classes = setting.split.classes
    if row.probabilities is not None:
        write_predictions(args.out / "predictions.csv", row, classes, setting.manifest)
        with _or_left_out("confusion.png"):
            draw_confusion(args.out / "confusion.png", row.numbers["confusion"], classes)
    if args.protocol == "finetune":  # no features were frozen
        return
    with _or_left_out("neighbours.png"):
        why = "features for the picture of nearest neighbours"
        parts = parts_of(features_of(encoder, setting, setting.split.rows, why=why), setting.split)
        found = nearest(parts.test, parts.fitted)
        draw_neighbours(args.out / "neighbours.png", found, setting.manifest, encoder.clip)


@contextmanager
def _or_left_out(name: str) -> Iterator[None]:
    """A video that has gone meanwhile, or a class name that cannot be drawn, costs the picture alone."""
    try:
        yield
    except (ValueError, OSError, MemoryError) as error:
        log.warning("%s is left out: %s", name, " ".join(str(error).split()))
