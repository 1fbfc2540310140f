"""The environments that tools/setup.sh makes, with a stub in the place of Python, and the versions that it holds them to."""

import itertools
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Notes how it is called and answers as its version would; environments get a copy of it.
STUB = """#!/bin/bash
echo "$VERSION $*" >> "$CALLS"
case "$*" in
    *"-m venv"*)
        mkdir -p "${@: -1}/bin" && cp "$0" "${@: -1}/bin/python"
        echo "version = $VERSION.0" > "${@: -1}/pyvenv.cfg" ;;
    *"pip install"*"-c "*) touch "$CALLS.constrained" ;;
    *"pip install"*) case " $PIP_FAILS_ON " in *" $VERSION "*) echo "ERROR: no wheel" >&2; exit 1 ;; esac ;;
    *examination*) if [ -e "$CALLS.constrained" ]; then printf '%s' "$STILL_WRONG"; else printf '%s' "$WRONG"; fi ;;
    *ensurepip*) echo "$VERSION.0 $0" ;;
    *pathlib*) grep -q "version = $VERSION.0" "${@: -1}" ;;
    *lowest_versions*) echo "torch==1" ;;
    --version) echo "Python $VERSION.0" ;;
esac
"""
REFUSES = "#!/bin/bash\necho 'pyenv: the command exists in these Python versions' >&2; exit 127\n"


class Checkout:
    """A folder with the script and stubs of some Pythons; 3.99 is newer than any that is really there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls, self.pythons = folder, folder / "calls", folder / "pythons"
        self.pythons.mkdir()
        (folder / "tools").mkdir()
        shutil.copy(ROOT / "tools" / "setup.sh", folder / "tools")
        (folder / "pyproject.toml").write_text("[project]\n")
        self.add("python3", "3.11")

    def add(self, name: str, version: str | None) -> None:
        stub = REFUSES if version is None else STUB.replace("$VERSION", version)
        (self.pythons / name).write_text(stub)
        (self.pythons / name).chmod(0o755)

    def source(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = 'source tools/setup.sh "$@"; command -v python'
        self.calls.write_text("")
        known = {"PATH": f"{self.pythons}:/usr/bin:/bin", "CALLS": str(self.calls)}
        none = {"PIP_FAILS_ON": "", "WRONG": "", "STILL_WRONG": ""}
        return subprocess.run(
            ["bash", "-c", command, "bash", *arguments],
            cwd=self.folder,
            env={**known, **none, **environment},
            capture_output=True,
            text=True,
        )

    def installs(self) -> list[str]:
        """The calls of pip, without what all have in common."""
        lines = [line for line in self.calls.read_text().splitlines() if "pip install" in line]
        return [
            re.sub(r"-m pip install --quiet --disable-pip-version-check ", "", x) for x in lines
        ]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_the_newest_versions_are_installed_once_where_they_work(checkout: Checkout) -> None:
    done = checkout.source("[test]")
    assert done.returncode == 0, done.stderr
    assert checkout.installs() == ["3.11 -e .[test]"]
    assert done.stdout.endswith(f"{checkout.folder}/.venv/bin/python\n")
    assert checkout.source("[test]").returncode == 0
    assert checkout.installs() == []


def test_versions_that_do_not_work_together_give_way_to_the_tested_ones(checkout: Checkout) -> None:
    done = checkout.source("", WRONG="torchvision: operator torchvision::nms does not exist")
    assert done.returncode == 0, done.stderr
    assert checkout.installs() == ["3.11 -e .", "3.11 -c tools/constraints.txt -e ."]
    (said,) = done.stderr.splitlines()
    assert "nms does not exist" in said
    assert "tools/constraints.txt" in said
    assert checkout.source("").returncode == 0
    assert checkout.installs() == []


def test_versions_that_cannot_be_installed_give_way_to_the_tested_ones(checkout: Checkout) -> None:
    done = checkout.source("", PIP_FAILS_ON="3.11")
    assert done.returncode == 0, done.stderr
    assert checkout.installs() == ["3.11 -e .", "3.11 -c tools/constraints.txt -e ."]


def test_an_environment_that_works_with_none_is_no_success_and_is_tried_again(
    checkout: Checkout,
) -> None:
    wrong = {"WRONG": "PyAV: new", "STILL_WRONG": "PyAV: old"}
    assert checkout.source("", **wrong).returncode != 0
    assert "PyAV: old" in checkout.source("", **wrong).stderr
    assert len(checkout.installs()) == 2


def test_newest_takes_the_newest_python_that_really_runs(checkout: Checkout) -> None:
    checkout.add("python3.99", None)  # of pyenv, not chosen
    checkout.add("python3.98", "3.98")
    checkout.add("python3.97", "3.97")
    for _ in range(2):  # each time: there may be newer versions
        done = checkout.source("[test-core]", "newest")
        assert done.returncode == 0, done.stderr
        assert checkout.installs() == [
            "3.98 --upgrade --upgrade-strategy eager --no-compile -e .[test-core]"
        ]
        assert done.stdout.endswith(f"{checkout.folder}/.venv-newest/bin/python\n")
    checkout.add("python3.99", "3.99")
    assert checkout.source("[test-core]", "newest").returncode == 0
    assert "version = 3.99.0" in (checkout.folder / ".venv-newest/pyvenv.cfg").read_text()


def test_a_python_without_wheels_gives_way_to_the_next_older_one(checkout: Checkout) -> None:
    checkout.add("python3.99", "3.99")
    checkout.add("python3.98", "3.98")
    done = checkout.source("[test-core]", "newest", PIP_FAILS_ON="3.99")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in checkout.installs()] == ["3.99", "3.98"]
    assert "Python 3.99.0" in done.stderr


def test_lowest_installs_what_pyproject_declares_on_the_lowest_python(checkout: Checkout) -> None:
    checkout.add("python3.12", "3.12")
    done = checkout.source("[test-core]", "lowest", PYTHON=str(checkout.pythons / "python3"))
    assert done.returncode == 0, done.stderr
    assert checkout.installs() == ["3.11 --no-compile -c .venv-lowest/lowest.txt -e .[test-core]"]
    assert (checkout.folder / ".venv-lowest/lowest.txt").read_text() == "torch==1\n"


@pytest.mark.parametrize("extra", ["", *PROJECT["optional-dependencies"]])
def test_the_lowest_versions_are_the_bounds_of_pyproject(extra: str) -> None:
    declared = [*map(Requirement, PROJECT["dependencies"])]
    todo = [*PROJECT["optional-dependencies"].get(extra, ())]
    for requirement in map(Requirement, todo):
        if requirement.name == PROJECT["name"]:  # an extra of our own
            (inner,) = requirement.extras
            todo += PROJECT["optional-dependencies"][inner]
        else:
            declared.append(requirement)
    command = [sys.executable, str(ROOT / "tools/lowest_versions.py"), f"[{extra}]"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {r.name: r for r in map(Requirement, printed.splitlines())}
    bounded = {r.name: r for r in declared if r.specifier}
    assert found.keys() == bounded.keys()
    for name, requirement in bounded.items():
        (bound,), (pin,) = requirement.specifier, found[name].specifier
        assert (bound.operator, pin.operator) == (">=", "==")
        assert Version(bound.version) == Version(pin.version)
        assert found[name].marker == requirement.marker


def test_tested_versions_are_of_all_that_is_declared_and_within_its_bounds() -> None:
    lines = (ROOT / "tools/constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    version_of = {re.sub(r"[-_.]+", "-", pin.name).lower(): str(pin.specifier)[2:] for pin in pins}
    assert all(pin.url is None and len(pin.specifier) == 1 for pin in pins)
    extras = itertools.chain.from_iterable(PROJECT["optional-dependencies"].values())
    everything = [*PROJECT["dependencies"], *extras]
    for requirement in map(Requirement, everything):
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name not in (PROJECT["name"], "setuptools"):
            assert requirement.specifier.contains(version_of[name]), name
