"""--allow-import: whether tasks outside of videossl may be imported. Said here alone, never in a config."""

import argparse


def add_import_argument(parser: argparse.ArgumentParser) -> None:
    """--allow-import."""
    parser.add_argument(
        "--allow-import",
        action="store_true",
        help="run tasks outside of videossl, named package.module in the config",
    )


def take_permission(args: argparse.Namespace) -> None:
    """Sets what the command line allows, for this process and those forked from it."""
    from videossl.pretext import allow_import

    allow_import(args.allow_import)
