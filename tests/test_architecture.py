"""Who may import whom: read from the source, so that a wall cannot be moved by accident."""

import ast
import re
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "videossl"
# A folder imports from floors below its own. The modules beside the folders are of floor 1, as are io and workers.
FLOORS = {
    "io": 1,
    "workers": 1,
    "decode": 2,
    "models": 2,
    "data": 3,
    "pretext": 3,
    "tracking": 3,
    "engine": 4,
    "catalog": 4,
    "export": 5,
    "audit": 5,
    "probe": 6,
    "report": 6,
    "doctor": 6,
    "commands": 7,
}
# Beyond the floors: what a monitor measures is handed to the engine as a callable, and doctor runs where torch is broken.
APART = {
    ("engine", "tracking"),
    ("engine", "catalog"),
    ("catalog", "models"),
    ("doctor", "models"),
    ("doctor", "engine"),
    ("io", "config"),
    ("workers", "io"),
}
FACES = ("__init__", "__main__")  # of the package, and of the command line


def modules() -> dict[str, Path]:
    return {
        ".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in PACKAGE.rglob("*.py")
    }


def imported_from(path: Path) -> set[str]:
    """The videossl modules a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    known = modules()
    return {
        name.removeprefix("videossl.")
        for name in names
        if name.removeprefix("videossl.") in known and name != "videossl"
    }


def folder_of(module: str) -> str:
    return module.split(".")[0]


def test_a_folder_imports_from_floors_below_its_own():
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()} == set(
        FLOORS
    )
    problems = []
    for module, path in modules().items():
        own = folder_of(module)
        if own in FACES:
            continue
        for other in map(folder_of, imported_from(path)):
            is_below = FLOORS.get(other, 1) < FLOORS.get(own, 1)
            is_beside = other == own or FLOORS.get(own, 1) == FLOORS.get(other, 1) == 1
            if not (is_below or is_beside) or (own, other) in APART:
                problems.append(f"{module} imports {other}")
    assert problems == []


def test_modules_form_no_circle():
    graph = {
        name: {o for o in imported_from(path) if o != name} for name, path in modules().items()
    }
    done: set[str] = set()
    while ready := {
        name for name, others in graph.items() if name not in done and others & graph.keys() <= done
    }:
        done |= ready
    assert graph.keys() == done


def test_names_of_files_are_of_the_field_and_stand_once():
    names = Counter(name.split(".")[-1] for name in modules())
    assert not {"utils", "helpers", "common", "misc", "base"} & names.keys()
    assert [name for name, count in names.items() if count > 1 and name != "__init__"] == []


def test_the_picture_of_the_architecture_shows_the_floors():
    svg = (PACKAGE.parent / "docs" / "architecture.svg").read_text()
    drawn = re.findall(r'data-floor="(\d+)" data-name="(\w+)"', svg)
    assert {name: int(floor) for floor, name in drawn} == FLOORS


def test_each_stop_of_the_two_walks_exists():
    text = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    stops = re.findall(r"^\d+\. `([\w/]+\.py)` `([\w.]+)`", text, re.MULTILINE)
    assert len(stops) > 30
    missing = []
    for file, name in stops:
        scope: ast.AST | None = ast.parse((PACKAGE / file).read_text())
        for part in name.split("."):
            defined = getattr(scope, "body", [])
            kinds = (ast.FunctionDef, ast.ClassDef)
            scope = next((n for n in defined if isinstance(n, kinds) and n.name == part), None)
        if scope is None:
            missing.append(f"{file} {name}")
    assert missing == []
