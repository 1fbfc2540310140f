# shellcheck shell=bash
# Sourced by demo.sh and test.sh: a virtual environment with this checkout in it, made once.
# usage: source tools/setup.sh EXTRA     (EXTRA: empty, or [test])
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "videossl needs Python 3.11 or newer; $python is $("$python" --version 2>&1). Set PYTHON=/path/to/python3.11" >&2
    exit 1
fi
if [ ! -x .venv/bin/python ]; then
    echo "making .venv"
    "$python" -m venv .venv
fi
# Installs again only when what is declared has changed, or an earlier installation did not come to its end.
stamp=.venv/installed"$1"
if ! cmp -s pyproject.toml "$stamp"; then
    echo "installing videossl$1 and its dependencies into .venv (5 GB with torch's CUDA libraries)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".$1"
    cp pyproject.toml "$stamp"
fi
export PATH="$PWD/.venv/bin:$PATH"
