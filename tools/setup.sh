# shellcheck shell=bash
# Sourced by demo.sh and test.sh: a virtual environment with this checkout in it, made once.
# usage: source tools/setup.sh EXTRA [newest|lowest]     (EXTRA: empty, or [test])
#   newest: .venv-newest, of the newest Python that is found here and the newest version of every dependency
#   lowest: .venv-lowest, of Python 3.11 and the lowest versions that pyproject.toml declares
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# "3.13.0 /path/to/python" of each Python from 3.11 on that really runs here and can make environments, the newest first.
# A name alone says little: pyenv's python3.13 refuses to run unless that version is chosen.
pythons() {
    local name about
    about='
import ensurepip, sys, sysconfig, venv
if sys.version_info[:2] >= (3, 11) and sys.version_info[3] == "final" and not sysconfig.get_config_var("Py_GIL_DISABLED"):
    print("%d.%d.%d" % sys.version_info[:3], sys.executable)'
    {
        compgen -c python3 | grep -E '^python3(\.[0-9]+)?$' || true
        if command -v pyenv >/dev/null; then printf '%s\n' "$(pyenv root)"/versions/*/bin/python; fi
    } | sort -u | while read -r name; do "$name" -c "$about" </dev/null 2>/dev/null || true; done | sort -u | sort -k1,1 -rV
}

environment() { # PYTHON FOLDER: made where it is missing or of another version
    local is_same='import sys, pathlib; sys.exit(f"version = {sys.version.split()[0]}" not in pathlib.Path(sys.argv[1]).read_text())'
    if [ -x "$2/bin/python" ] && "$1" -c "$is_same" "$2/pyvenv.cfg"; then return; fi
    echo "making $2 of $("$1" --version)"
    "$1" -m venv --clear "$2"
}

# Without compiling (--no-compile) it takes a minute less, and what the tests import is compiled then.
install() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@" -e ".$extra"; }

# Nothing where what was installed scans and reads a video; else what is wrong, in a line.
complaint() {
    "$venv/bin/python" -c '
from videossl.doctor.examination import checks, examine
rows = examine([], [check for check in checks() if check.name in ("libraries", "torch", "scan and read")])
print("; ".join(f"{row.what}: {row.found}" for row in rows if row.stops), end="")' 2>&1 | tail -n 1
}

# The newest versions that may go together by what they declare; where they do not, those of tools/constraints.txt.
install_what_works() {
    local reason
    if install; then reason=$(complaint); else reason="pip failed, see above"; fi
    if [ -z "$reason" ]; then return; fi
    echo "the newest versions do not work ($reason): installing those of tools/constraints.txt" >&2
    install -c tools/constraints.txt
    reason=$(complaint)
    if [ -n "$reason" ]; then
        echo "those do not work either: $reason" >&2
        return 1
    fi
}

install_newest() {
    local found python
    while read -r found python; do
        echo "the newest Python here is $found, the default $(python3 --version 2>&1); installing the newest of all into $venv"
        environment "$python" "$venv"
        if install --upgrade --upgrade-strategy eager --no-compile; then return; fi
        echo "not to be installed on Python $found, see above: trying the next older one" >&2
    done < <(pythons)
    echo "no Python from 3.11 on that runs and can make environments, or none on which all can be installed" >&2
    return 1
}

install_lowest() {
    local python
    python=${PYTHON:-$(pythons | sed -n 's/^3\.11\.[0-9]* //p' | head -n 1)}
    if [ -z "$python" ]; then
        echo "the lowest versions need Python 3.11, of which none runs here: set PYTHON=/path/to/python3.11" >&2
        return 1
    fi
    environment "$python" "$venv"
    "$venv/bin/python" tools/lowest_versions.py "$extra" >"$venv/lowest.txt"
    echo "installing the lowest versions that are declared into $venv"
    install --no-compile -c "$venv/lowest.txt"
}

extra=$1 kind=${2:-}
venv=.venv${kind:+-$kind}
# The first time only, or when what is declared has changed, or an earlier installation did not come to its end.
stamp=$venv/installed$extra
if [ "$kind" = newest ]; then
    install_newest # each time: there may be newer ones
elif [ "$kind" = lowest ]; then
    cmp -s pyproject.toml "$stamp" || install_lowest
else
    python=${PYTHON:-python3}
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "videossl needs Python 3.11 or newer; $python is $("$python" --version 2>&1). Set PYTHON=/path/to/python3.11" >&2
        exit 1
    fi
    if [ ! -x .venv/bin/python ]; then
        echo "making .venv"
        "$python" -m venv .venv
    fi
    if ! cmp -s pyproject.toml "$stamp"; then
        echo "installing videossl$extra and its dependencies into .venv (7 GB with torch's CUDA libraries)"
        install_what_works
    fi
fi
cp pyproject.toml "$stamp"
export PATH="$PWD/$venv/bin:$PATH"
