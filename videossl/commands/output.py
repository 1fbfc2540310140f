"""What a command prints: its result as JSON where asked for, names that no terminal can show, and how it ended."""

import argparse
import io
import json
import os
import platform
import select
import shlex
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from videossl.version import __version__


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


READER_GONE = 141  # as shells say of SIGPIPE
UNEXPECTED = 70  # EX_SOFTWARE of sysexits.h
SHOW = "VIDEOSSL_TRACEBACK"


def is_reader_gone() -> bool:
    """Whether who read our output has left (`| head`)."""
    return any(_is_broken_pipe(stream) for stream in (sys.stdout, sys.stderr))


def drop_output() -> None:
    """Sends what is still to be printed nowhere: Python would complain at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        if _is_broken_pipe(stream):
            os.dup2(nowhere, stream.fileno())


def report_unexpected(error: BaseException, command: str, arguments: Sequence[str]) -> None:
    """One line about an error that nobody foresaw, and its traceback where it is found again.

    On a terminal it goes into a file that the line names; in a log, which outlives temporary folders, it stands before
    the line. VIDEOSSL_TRACEBACK=1 prints it in any case.
    """
    text = "".join(traceback.format_exception(error))
    where = "its traceback is above"
    if sys.stderr.isatty() and os.environ.get(SHOW) != "1" and (path := _kept(text, arguments)):
        where = f"its traceback is in {path} ({SHOW}=1 prints it)"
    else:
        sys.stderr.write(text)
    lines = str(error).strip().splitlines()
    said = type(error).__name__ + (f": {lines[0]}" if lines else "")
    last = "; this is no fault of your input that we foresaw, please report it"
    sys.stderr.write(f"videossl {command}: unexpected {said}; {where}{last}\n")


def _kept(text: str, arguments: Sequence[str]) -> Path | None:
    """The file that holds the traceback and what it depends on; None where no file can be written."""
    system = f"Python {platform.python_version()}, {platform.platform()}"
    head = f"{shlex.join(['videossl', *arguments])}\nvideossl {__version__}, {system}\n\n"
    try:
        number, name = tempfile.mkstemp(prefix="videossl-", suffix=".traceback.txt")
        with os.fdopen(number, "w") as file:
            file.write(head + text)
    except OSError:
        return None
    return Path(name)


def _is_broken_pipe(stream: object) -> bool:
    """A pipe whose other end is closed reports an error."""
    if not hasattr(select, "poll"):
        return False
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)  # type: ignore[attr-defined]
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # replaced by a test, closed, or None
        return False
