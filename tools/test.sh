#!/usr/bin/env bash
# Lint, types, tests, in the project's own environment. `--all` adds the tests that take minutes each.
# shellcheck source-path=SCRIPTDIR source=setup.sh
source "$(dirname "$0")/setup.sh" "[test]"

selection=(-m "not slow")
if [ "${1:-}" = --all ]; then selection=(); shift; fi
ruff check .
ruff format --check .
mypy
# One thread per process: tests start processes of their own, and torch's pools would fight for the cores.
OMP_NUM_THREADS=1 pytest "${selection[@]}" "$@"
