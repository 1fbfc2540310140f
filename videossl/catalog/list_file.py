"""Lists of videos as people and data sets write them -> rows of path, label and group.

Tables (comma, semicolon or tab) with the columns path[,label][,group] or without a line of names; texts with a path a
line, and after it a label (SlowFast, VideoMAE) or the number of frames and a label (MMAction); the official lists of
Kinetics, UCF101, HMDB51 and Something-Something v2.
"""

import csv
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from videossl.decode.source import as_text, beside, file_system, is_url, path_of, remote_cause
from videossl.errors import UserError
from videossl.io.input_files import DELIMITERS, decoded_text, delimiter_of, table_rows, text_lines

VIDEO_EXTENSIONS = frozenset(
    (
        # MP4 and what is made like it
        *(
            ".mp4",
            ".m4v",
            ".mov",
            ".qt",
            ".3gp",
            ".3gpp",
            ".3g2",
            ".3gp2",
            ".f4v",
            ".ismv",
            ".mj2",
            ".insv",
            ".360",
        ),
        # Matroska, AVI, Ogg, Flash, Windows Media, RealMedia
        *(
            ".mkv",
            ".mk3d",
            ".webm",
            ".avi",
            ".divx",
            ".xvid",
            ".amv",
            ".ogv",
            ".ogm",
            ".flv",
            ".kux",
        ),
        *(".wmv", ".asf", ".wm", ".wtv", ".rm", ".rmvb", ".rv", ".ivr"),
        # MPEG streams: of cameras, discs and receivers
        *(
            ".mpg",
            ".mpeg",
            ".mpe",
            ".m1v",
            ".m2v",
            ".mpv",
            ".m2p",
            ".vob",
            ".vro",
            ".evo",
            ".mod",
            ".tod",
        ),
        *(".ts", ".mts", ".m2t", ".m2ts", ".trp", ".tp", ".pva", ".ty"),
        # cameras, recorders and studios
        *(".mxf", ".gxf", ".dv", ".dif", ".dav", ".nut", ".nuv", ".nsv", ".ivf", ".y4m"),
        # bare streams without a container
        *(
            ".h261",
            ".h263",
            ".h264",
            ".264",
            ".h26l",
            ".avc",
            ".h265",
            ".265",
            ".hevc",
            ".h266",
            ".266",
            ".vvc",
        ),
        *(".obu", ".vc1", ".mjpeg", ".mjpg"),
        # animations and games
        *(".gif", ".apng", ".flc", ".fli", ".bik", ".smk", ".roq", ".viv"),
    )
)
LIST_EXTENSIONS = (".csv", ".tsv", ".txt", ".json")


PATH_COLUMNS = ("path", "file", "filename", "file_name", "video_path", "video", "name")
_PATH_KEYS = PATH_COLUMNS[:-1]  # an item's name may be anything
KINETICS_ID = "youtube_id"  # in place of a path: with time_start and time_end, the name of a clip
CLASS_INDEX = "classInd.txt"  # of UCF101, beside its lists: "1 ApplyEyeMakeup"
_KNOWN_COLUMNS = (*PATH_COLUMNS, "label", "group")
_ENDING = "|".join(re.escape(ending) for ending in sorted(VIDEO_EXTENSIONS))
# The last ending of a video that something follows: a path may hold blanks, commas and other endings.
# Names of members, in front of the last "::", may hold blanks and commas.
_URL_AND_REST = re.compile(
    r"(?P<path>(?:.*::)?\S+?)(?P<between>\s+|[,;](?!\S*[/?]))(?P<rest>(?!.*::).+)"
)
_PATH_AND_REST = re.compile(
    rf"(?P<path>.+(?:{_ENDING}))(?P<between>\s*[,;]\s*|\s+)(?P<rest>.+)", re.IGNORECASE
)
_QUOTED = re.compile(r'"(?P<path>(?:[^"]|"")+)"(?P<between>\s*[,;]\s*|\s+)(?P<rest>.+)')
_PATH_AND_NUMBERS = re.compile(r"(?P<path>.*\S)(?P<between>\s+)(?P<rest>\d+(?:\s+\d+)?)")
_UCF = re.compile(r"(?:.*/)?(?P<folder>[^/]+)/v_(?P<name>[^/]+)_g\d+_c\d+\.\w+")
_HMDB_LIST = re.compile(r"(?P<label>.+)_test_split\d+\.txt", re.IGNORECASE)
_HMDB_UNUSED = "0"  # 1 is train, 2 is test
_SSV2_ENDINGS = (".webm", ".mp4")
_SSV2_ANSWER = re.compile(r"(?P<id>\d+);(?P<label>.+)")  # a line of its test-answers.csv
_KINETICS_ENDINGS = (".mp4", ".mkv", ".webm")


@dataclass(frozen=True)
class ListRow:
    """One video of a list."""

    line: int
    paths: tuple[str, ...]  # as written; more than one: the first that is there is meant
    label: str = ""
    group: str = ""
    by_name: bool = False  # the list says only how the file is called, not in which folder it lies

    @property
    def path(self) -> str:
        """The path, for people."""
        return self.paths[0]


def read_list(
    source: str, *, is_there: Callable[[str], bool], needs_label: bool = False
) -> list[ListRow]:
    """The rows of a .csv, .tsv, .txt or .json list, a local file or a URL; blanks around values are dropped.

    `is_there` tells whether a path, as it is written in the list, is that of a file: names may end in blanks and numbers.
    Raises UserError naming file and line for what cannot be understood, and for two labels of one path.
    """
    wanted = "path and label" if needs_label else "path"
    text = _read_text(source)
    if list_ending(source) == ".json":
        rows = _json_rows(source, text)
    else:
        rows = _official(source, _table_rows(source, text, is_there, wanted))
    for row in rows:
        _check_text(source, row)
    if needs_label and not any(row.label for row in rows):
        raise UserError(
            f"{source} needs the columns {wanted}, or a label after each path: it gives no label"
        )
    require_one_label(source, ((row.path, row) for row in rows))
    return rows


def list_ending(source: str) -> str:
    """Which of LIST_EXTENSIONS a local path or a URL has, in small letters; empty if none."""
    path = path_of(source) if is_url(source) else source
    ending = PurePosixPath(path).suffix.lower()
    return ending if ending in LIST_EXTENSIONS else ""


def require_one_label(source: str, rows: Iterable[tuple[object, ListRow]]) -> None:
    """Raises UserError if two rows of one file, which the first of each pair names, have different labels."""
    seen: dict[object, ListRow] = {}
    for key, row in rows:
        if not row.label:
            continue
        first = seen.setdefault(key, row)
        if first.label != row.label:
            raise UserError(
                f"{source}, line {row.line}: {as_text(row.path)} has the label {row.label!r}, and {first.label!r} in line "
                f"{first.line}; a video has one label: leave one of the lines out"
            )


def _table_rows(
    source: str, text: str, is_there: Callable[[str], bool], wanted: str
) -> list[ListRow]:
    text, delimiter = _without_delimiter_line(text)
    if answers := _answer_rows(text, is_there):
        return answers
    first = next((line for line in text_lines(text) if line.strip()), "")
    delimiter = delimiter or _delimiter_of_names(first)
    if delimiter == " ":  # names of columns over a text list
        return _text_rows(source, text, is_there, skip=first)
    if delimiter:
        return _rows_by_column(source, text, delimiter, is_there)
    path, between, _ = _parted(first, is_there)
    is_row = bool(between) or (bool(first) and (is_there(path) or _has_video_ending(path)))
    if is_row or list_ending(source) == ".txt":
        return _text_rows(source, text, is_there)
    names = next(csv.reader([first]), [])
    has = ", ".join(as_text(name.strip()) for name in names) or "none"
    raise UserError(
        f"{source} needs the columns {wanted} (group as well, if you have it), it has {has}"
    )


def _without_delimiter_line(text: str) -> tuple[str, str]:
    """The text without the line `sep=;` that spreadsheets begin with, and what it says."""
    line, _, rest = text.partition("\n")
    if match := re.fullmatch(r'"?sep=(.)"?', line.rstrip("\r")):
        return rest, match[1]
    return text, ""


def _delimiter_of_names(line: str) -> str:
    """The delimiter of a line of names of columns, with one of PATH_COLUMNS; empty if it is none."""
    known, needed = (*_KNOWN_COLUMNS, KINETICS_ID), (*PATH_COLUMNS, KINETICS_ID)
    if delimiter := delimiter_of(line, known, needed=needed):
        return delimiter
    names = line.casefold().split()
    return " " if len(names) > 1 and set(names) <= {*_KNOWN_COLUMNS, "num_frames"} else ""


def _rows_by_column(
    source: str, text: str, delimiter: str, is_there: Callable[[str], bool]
) -> list[ListRow]:
    rows: list[ListRow] = []
    try:
        for line, values in table_rows(text, delimiter):
            columns = (*PATH_COLUMNS, KINETICS_ID)
            name = next(name for name in columns if name in values or name == columns[-1])
            path = _stripped(values.get(name, ""), is_there)
            if not path:
                raise ValueError(f"line {line}: the column {name} is empty")
            label, group = (values.get(column, "").strip() for column in ("label", "group"))
            is_id = name == KINETICS_ID
            paths = _kinetics_names(path, values) if is_id else _spelt(path)
            rows.append(ListRow(line, paths, label, group, by_name=is_id))
    except ValueError as error:
        raise UserError(f"{source}, {error}") from None
    return rows


def _kinetics_names(video: str, values: dict[str, str]) -> tuple[str, ...]:
    """What the usual programs call the clip that they cut from a video, and the video."""
    stems = [video]
    try:
        begin, end = (round(float(values[name])) for name in ("time_start", "time_end"))
    except (KeyError, ValueError):
        pass
    else:
        stems.insert(0, f"{video}_{begin:06d}_{end:06d}")
    return tuple(stem + ending for stem in stems for ending in _KINETICS_ENDINGS)


def _answer_rows(text: str, is_there: Callable[[str], bool]) -> list[ListRow]:
    """The rows of Something-Something v2's answers, a number and a label a line; none if it is another list."""
    rows: list[ListRow] = []
    for number, line in enumerate(text_lines(text), start=1):
        if not line.strip():
            continue
        found = _SSV2_ANSWER.fullmatch(line.strip())
        if found is None or is_there(found["id"]):
            return []
        paths = tuple(found["id"] + ending for ending in _SSV2_ENDINGS)
        rows.append(ListRow(number, paths, _ssv2_class(found["label"]), by_name=True))
    return rows


def _ssv2_class(label: str) -> str:
    """What the official list of labels calls the class."""
    return label.strip().replace("[", "").replace("]", "")


def _text_rows(
    source: str, text: str, is_there: Callable[[str], bool], *, skip: str = ""
) -> list[ListRow]:
    """A video a line: its path alone, or with a label and perhaps more."""
    parted: list[tuple[int, str, str, str]] = []
    has_no_comments = _HMDB_LIST.fullmatch(_name_of(source)) is not None  # names begin with #
    for number, line in enumerate(text_lines(text), start=1):
        if not line.strip() or line == skip:
            continue
        path, between, rest = _parted(line, is_there)
        if not line.startswith("#") or is_there(path) or has_no_comments:
            parted.append((number, path, between.strip() or between, rest))
    blank = [
        rest.split() for _, _, between, rest in parted if between and between not in DELIMITERS
    ]
    with_count = bool(blank) and all(len(r) > 1 and r[0].isdigit() for r in blank)
    rows = []
    for number, path, between, rest in parted:
        if between and between in DELIMITERS:
            label, group = _label_and_group(source, number, rest, between)
        else:
            words = rest.split()
            numbers = all(word.isdigit() for word in words)
            label = " ".join(words[-1:] if numbers else words[with_count:])
            group = ""
        rows.append(ListRow(number, _spelt(path), label, group))
    return rows


def _parted(line: str, is_there: Callable[[str], bool]) -> tuple[str, str, str]:
    """The path of a line of text, what stands between it and the rest, and the rest; both empty if it is all path."""
    path = _stripped(line, is_there)
    if is_there(path):
        return path, "", ""
    if is_url(path) and not path.startswith("file:"):
        found = _URL_AND_REST.fullmatch(path)
        if found is None or (_has_video_ending(path) and not _has_video_ending(found["path"])):
            return path, "", ""
        return _fields(found)
    if found := _QUOTED.fullmatch(path):
        name, between, rest = _fields(found)
        return name.replace('""', '"'), between, rest
    if _has_video_ending(path):
        return path, "", ""
    if found := _PATH_AND_REST.fullmatch(path):
        return _fields(found)
    if "\t" in path:
        name, _, rest = path.partition("\t")
        return name.strip(), "\t", rest
    for delimiter in (",", ";", " "):
        name, between, rest = path.rpartition(delimiter)
        if between and is_there(name.strip()):
            return name.strip(), delimiter, rest
    if found := _PATH_AND_NUMBERS.fullmatch(path):
        return _fields(found)
    return path, "", ""


def _fields(found: re.Match[str]) -> tuple[str, str, str]:
    between = found["between"]
    return found["path"], "\t" if "\t" in between else between, found["rest"]


def _label_and_group(source: str, line: int, rest: str, delimiter: str) -> tuple[str, str]:
    fields = [field.strip() for field in next(csv.reader([rest.strip()], delimiter=delimiter))]
    if len(fields) > 2 and any(fields[2:]):
        raise UserError(
            f"{source}, line {line}: {1 + len(fields)} values, where path, label and group are understood; name the "
            f"columns in the first line: path{delimiter}label"
        )
    return fields[0], fields[1] if len(fields) > 1 else ""


def _official(source: str, rows: list[ListRow]) -> list[ListRow]:
    """The rows with the labels that the lists of UCF101 and HMDB51 mean."""
    is_hmdb = all(row.label in ("0", "1", "2") for row in rows)
    if rows and is_hmdb and (match := _HMDB_LIST.fullmatch(_name_of(source))):
        label = match["label"]
        return [
            replace(row, paths=(f"{label}/{row.path}", row.path), label=label, by_name=True)
            for row in rows
            if row.label != _HMDB_UNUSED
        ]
    if rows and all(row.label.isdigit() or not row.label for row in rows):
        classes = [_ucf_class(row.path) for row in rows]
        if all(classes):
            pairs = zip(rows, classes, strict=True)
            return [replace(row, label=one) for row, one in pairs]
        if any(row.label for row in rows):
            names = _class_names(source)
            return [replace(row, label=names.get(row.label, row.label)) for row in rows]
    return rows


def _name_of(source: str) -> str:
    return PurePosixPath(path_of(source) if is_url(source) else source).name


def _ucf_class(path: str) -> str:
    found = _UCF.fullmatch(path)
    is_own = found is not None and found["folder"].casefold() == found["name"].casefold()
    return found["folder"] if found is not None and is_own else ""


def _class_names(source: str) -> dict[str, str]:
    """{number: class} of a classInd.txt beside the list, if there is one."""
    if is_url(source):
        return {}
    path = Path(source).with_name(CLASS_INDEX)
    if not path.is_file():
        return {}
    lines = (line.split(None, 1) for line in text_lines(_read_text(str(path))) if line.strip())
    return {words[0]: words[1].strip() for words in lines if len(words) == 2}


def _json_rows(source: str, text: str) -> list[ListRow]:
    """A list of objects: those of Something-Something v2 (id, template), or with the keys path, label and group."""
    try:
        items = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{source}, line {error.lineno}: not JSON: {error.msg}") from None
    if not isinstance(items, list):
        raise UserError(
            f'{source} is no list: it must be [{{"path": ..., "label": ...}}, ...], or a list of Something-Something v2'
        )
    lines = _lines_of_items(text, len(items))
    return [_json_row(source, line, item) for line, item in zip(lines, items, strict=True)]


def _json_row(source: str, line: int, item: Any) -> ListRow:
    flat = item if _is_flat(item) else {}
    values = {key: str(value).strip() for key, value in flat.items() if value is not None}
    path = next((values[key] for key in _PATH_KEYS if values.get(key)), "")
    label, group = values.get("label", ""), values.get("group", "")
    if path:
        return ListRow(line, (path,), label, group)
    if not values.get("id"):
        raise UserError(
            f"{source}, line {line}: an item needs a path (or the id of Something-Something v2), got {str(item)[:80]}"
        )
    label = _ssv2_class(values.get("template", label))
    paths = tuple(values["id"] + ending for ending in _SSV2_ENDINGS)
    return ListRow(line, paths, label, group, by_name=True)


def _is_flat(item: object) -> bool:
    keys = (*_PATH_KEYS, "id", "label", "group", "template")
    return isinstance(item, dict) and not any(
        isinstance(item.get(key), dict | list) for key in keys
    )


def _lines_of_items(text: str, number: int) -> list[int]:
    """The lines on which the items of a JSON list begin."""
    decoder = json.JSONDecoder()
    lines, at, line = [], text.index("[") + 1, 1
    counted = 0
    for _ in range(number):
        at = re.compile(r"[\s,]*").match(text, at).end()  # type: ignore[union-attr]
        line += text.count("\n", counted, at)
        counted = at
        lines.append(line)
        _, at = decoder.raw_decode(text, at)
    return lines


def _read_text(source: str) -> str:
    """The text, with the bytes of names that are not UTF-8 as Python has them in paths."""
    try:
        text = decoded_text(_read_bytes(source), errors="surrogateescape")
    except FileNotFoundError:
        raise UserError(f"no such list: {source}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{source} is not a text in {error.encoding}: {error.reason}") from None
    except (OSError, ImportError, ValueError) as error:
        raise UserError(f"cannot read {source}: {error}") from None
    if "\0" in text:
        raise UserError(f"{source} is not a text in UTF-8, or in UTF-16 with a byte-order mark")
    return text


def _read_bytes(source: str) -> bytes:
    if not is_url(source):
        return Path(source).read_bytes()
    try:
        system, name = file_system(source)
        return system.cat_file(name)
    except FileNotFoundError:
        raise
    except Exception as error:  # each kind of storage raises its own
        raise OSError(remote_cause(error, source)) from error


def _check_text(source: str, row: ListRow) -> None:
    for column, value in (("label", row.label), ("group", row.group)):
        if as_text(value) != value:
            raise UserError(
                f"{source}, line {row.line}: the {column} {as_text(value)!r} is not UTF-8: save the list as UTF-8"
            )
        if "\n" in value:
            raise UserError(
                f"{source}, line {row.line}: the {column} goes over several lines, {value[:40]!r}: is a quote not closed?"
            )


def _spelt(path: str) -> tuple[str, ...]:
    """The path, and what one written on Windows means."""
    return (path, path.replace("\\", "/")) if "\\" in path else (path,)


def _stripped(path: str, is_there: Callable[[str], bool]) -> str:
    stripped = path.strip()
    return path if path != stripped and is_there(path) else stripped


def _has_video_ending(path: str) -> bool:
    return PurePosixPath(path.strip()).suffix.lower() in VIDEO_EXTENSIONS


def joined(source: str, path: str) -> str:
    """A path of a list, relative to the folder of that, as a URL or a local path."""
    if is_url(path):
        return path
    if is_url(source) and not path.startswith("/"):
        return beside(source, path)
    return path
