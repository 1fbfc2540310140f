"""Counts what makes the code easy or hard to hold in the head, and exits with 1 where a bound does not hold.

    python tools/measure_house.py

Files without a line are not counted. A floor is the number of folders that stand on each other by imports; an arrow up is an
import from a folder that stands on this one. A walk is that of docs/architecture.md: the files that a newcomer opens.
"""

import ast
import re
import sys
from collections import Counter
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "videossl"
WALK = re.compile(r"^\d+\. `([\w/]+\.py)` `([\w.]+)`", re.MULTILINE)


def modules() -> dict[str, Path]:
    """The files of the package by dotted name below it."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.read_text().strip()
    }


MODULES = modules()


@cache
def imports(module: str) -> frozenset[str]:
    """The modules of the package that one imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    names = {name.removeprefix("videossl.") for name in found if name.startswith("videossl.")}
    return frozenset((names & MODULES.keys()) - {module})


def folder_of(module: str) -> str:
    """The folder of a module; the modules beside the folders are one."""
    return module.split(".")[0] if "." in module else "(top)"


def depths(graph: dict[str, set[str]]) -> dict[str, int]:
    """How many nodes stand on each other down to each one, itself included; those in circles are left out."""
    found: dict[str, int] = {}
    while ready := {n for n, below in graph.items() if n not in found and below <= found.keys()}:
        found |= {n: 1 + max((found[other] for other in graph[n]), default=0) for n in ready}
    return found


def walks() -> list[list[tuple[str, str]]]:
    """The stops (file, function) of each walk in docs/architecture.md."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    return [WALK.findall(part) for part in text.split("\n## ") if WALK.search(part)]


def main() -> int:
    """Prints a line for each count with its bound."""
    graph = {module: set(imports(module)) for module in MODULES}
    # __main__ is asked by the commands for their list: the program, and not a part of the package.
    graph = {m: below - {"__main__"} for m, below in graph.items() if m != "__init__"}
    chain = depths(graph)
    rooms: dict[str, set[str]] = {}
    for module, below in graph.items():
        own = folder_of(module)
        rooms.setdefault(own, set()).update({folder_of(other) for other in below} - {own})
    # What everybody speaks stands together with io and workers on the lowest floor.
    lowest = {"(top)", "io", "workers"}
    rooms = {r: below - lowest for r, below in rooms.items() if r not in lowest}
    floors = depths(rooms)
    names = Counter(module.split(".")[-1] for module in MODULES)
    repeated = [n for n, count in names.items() if count > 1 and n not in ("__init__", "__main__")]
    clip, mask = ({file for file, _ in walk} for walk in walks())
    rows = (
        ("files", len(MODULES), 150),
        ("lines", sum(len(path.read_text().splitlines()) for path in MODULES.values()), 29_000),
        ("modules beside the folders", sum("." not in module for module in MODULES), 10),
        ("names that stand twice", len(repeated), 0),
        ("floors", 1 + max(floors.values(), default=0), 7),
        ("modules in circles", len(graph) - len(chain), 0),
        ("folders in circles", len(rooms) - len(floors), 0),
        ("files on the way of a clip", len(clip), 22),
        ("files on the way of a mask", len(mask), 15),
    )
    for what, count, bound in rows:
        print(f"{what:28} {count:7,}  at most {bound:6,}  {'' if count <= bound else 'MISSED'}")
    print(f"{'longest chain of imports':28} {max(chain.values()):7,}")
    return int(any(count > bound for _, count, bound in rows))


if __name__ == "__main__":
    sys.exit(main())
