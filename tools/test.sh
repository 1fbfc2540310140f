#!/usr/bin/env bash
# Lint, types, tests, in the project's own environment. `--all` adds the tests that take minutes each.
# `--newest`: the newest Python found and the newest of every dependency. `--lowest`: the lowest versions declared. Both run
# the tests of decoding, data, packing, training and tracking, where another version of a library shows first.
# shellcheck source-path=SCRIPTDIR source=setup.sh
set -euo pipefail
case ${1:-} in
    --newest | --lowest) extra="[test-core]" kind=${1#--} && shift ;;
    *) extra="[test]" kind="" ;;
esac
source "$(dirname "$0")/setup.sh" "$extra" "$kind"

# One thread per process: tests start processes of their own, and torch's pools would fight for the cores. Files of tests go to
# up to four processes; each file stays in one, since its tests share fixtures. A process that dies ends the run, with its
# test's name: pytest-xdist 3.8 waits for ever for one that took its place.
processes=$(python -c "from videossl.workers.pool import num_cores; print(min(4, num_cores()))")
run_tests() {
    OMP_NUM_THREADS=1 python -m pytest --numprocesses "$processes" --dist loadfile --max-worker-restart 0 "$@"
}

if [ -n "$kind" ]; then
    python -c '
import importlib.metadata, platform
names = ("torch", "torchvision", "torchcodec", "av", "numpy", "pyarrow", "scipy", "pydantic", "pillow")
print("Python", platform.python_version(), *(f"{name} {importlib.metadata.version(name)}" for name in names), sep=", ")'
    files=(tests/test_{decode,shown_frames,data,scan,inspect,pack,loader,manifest,train,tracking,track_command,doctor}.py)
    run_tests -m "not slow" "${files[@]}" "$@"
    exit
fi

# The tests of pages drive a browser, and skip without one. Only an unattended run installs it, and only as root.
has_browser() { command -v chromium && command -v chromedriver; } >/dev/null
if ! has_browser; then
    install="apt-get update && apt-get install -y --no-install-recommends chromium chromium-driver"
    if [ "$(id -u)" != 0 ] || { [ -z "${CI:-}" ] && [ -t 1 ]; } || ! timeout 600 sh -c "$install" >/dev/null 2>&1; then
        echo "no Chromium: the tests of pages skip (as root: $install)"
    fi
fi
if has_browser; then export VIDEOSSL_NEED_BROWSER=1; fi
selection=(-m "not slow")
if [ "${1:-}" = --all ]; then selection=(); shift; fi
ruff check .
ruff format --check .
mypy
run_tests "${selection[@]}" "$@"
