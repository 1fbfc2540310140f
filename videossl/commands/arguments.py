"""The parser of `videossl COMMAND ...`: every mistake is one line, with the nearest name where one was mistyped."""

import argparse
import difflib
import importlib
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from videossl.errors import UserError
from videossl.tracking.protocol import PRESETS
from videossl.version import __version__

EXAMPLE = """first steps:
  videossl doctor                                    # what works on this machine
  videossl scan /data/videos -o videos.parquet
  videossl train --help
"""


class Parser(argparse.ArgumentParser):
    """Says errors in one line and leaves with exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Prints no usage: `--help` does, and the line that matters would scroll away."""
        text = " ".join(message.split())
        sys.stderr.write(f"{self.prog}: {text} ({self.prog} --help)\n")
        raise SystemExit(2)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Leaves room for long options beside their help."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)


def parse(arguments: Sequence[str], commands: Mapping[str, str]) -> argparse.Namespace:
    """The command line, of which only the command asked for is imported. Leaves with exit code 2 where it is wrong."""
    name = next((argument for argument in arguments if not argument.startswith("-")), None)
    parser = build_parser(commands, imported=[] if name is None else [name])
    if name is not None and name not in commands:
        near = difflib.get_close_matches(name, commands, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(commands)}"
        parser.error(f"no command {name!r}; {hint}")
    if name is not None:
        _check_options(subparsers_of(parser)[name], arguments[arguments.index(name) + 1 :])
    namespace, others = parser.parse_known_args(arguments)
    if others and _takes_overrides(subparsers_of(parser)[namespace.command]):
        # argparse takes key=value words up to the first option after one; those behind are as good.
        namespace.overrides += [word for word in others if not word.startswith("-")]
        others = [word for word in others if word.startswith("-")]
    if others:
        text = f"{others[0]!r} belongs to no option, and this command takes no further words there"
        subparsers_of(parser)[namespace.command].error(text)
    return namespace


def build_parser(commands: Mapping[str, str], imported: Collection[str]) -> Parser:
    """The parser of all commands; those `imported` know their own arguments."""
    parser = Parser(
        prog="videossl",
        description="Learn video representations without labels; score them by tracking.",
        formatter_class=HelpFormatter,
        epilog=EXAMPLE,
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, help_text in commands.items():
        subparser = subparsers.add_parser(
            name, help=help_text, description=help_text, formatter_class=HelpFormatter
        )
        if name in imported:
            module = importlib.import_module(f"videossl.commands.{name.replace('-', '_')}")
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run, check=getattr(module, "check", _nothing))
    return parser


def _nothing(args: argparse.Namespace) -> None:
    """There is nothing to check before `run`."""


def _takes_overrides(parser: argparse.ArgumentParser) -> bool:
    return any(a.dest == "overrides" and not a.option_strings for a in parser._actions)


def subparsers_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """By the name of their command."""
    (action,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


def _check_options(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """An unknown option is told before what is lacking: it may have been meant for that."""
    known = list(parser._option_string_actions)
    for argument in arguments:
        option = argument.partition("=")[0]
        if option == "--":
            return
        if option.startswith("--") and not any(name.startswith(option) for name in known):
            near = difflib.get_close_matches(option, known, n=1)
            parser.error(f"no option {option}" + (f"; did you mean {near[0]}?" if near else ""))


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
