"""Who may import whom: read from the source, so that a wall cannot be moved by accident."""

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "videossl"
FLOOR_ONE = {
    "config",
    "types",
    "rng",
    "distributed",
    "errors",
    "color",
    "clip_views",
    "colour_cells",
    "stabilization",
    "drawing",
    "progress",
    "masks",
    "picture_files",
    "video_writer",
    "version",
    "intervals",
    "workers",
    "worker_link",
    "worker_process",
    "whole_file",
    "leftovers",
    "text_files",
    "weights_file",
    "interrupts",
    "parent_death",
    "output_lock",
}
ALLOWED = {
    "decode": {"decode", "types", "errors"},
    "models": {"models", "types", "errors", "color"},
    "losses": {"losses", "distributed"},
    "data": {
        "data",
        "decode",
        "types",
        "rng",
        "distributed",
        "errors",
        "color",
        "progress",
        "masks",
        "picture_files",
        "video_writer",
        "workers",
        "worker_process",
        "whole_file",
        "leftovers",
        "text_files",
    },
    "eval": {
        "eval",
        "models",
        "decode",
        "types",
        "errors",
        "color",
        "drawing",
        "progress",
        "masks",
        "picture_files",
        "video_writer",
        "version",
        "whole_file",
        "leftovers",
        "text_files",
        "weights_file",
        "output_lock",
        "workers",
    },
    "pretext": {
        "pretext",
        "models",
        "losses",
        "distributed",
        "types",
        "rng",
        "errors",
        "color",
        "clip_views",
        "colour_cells",
        "stabilization",
        "drawing",
    },
    "engine": FLOOR_ONE | {"engine", "data", "pretext", "models"},
    "export": FLOOR_ONE | {"export", "engine", "data", "decode", "models"},
    "embedding": FLOOR_ONE | {"embedding", "export", "data", "decode", "models"},
    "probe": FLOOR_ONE | {"probe", "embedding", "export", "engine", "data", "decode", "models"},
    "doctor": {
        "doctor",
        "data",
        "decode",
        "errors",
        "version",
        "workers",
    },  # it must run where much is broken
    "report": FLOOR_ONE | {"report", "eval", "models"},
    "detection": FLOOR_ONE | {"detection", "engine", "models"},
    "audit": FLOOR_ONE | {"audit", "engine", "data", "decode", "pretext", "losses", "models"},
}


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
    } | ({"commands"} if any(name.startswith("videossl.commands") for name in names) else set())


def test_imports_stay_on_their_floor():
    problems = []
    for module, path in modules().items():
        area = module.split(".")[0]
        if area in ("__init__", "__main__", "commands"):
            continue
        allowed = ALLOWED.get(area, FLOOR_ONE - {"config"})
        problems += [
            f"{module} imports {other}"
            for other in imported_from(path)
            if other.split(".")[0] not in allowed
        ]
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


def test_no_module_is_named_after_nothing():
    assert not {"utils", "helpers", "common", "misc", "base"} & {
        m.split(".")[-1] for m in modules()
    }


def test_the_picture_of_the_architecture_shows_every_folder_above_what_it_imports():
    svg = (PACKAGE.parent / "docs" / "architecture.svg").read_text()
    floors = {
        name: int(floor) for floor, name in re.findall(r'data-floor="(\d+)" data-name="(\w+)"', svg)
    }
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert folders == floors.keys()
    for module, path in modules().items():
        area = module.split(".")[0]
        if area not in folders:
            continue
        for other in imported_from(path):
            below = other.split(".")[0]
            assert below == area or floors.get(below, 1) < floors[area], f"{module} imports {other}"
