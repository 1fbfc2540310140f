"""`videossl export`: an encoder as a file for others, checked, with a model card beside it."""

import argparse
import logging
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videossl.commands.output import add_json_argument, print_result
from videossl.errors import UserError

if TYPE_CHECKING:  # torch is imported by those who export, not by --help
    from videossl.export.loading import Loaded
    from videossl.export.programs import Difference, Program

log = logging.getLogger("videossl")

# Formats and the endings of their files; without --format the ending chooses.
ENDINGS = {
    "safetensors": ".safetensors",
    "torch.export": ".pt2",
    "onnx": ".onnx",
    "pytorchvideo": ".pth",
    "torchvision": ".pth",
}
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime")}
LIBRARIES = ("pytorchvideo", "torchvision")
PROGRAMS = ("torch.export", "onnx")
EXAMPLE = """examples:
  videossl export --checkpoint runs/mine -o encoder.safetensors     # for videossl.load_encoder and embed, probe, track, ...
  videossl export --checkpoint runs/mine -o encoder.onnx --input-size 240x320 --licence cc-by-4.0
  videossl export --checkpoint runs/mine --format torchvision -o r3d_18.pth        # into another library's model
  videossl export --weights kinetics.pth --encoder slow_r50 -o kinetics.safetensors   # and out of one
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    add = parser.add_argument
    add(
        "--checkpoint",
        metavar="SOURCE",
        help="a run's folder, a file of it, an exported encoder or a URL",
    )
    add("--weights", metavar="FILE", help="instead: a state dict of pytorchvideo or torchvision")
    add("--encoder", metavar="NAME", help="whose these weights are: slow_r50, r3d_18, ...")
    add("--sha256", metavar="HEX", help="what the digest of that file must be")
    add("-o", "--out", type=Path, required=True, metavar="FILE", help="its card will be FILE.md")
    add("--format", choices=ENDINGS, help="default: by the ending of FILE; those of .pth as named")
    add("--prefix", metavar="TEXT", help="of keys in a .pth: `model.` for PySlowFast's own models")
    add("--stage", help="whose mean over time and space is the feature (default: the deepest)")
    add("--maps", action="store_true", help="a program that gives the stage's maps, not their mean")
    add(
        "--input-size",
        type=_size,
        metavar="HxW",
        help="of a program's frames, scaled inside (default: scaled already, square)",
    )
    add(
        "--results",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="result.json of probe, track or track-points, for the card",
    )
    add(
        "--licence", metavar="TEXT", help="of the weights, such as cc-by-4.0 (default: none stated)"
    )
    add_json_argument(parser)
    parser.epilog = EXAMPLE


def check(args: argparse.Namespace) -> None:
    """Raises UserError for options that do not go together, for packages that are not here, and for files in the way."""
    from videossl.io.output_files import check_writable_file

    _check_source(args)
    kind = _format(args)
    missing = [name for name in PACKAGES.get(kind, ()) if find_spec(name) is None]
    if missing:
        raise UserError(f"{kind} needs {', '.join(missing)}: pip install 'videossl[{kind}]'")
    for path in (args.out, _card_path(args)):
        check_writable_file(path, option="-o")


def _card_path(args: argparse.Namespace) -> Path:
    path: Path = args.out.with_name(f"{args.out.name}.md")
    return path


def run(args: argparse.Namespace) -> int:
    """Loads, writes, checks, describes."""
    from videossl.export.loading import file_sha256
    from videossl.export.model_card import facts_of, model_card, read_results
    from videossl.export.programs import Unequal
    from videossl.io.output_files import whole_file

    kind, card_path = _format(args), _card_path(args)
    loaded = _load(args)
    facts = facts_of(loaded)
    digests = [file_sha256(loaded.path), str(facts.get("checkpoint_sha256"))]
    facts["measured"] = [*(facts.get("measured") or []), *read_results(args.results, digests)]
    if args.licence is not None:
        facts["licence"] = args.licence
    try:
        with whole_file(card_path) as card, whole_file(args.out) as file:  # both or none
            program, difference = _write(kind, file, args, loaded, facts)
            text = model_card(
                args.out, kind, loaded.encoder, facts, program=program, difference=difference
            )
            card.write_text(text, encoding="utf-8", errors="replace")
    except Unequal as error:
        print(f"videossl export: {args.out} is not written: {error}", file=sys.stderr)
        return 1
    if facts.get("licence") is None:
        log.info("no licence is stated: say --licence, or write it into %s", card_path)
    print(f"{args.out}: {kind}" + (f"; {difference}" if difference else ""))
    print(f"{card_path}: its model card")
    print_result(args, _record(args, kind, loaded, difference))
    return 0


def _check_source(args: argparse.Namespace) -> None:
    if (args.checkpoint is None) == (args.weights is None):
        raise UserError("give either --checkpoint SOURCE or --weights FILE with --encoder NAME")
    if (args.weights is None) != (args.encoder is None):
        raise UserError("--weights FILE and --encoder NAME go together: a state dict has no name")


def _load(args: argparse.Namespace) -> "Loaded":
    from videossl.export.loading import load
    from videossl.export.state_dicts import load_weights

    if args.checkpoint is not None:
        return load(args.checkpoint, stage=args.stage, sha256=args.sha256)
    loaded = load_weights(args.weights, args.encoder, stage=args.stage, sha256=args.sha256)
    if dropped := loaded.contents["facts"]["dropped"]:
        named = ", ".join(dropped[:2]) + (", ..." if len(dropped) > 2 else "")
        log.info("left out, the head of the model: %d tensors (%s)", len(dropped), named)
    return loaded


def _write(
    kind: str, file: Path, args: argparse.Namespace, loaded: "Loaded", facts: dict[str, Any]
) -> "tuple[Program | None, Difference | None]":
    from videossl.engine.adaptation import task_weights
    from videossl.export.programs import Program, write_onnx, write_torch_program
    from videossl.export.state_dicts import write_weights
    from videossl.export.video_encoder import encoder_record, write_encoder_file

    if kind == "safetensors":
        task = task_weights(loaded.path, loaded.contents)
        write_encoder_file(file, loaded.encoder, facts, task=task)
        return None, None
    if kind in LIBRARIES:
        prefix = args.prefix or ""
        write_weights(file, loaded.encoder.encoder, library=kind, prefix=prefix)
        return None, None
    program = Program(loaded.encoder, size=args.input_size, maps=args.maps)
    write = write_onnx if kind == "onnx" else write_torch_program
    return program, write(file, program, encoder_record(loaded.encoder, facts))


def _format(args: argparse.Namespace) -> str:
    """Raises UserError for an ending that is not the format's, and for options of programs without one."""
    by_ending = {ending: name for name, ending in ENDINGS.items() if name not in LIBRARIES}
    kind = args.format or by_ending.get(args.out.suffix)
    if kind is None:
        raise UserError(
            f"-o {args.out} does not say the format: end it in {', '.join(by_ending)}, or give --format"
        )
    if args.out.suffix != ENDINGS[kind]:
        raise UserError(f"-o {args.out}: a file of {kind} must end in {ENDINGS[kind]}")
    for option, value in (("--maps", args.maps), ("--input-size", args.input_size)):
        if value and kind not in PROGRAMS:
            raise UserError(f"{option} goes with {' and '.join(PROGRAMS)} only, not with {kind}")
    if args.prefix and kind not in LIBRARIES:
        raise UserError(f"--prefix goes with {' and '.join(LIBRARIES)} only, not with {kind}")
    return str(kind)


def _record(
    args: argparse.Namespace, kind: str, loaded: "Loaded", difference: "Difference | None"
) -> dict[str, Any]:
    from dataclasses import asdict

    from videossl.export.loading import file_sha256

    return {
        "file": str(args.out),
        "format": kind,
        "sha256": file_sha256(args.out),
        "card": f"{args.out}.md",
        "encoder": loaded.encoder.describe(),
        "difference": asdict(difference) if difference else None,
    }


def _size(text: str) -> tuple[int, int]:
    try:
        height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        height = width = 0
    if not 1 <= min(height, width) <= max(height, width) <= 8192:
        raise argparse.ArgumentTypeError(f"must be HxW such as 240x320, got {text!r}")
    return height, width
