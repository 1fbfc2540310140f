"""How the settings of runs differ: a row for each setting that is not the same in all."""

from collections.abc import Mapping, Sequence
from typing import Any

ABSENT = "not set"


def differing_settings(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """{dotted key: value of each config, as text}, sorted; keys of one value everywhere are left out."""
    flat = [dict(_flatten(config, "")) for config in configs]
    keys = sorted(set().union(*flat))
    rows = {key: [one.get(key, ABSENT) for one in flat] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def _flatten(value: Any, path: str) -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        return [
            pair
            for key, inner in value.items()
            for pair in _flatten(inner, f"{path}.{key}" if path else str(key))
        ]
    return [(path, str(value))]
