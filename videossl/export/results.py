"""Numbers of `result.json` files for the model card: taken as they stand, and only of this encoder."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from videossl.errors import UserError
from videossl.export.download import public_url
from videossl.export.facts import date_of

MOST_NUMBERS = 16  # of a row; chosen: a table that can be read


def read_results(paths: Sequence[Path], digests: Sequence[str]) -> list[dict[str, Any]]:
    """What each result measured, as `facts["measured"]` has it.

    `digests` are the SHA-256 of this encoder's files. Raises UserError for a file that is no result, and for one that says
    that it is of a checkpoint of another digest.
    """
    return [_read(path, digests) for path in paths]


def _read(path: Path, digests: Sequence[str]) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--results {path} cannot be read: {error}") from error
    rows = record.get("rows") if isinstance(record, dict) else None
    if not isinstance(rows, dict) or not rows:
        raise UserError(
            f"--results {path} holds no rows: give a result.json of `videossl probe`, `track` or `track-points`"
        )
    digest = record.get("checkpoint_sha256")
    if digest is not None and digest not in digests:
        raise UserError(
            f"--results {path} is of another checkpoint ({record.get('checkpoint')}, SHA-256 {digest})"
        )
    numbers = {str(name): _numbers(row) for name, row in rows.items()}
    kind = "probe" if "protocol" in record else str(record.get("command", "")).split(" ")[-1]
    return {
        "kind": kind,
        "what": _what(record, is_proved=digest is not None),
        "rows": {name: found for name, found in numbers.items() if found},
        "source": path.name,
        "date": date_of(path),
    }


def _what(record: Mapping[str, Any], *, is_proved: bool) -> str:
    names = {"davis": "DAVIS tree", "youtube_vos": "YouTube-VOS tree", "manifest": "manifest"}
    names |= {"badja": "BADJA", "jhmdb": "JHMDB", "tapvid": "TAP-Vid", "video": "video"}
    on = [
        f"{text} {Path(public_url(str(record[key]))).name}"
        for key, text in names.items()
        if record.get(key)
    ]
    command = "videossl probe" if "protocol" in record else record.get("command", "a result")
    more = [
        f"{key} {record[key]}" for key in ("protocol", "split", "preset") if _is_word(record, key)
    ]
    text = ", ".join([str(command), *on, *more])
    if is_proved:
        return text
    checkpoint = record.get("checkpoint")
    named = (
        "no checkpoint"
        if checkpoint is None
        else f"the checkpoint {Path(public_url(str(checkpoint))).name}"
    )
    return f"{text}; the file names {named} and carries no digest of it"


def _is_word(record: Mapping[str, Any], key: str) -> bool:
    return isinstance(record.get(key), str)


def _numbers(row: Any) -> dict[str, Any]:
    """The row's own numbers, and [estimate, low, high] of those with an interval; a tracking row's are under `global`."""
    if not isinstance(row, Mapping):
        return {}
    found = row["global"] if isinstance(row.get("global"), Mapping) else row
    kept = {
        str(key): value for key, value in found.items() if _is_number(value) or _is_triple(value)
    }
    return dict(list(kept.items())[:MOST_NUMBERS])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_triple(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_number, value))
