"""How every tracking command takes its protocol, its encoder and names, and the check that inputs lie apart from --out."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from videossl.errors import UserError
from videossl.eval.presets import PRESETS

Options = argparse.ArgumentParser | argparse._ArgumentGroup


def add_protocol_arguments(parser: Options) -> None:
    """--preset and --set."""
    parser.add_argument(
        "--preset", default="videossl", help=f"protocol: {', '.join(PRESETS)} (default: videossl)"
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a protocol setting",
    )


def add_stage_and_device(parser: Options) -> None:
    """--stage and --device."""
    parser.add_argument(
        "--stage",
        help="encoder stage, or several joined by + (default: the one trained to correspond)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")


def names(text: str) -> list[str]:
    """Names that stand between commas; blanks around them do not count. For `type=` of an option."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise argparse.ArgumentTypeError(f"must be names such as A,B, got {text!r}")
    return found


def check_apart(args: argparse.Namespace, named: Sequence[str]) -> None:
    """Raises UserError if one of the inputs named lies inside of --out, which is emptied of earlier runs."""
    for name in named:
        given = getattr(args, name)
        if given is not None and Path(given).resolve().is_relative_to(args.out.resolve()):
            raise UserError(
                f"--{name.replace('_', '-')} {given} lies inside of --out {args.out}, which is emptied of earlier runs: "
                "give another --out"
            )
