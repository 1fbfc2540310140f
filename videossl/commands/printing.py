"""--json: the result of a command as one JSON document on standard output, and nothing else there."""

import argparse
import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """--json."""
    parser.add_argument(
        "--json", action="store_true", help="print the result as JSON, all else to standard error"
    )


def print_any_name() -> None:
    """Lets names of files be printed that the encoding of standard output has no characters for: escaped."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def stdout_for_result(args: argparse.Namespace) -> Iterator[None]:
    """With --json, what is printed inside goes to standard error; `print_result` alone writes to standard output."""
    args.result_stream = sys.stdout
    if not getattr(args, "json", False):
        yield
        return
    with redirect_stdout(sys.stderr):
        yield


def print_result(args: argparse.Namespace, result: object) -> None:
    """With --json, prints the result; without, nothing. Numbers that are not finite are null, which JSON has for them."""
    if args.json:
        text = json.dumps(_finite(result), indent=1, allow_nan=False)
        args.result_stream.write(text + "\n")


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value
