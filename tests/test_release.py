"""What is released: the files of sdist and wheel, a wheel alone in an empty environment, the version, licences, imports."""

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from videossl.__main__ import COMMANDS
from videossl.version import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """The sdist, and the wheel made from it, of a copy of the checkout."""
    folder = tmp_path_factory.mktemp("release")
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist", "runs")
    shutil.copytree(ROOT, folder / "source", ignore=ignored)
    # Without isolation: the network is not asked for a setuptools that is here already.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist"]
    subprocess.run([*command, folder / "source"], check=True, capture_output=True)
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    (wheel,) = (folder / "dist").glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def empty_python(built, tmp_path_factory) -> Path:
    """An environment that holds the wheel and nothing else, not even what it depends on."""
    folder = tmp_path_factory.mktemp("empty")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(built[1])], check=True)
    return python


def run(*command: object) -> subprocess.CompletedProcess:
    # From elsewhere, so that the checkout is not found in the working folder.
    return subprocess.run([str(c) for c in command], cwd="/", capture_output=True, text=True)


def test_the_wheel_holds_the_package_and_all_its_data_and_nothing_else(built):
    package = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "videossl").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    names = set(zipfile.ZipFile(built[1]).namelist())
    assert "videossl/py.typed" in names
    assert {name for name in names if ".dist-info/" not in name} == package


def test_the_sdist_holds_what_the_wheel_is_made_of(built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "LICENSE", "README.md", "videossl/py.typed"} <= names
    assert {f"videossl/io/page.{kind}" for kind in ("html", "css", "js")} <= names


def test_the_wheel_names_its_version_and_its_licence(built):
    archive = zipfile.ZipFile(built[1])
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = message_from_string(archive.read(name).decode())
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["License-File"] == "LICENSE"
    assert any(n.endswith("licenses/LICENSE") for n in archive.namelist())
    assert metadata["Requires-Python"] == ">=3.11"


def test_the_wheel_alone_knows_its_version_and_its_commands(empty_python):
    assert (
        run(empty_python, "-c", "import videossl; print(videossl.__version__)").stdout.strip()
        == __version__
    )
    script = empty_python.with_name("videossl")
    assert run(script, "--version").stdout.strip() == __version__
    shown = run(script, "--help")
    assert shown.returncode == 0
    assert all(command in shown.stdout for command in COMMANDS)
    listed = run(
        empty_python,
        "-c",
        "import importlib.metadata as m; print(*(d.name for d in m.distributions()))",
    )
    assert listed.stdout.split() == ["videossl"]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command_needs_no_other_package(empty_python, command):
    shown = run(empty_python.with_name("videossl"), command, "--help")
    assert shown.returncode == 0, shown.stderr
    assert f"videossl {command}" in shown.stdout


def test_doctor_in_an_empty_environment_says_what_is_missing(empty_python):
    done = run(empty_python.with_name("videossl"), "doctor", "--json")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    rows = {row["what"]: row for row in json.loads(done.stdout)}
    assert rows["torch"]["state"] == "missing"
    assert rows["Python"]["state"] == "ok"
    assert "pip install" in rows["libraries"]["mend"]
    table = run(empty_python.with_name("videossl"), "doctor")
    assert table.returncode == 1
    assert "Not ready to scan, train and track" in table.stdout


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_does_not_import_torch(command):
    arguments = ["--help"] if command is None else [command, "--help"]
    code = "import sys\nfrom videossl.__main__ import main\n"
    code += f"try: main({arguments!r})\nexcept SystemExit: pass\nprint('torch' in sys.modules, file=sys.stderr)"
    assert run(sys.executable, "-c", code).stderr.strip() == "False"


def test_importing_videossl_imports_nothing_heavy():
    heavy = {"torch", "numpy", "av", "pyarrow", "pydantic", "rich"}
    code = f"import sys, videossl; print({heavy!r} & set(sys.modules))"
    assert run(sys.executable, "-c", code).stdout.strip() == "set()"


def test_the_version_is_said_in_one_place():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert "version" in PROJECT["dynamic"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)


def test_the_citation_has_what_the_format_requires():
    # https://github.com/citation-file-format/citation-file-format, schema 1.2.0
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation.keys() >= {"cff-version", "message", "title", "authors"}
    allowed = {
        "abstract",
        "type",
        "version",
        "license",
        "keywords",
        "repository-code",
        "url",
        "doi",
        "date-released",
    }
    assert citation.keys() - {"cff-version", "message", "title", "authors"} <= allowed
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert citation["license"] == PROJECT["license"]
    for author in citation["authors"]:
        assert "name" in author or {"given-names", "family-names"} <= author.keys()
    assert all(
        isinstance(value, str)
        for value in (citation["title"], citation["message"], citation["version"])
    )


def test_the_changelog_has_a_section_for_what_is_not_released_and_known_kinds_of_change():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## (.+)$", text, flags=re.MULTILINE)[0] == "[Unreleased]"
    kinds = set(re.findall(r"^### (.+)$", text, flags=re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def runtime_closure() -> set[str]:
    """The distributions that a plain install brings, by their metadata."""
    todo = [Requirement(line) for line in PROJECT["dependencies"]]
    found: set[str] = set()
    done: set[tuple[str, frozenset[str]]] = set()
    while todo:
        requirement = todo.pop()
        key = (requirement.name.lower(), frozenset(requirement.extras))
        extras = requirement.extras or {""}
        is_wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if key in done or not is_wanted:
            continue
        done.add(key)
        distribution = importlib.metadata.distribution(requirement.name)
        found.add(distribution.name)
        for line in distribution.requires or []:
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in extras):
                needed.marker = None
                todo.append(needed)
    return found


VIRAL = re.compile(
    r"\b(A?GPL|GNU (Affero )?General Public|SSPL|EUPL|CC[- ]BY[- ](NC|SA))", re.IGNORECASE
)
WEAK = re.compile(r"\b(LGPL|Lesser General Public|MPL|Mozilla|EPL|CDDL)", re.IGNORECASE)
PERMISSIVE = re.compile(
    r"\b(MIT|BSD|Apache|PSF|Python Software Foundation|ISC|Zlib|0BSD|Unlicense)", re.IGNORECASE
)
# What docs/licences.md says of them.
WEAK_KNOWN = {"tqdm", "shtab"}
SILENT_KNOWN = {"torchcodec", "cuda-toolkit"}


def test_nothing_that_a_plain_install_brings_is_under_a_viral_licence():
    names = sorted(runtime_closure())
    assert {"torch", "numpy", "av"} <= set(names)
    command = [
        sys.executable,
        "-m",
        "piplicenses",
        "--format=json",
        "--from=mixed",
        "--with-system",
    ]
    done = subprocess.run(
        [*command, "--packages", *names], capture_output=True, text=True, check=True
    )
    licences = {entry["Name"]: entry["License"] for entry in json.loads(done.stdout)}
    assert {n.lower().replace("_", "-") for n in licences} >= {
        n.lower().replace("_", "-") for n in names
    }
    assert {n: text for n, text in licences.items() if VIRAL.search(text)} == {}
    assert {n for n, text in licences.items() if WEAK.search(text)} <= WEAK_KNOWN
    others = {n for n, text in licences.items() if not PERMISSIVE.search(text)} - WEAK_KNOWN
    assert {n for n in others if not n.startswith("nvidia-")} <= SILENT_KNOWN
    page = (ROOT / "docs/licences.md").read_text()
    assert all(name in page for name in (*WEAK_KNOWN, *SILENT_KNOWN, "nvidia-"))


@pytest.mark.parametrize(
    ("text", "is_viral"),
    [
        ("GPL-3.0-or-later", True),
        ("GNU General Public License v2 (GPLv2)", True),
        ("AGPL-3.0", True),
        ("GNU Affero General Public License v3", True),
        ("LGPL-2.1", False),
        ("GNU Lesser General Public License v3", False),
        ("MIT AND Zlib", False),
    ],
)
def test_viral_licences_are_known_by_their_names(text, is_viral):
    assert bool(VIRAL.search(text)) == is_viral
