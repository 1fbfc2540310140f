"""The rows as a table on a terminal, as aligned lines elsewhere, and the sentence below."""

from collections.abc import Sequence
from typing import TextIO

from videossl.doctor.rows import Row

_COLOURS = {"ok": "green", "warning": "yellow", "missing": "yellow", "broken": "red"}


def write_table(rows: Sequence[Row], stream: TextIO) -> None:
    """Writes all rows and what they come to."""
    if not (stream.isatty() and _write_rich(rows, stream)):
        stream.write("\n".join(plain_lines(rows)) + "\n")
    stream.write(f"\n{verdict(rows)}\n")


def plain_lines(rows: Sequence[Row]) -> list[str]:
    """A line a row, and one below for the remedy of what is not in order."""
    widths = [max(len(row.what) for row in rows), max(len(row.state) for row in rows)]
    lines = []
    for row in rows:
        lines.append(f"{row.what:{widths[0]}}  {row.state:{widths[1]}}  {row.found}")
        if row.mend:
            lines.append(f"{'':{widths[0]}}  {'':{widths[1]}}  mend: {row.mend}")
    return lines


def verdict(rows: Sequence[Row]) -> str:
    """Whether videossl can run here."""
    stopping = [row.what for row in rows if row.stops]
    others = [row.what for row in rows if row.state != "ok" and not row.stops]
    if stopping:
        return f"Not ready to scan, train and track: {', '.join(stopping)}."
    note = f" Not in order, but not needed for it: {', '.join(others)}." if others else ""
    return f"Ready to scan, train and track.{note}"


def _write_rich(rows: Sequence[Row], stream: TextIO) -> bool:
    """False where rich is not installed: plain lines then do."""
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    table = Table("what", "state", "found", "how to mend")
    for row in rows:
        style = "red" if row.stops else _COLOURS[row.state]
        table.add_row(Text(row.what), Text(row.state, style=style), Text(row.found), Text(row.mend))
    Console(file=stream).print(table)
    return True
