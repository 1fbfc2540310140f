"""`videossl detect`: Faster R-CNN on features of single frames, from a pretrained encoder and from random weights."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videossl.commands.output import add_json_argument, print_result
from videossl.io.output_files import locks_folder

if TYPE_CHECKING:
    from videossl.models.encoder import Encoder
    from videossl.probe.detection import DetectionRecipe, VocImages

EXAMPLE = """example:
  videossl detect --checkpoint runs/mine --voc VOCdevkit/VOC2007 -o detection
"""
RESULTS = ("result.json", "table.md", "boxes.png")
NUM_SHOWN = 4  # images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="RUN", help="a run, an exported encoder or a URL")
    add("--voc", required=True, type=Path, help="JPEGImages, Annotations, ImageSets/Main in it")
    add("--train-split", default="trainval", help="list to train on (default trainval)")
    add("--test-split", default="test", help="list to judge on (default test)")
    add("--steps", type=int, default=2000, help="of training, for each row (default 2000)")
    add("--batch-size", type=int, default=4, help="images a step (default 4)")
    add("--lr", type=float, default=0.01, help="peak, of SGD (default 0.01)")
    add("--min-size", type=int, default=480, help="short side in pixels (default 480)")
    add("--seed", type=int, default=0, help="of fresh layers and of the order (default 0)")
    add("--device", default="auto", help="auto, cpu or cuda (default auto)")
    add("-o", "--out", required=True, type=Path, help="folder for result.json, table and boxes")
    add_json_argument(parser)
    parser.epilog = EXAMPLE


@locks_folder
def run(args: argparse.Namespace) -> int:
    """Trains and judges both rows, writes, prints."""
    from videossl.engine.run_folder import environment
    from videossl.export.loading import file_sha256, load
    from videossl.io.output_files import write_json, write_text
    from videossl.probe.detection import DetectionRecipe, VocImages, draw_boxes

    train = VocImages(args.voc, args.train_split)
    test = VocImages(args.voc, args.test_split, train.classes)
    recipe = DetectionRecipe(
        args.steps, args.batch_size, args.lr, min_size=args.min_size, seed=args.seed
    )
    loaded = load(args.checkpoint)
    digest = file_sha256(loaded.path)  # a run that still trains drops its checkpoints
    rows, shown = _rows(args, loaded.encoder.encoder, train, test, recipe)
    record = {
        "command": shlex.join(["videossl", *sys.argv[1:]]),
        "checkpoint": str(args.checkpoint),
        "checkpoint_sha256": digest,
        "voc": str(args.voc),
        "splits": {args.train_split: len(train), args.test_split: len(test)},
        "classes": list(train.classes),
        "recipe": vars(recipe),
        "rows": rows,
        "environment": environment(),
    }
    table = _table(rows)
    for name in RESULTS:  # no old picture may pass for a new one
        (args.out / name).unlink(missing_ok=True)
    write_json(args.out / "result.json", record)
    write_text(args.out / "table.md", table + "\n")
    draw_boxes(args.out / "boxes.png", test, shown)
    print(f"{table}\n\nwritten to {args.out}")
    print_result(args, record)
    return 0


def check(args: argparse.Namespace) -> None:
    """Raises UserError for what is missing, for numbers that train nothing, and for a folder that cannot be written."""
    from importlib.util import find_spec

    from videossl.errors import UserError
    from videossl.io.output_files import check_writable

    if find_spec("pycocotools") is None:
        raise UserError(
            "average precision needs pycocotools, which is not here: pip install 'videossl[detection]'"
        )
    for name in ("steps", "batch_size", "min_size"):
        if getattr(args, name) < 1:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} is {getattr(args, name)}: it must be at least 1")
    if not args.lr > 0:
        raise UserError(f"--lr is {args.lr}: it must be above 0")
    if args.train_split == args.test_split:
        raise UserError(
            f"--train-split and --test-split are both {args.train_split!r}: judge on images that were not trained on"
        )
    check_writable(args.out, option="-o")


def _rows(
    args: argparse.Namespace,
    pretrained: "Encoder",
    train: "VocImages",
    test: "VocImages",
    recipe: "DetectionRecipe",
) -> tuple[dict[str, dict[str, Any]], dict[str, list[Any]]]:
    """The numbers of each row, and what it found on the first images."""
    from videossl.distributed import choose_device
    from videossl.models.encoder_file import untrained_encoder
    from videossl.models.encoder_sources import encoder_name
    from videossl.probe.detection import average_precision, detections, train_detector
    from videossl.probe.feature_store import state_digest

    device = choose_device(args.device)
    encoders = {
        encoder_name(args.checkpoint): pretrained,
        "random": untrained_encoder(pretrained.describe(), args.seed),
    }
    facts = {"checkpoint": str(args.checkpoint), "voc": str(args.voc), "split": args.train_split}
    rows, shown = {}, {}
    for name, encoder in encoders.items():
        folder = args.out / name
        _keep_apart(folder, vars(recipe) | facts | {"weights": state_digest(encoder)})
        detector = train_detector(encoder, train, recipe, device=device, folder=folder, why=name)
        pairs = list(detections(detector, test, device=device, why=name))
        rows[name] = average_precision(pairs, train.classes)
        shown[name] = [found for found, _ in pairs[:NUM_SHOWN]]
    return rows, shown


def _keep_apart(folder: Path, settings: dict[str, Any]) -> None:
    """Raises UserError where the folder holds a training of other settings."""
    import json

    from videossl.errors import UserError

    path = folder / "settings.json"
    text = json.dumps(settings, indent=1)
    if path.exists() and path.read_text() != text:
        raise UserError(
            f"{folder} holds a detector of other settings: name another -o, or delete that folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _table(rows: dict[str, dict[str, Any]]) -> str:
    lines = ["| backbone | AP50 | AP75 | AP |", "|---|---|---|---|"]
    for name, row in rows.items():
        values = " | ".join(f"{100 * row[key]:.1f}" for key in ("AP50", "AP75", "AP"))
        lines.append(f"| {name} | {values} |")
    return "\n".join(lines)
