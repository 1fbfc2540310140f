"""Prints the lowest versions that pyproject.toml declares, as a constraints file for pip.

python tools/lowest_versions.py [EXTRA]   (EXTRA: of the optional dependencies, in brackets or without)
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
# "name[extra]>=1.2; marker"
_REQUIREMENT = re.compile(
    r"(?P<name>[\w.-]+)(\[(?P<extra>[\w.-]+)\])?(>=(?P<lowest>[\w.]+))?(?P<marker>\s*;.*)?"
)


def lowest_versions(project: dict[str, Any], extra: str = "") -> list[str]:
    """The lines "name==lowest; marker" of the table `project` and of one of its extras; what has no bound has no line.

    Raises ValueError for a requirement that states anything else, KeyError for an unknown extra.
    """
    lines = []
    for requirement in _requirements(project, extra):
        match = _REQUIREMENT.fullmatch(requirement)
        if match is None:
            raise ValueError(f"not of the form name[extra]>=version; marker: {requirement!r}")
        if match["name"] == project["name"]:
            lines += [
                line for line in lowest_versions(project, match["extra"]) if line not in lines
            ]
        elif match["lowest"]:
            lines.append(f"{match['name']}=={match['lowest']}{match['marker'] or ''}")
    return list(dict.fromkeys(lines))


def _requirements(project: dict[str, Any], extra: str) -> Iterator[str]:
    yield from project["dependencies"]
    if extra:
        yield from project["optional-dependencies"][extra]


if __name__ == "__main__":
    wanted = sys.argv[1].strip("[]") if len(sys.argv) > 1 else ""
    print(*lowest_versions(tomllib.loads(PROJECT.read_text())["project"], wanted), sep="\n")
