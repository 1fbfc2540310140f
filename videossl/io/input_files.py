"""Files that are read: text and tables that come from others and may hold anything, what systems leave behind, digests."""

import codecs
import csv
import hashlib
import io
import json
import logging
import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

log = logging.getLogger("videossl")

DELIMITERS = ",;\t"

# The mark of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decoded_text(data: bytes, *, errors: str = "strict") -> str:
    """The text of a file's bytes, without a byte-order mark: UTF-8, or UTF-16 and UTF-32 where a mark says so.

    `errors` is that of `bytes.decode`. Raises UnicodeDecodeError.
    """
    encoding = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), "utf-8")
    return data.decode(encoding, errors)


def read_names(path: Path) -> list[str]:
    """The lines of a text file that are not blank, without the blanks around them.

    Raises OSError and UnicodeDecodeError.
    """
    lines = decoded_text(path.read_bytes()).splitlines()
    return [line.strip() for line in lines if line.strip()]


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file with one JSON object a line; what else it holds is counted in one warning.

    The last line may be cut off by a kill. Raises OSError.
    """
    lines = path.read_bytes().split(b"\n")
    num_bad = 0
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            num_bad += bool(line.strip()) and number < len(lines)
            continue
        if isinstance(record, dict):
            yield record
    if num_bad:
        log.warning("%s: %d of its lines are no JSON in UTF-8 and are left out", path, num_bad)


# What spreadsheets take for the beginning of a formula, or pass over before one.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Rows as CSV in which no text is a formula to a spreadsheet: `table_rows` takes off the apostrophe before it."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, int | float) or not _FORMULA.match(str(value)) or _is_number(str(value)):
        return value
    return f"'{value}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def text_lines(text: str) -> list[str]:
    """The lines; what else Python takes for ends of lines may stand in names."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def delimiter_of(names: str, known: Collection[str], *, needed: Collection[str]) -> str:
    """The delimiter of a line of names of columns, the one that gives most of `known`; empty without one of `needed`."""

    def num_known(delimiter: str) -> int:
        found = _column_names(next(csv.reader([names], delimiter=delimiter), []))
        return sum(name in known for name in found) if set(needed) & set(found) else 0

    best = max(DELIMITERS, key=num_known)
    return best if num_known(best) else ""


def table_rows(text: str, delimiter: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The line number and the values by column of each row, as they are written, without the apostrophe that keeps
    spreadsheets from taking one for a formula; names of columns in small letters.

    Rows without a value are passed over. Raises ValueError, in words for a user, for what is no table.
    """
    # Blanks before a quote would make it part of the value; elsewhere a path may begin with one.
    skips = re.search(rf'{re.escape(delimiter)} +"', text) is not None
    file = io.StringIO(text, newline="")
    reader = csv.reader(file, delimiter=delimiter, skipinitialspace=skips)
    columns: list[str] = []
    try:
        for values in reader:
            if not any(value.strip() for value in values):
                continue
            if not columns:
                columns = _column_names(values)
                continue
            if any(value.strip() for value in values[len(columns) :]):
                raise ValueError(
                    f"line {reader.line_num}: {len(values)} values for {len(columns)} columns; put quotes around a value "
                    "that holds the delimiter"
                )
            plain = (v[1:] if v[:1] == "'" and _FORMULA.match(v) else v for v in values)
            yield reader.line_num, dict(zip(columns, plain, strict=False))
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from None


def _column_names(values: list[str]) -> list[str]:
    return [value.strip().strip('"').strip().casefold() for value in values]


_NAMES = frozenset(
    (
        # macOS, also through SMB, AFP and zip files
        *(
            ".ds_store",
            ".appledouble",
            ".appledb",
            ".appledesktop",
            ".apdisk",
            ".localized",
            "icon\r",
        ),
        *(".trashes", ".trash", ".spotlight-v100", ".fseventsd", ".temporaryitems", "__macosx"),
        *(".documentrevisions-v100", ".volumeicon.icns", "network trash folder", "temporary items"),
        # Windows
        *("thumbs.db", "thumbs.db:encryptable", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini"),
        *("$recycle.bin", "system volume information"),
        # Linux, NAS boxes, snapshots
        *("lost+found", ".directory", ".thumbnails", "@eadir", "@tmp", "@recycle", "#recycle"),
        *("@recently-snapshot", "#snapshot", ".snapshot", ".snapshots"),
        # tools
        *(".git", ".svn", ".hg", ".bzr", ".idea", ".vscode", ".ipynb_checkpoints", "__pycache__"),
        *(
            ".dropbox",
            ".dropbox.cache",
            ".dropbox.attr",
            ".stfolder",
            ".stversions",
            ".rsync-partial",
            ".~tmp~",
        ),
    )
)
# AppleDouble companions; trash by user; files deleted while open, over NFS and FUSE; locks of offices and ours; streams of
# NTFS as files; what chkdsk found; the old recycle bin, in capitals only because a recycler can be a class of actions.
_PATTERN = re.compile(
    r"\._.*|\.Trash-.*|\.nfs[0-9a-fA-F]{8,}|\.fuse_hidden.*|\.~lock\..*|~\$.*|.*:Zone\.Identifier"
    r"|\..*videossl\.lock|\.com\.apple\..*|FOUND\.\d{3}|RECYCLER|RECYCLED",
    re.DOTALL,
)


def is_system_leftover(name: str) -> bool:
    """Whether a file or folder of this name (the last part of a path) was left behind by a system or a tool.

    Such a name is never data, whatever its ending: `._clip.mp4` is the resource fork of `clip.mp4`, not a video.
    """
    return name.lower() in _NAMES or _PATTERN.fullmatch(name) is not None


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_digest(paths: Iterable[Path]) -> str:
    """SHA-256 over names, sizes and times of change, in hex: the bytes of the files are not read."""
    digest = hashlib.sha256()
    for path in paths:
        status = path.stat()
        facts = f"\0{status.st_size}\0{status.st_mtime_ns}\0".encode()
        digest.update(os.fsencode(path) + facts)
    return digest.hexdigest()
