#!/usr/bin/env bash
# fsspec 2026.9.0: a file opened from a chained URL into a zip archive closes by itself.
#
# `fsspec.open("zip://a.txt::file:///x.zip").open()` gives a file of which the first read may succeed and a later seek says "seek of
# closed file": nothing holds the file system of the archive, which is not cached, and closes what lies under it when it is
# collected. A good guess is that an open file stays open until it is closed. Holding the file system as well helps.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "fsspec==2026.9.0"
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import gc
import zipfile
from pathlib import Path

import fsspec

with zipfile.ZipFile("x.zip", "w") as archive:
    archive.writestr("a.txt", b"0123456789" * 1000)
url = f"zip://a.txt::file://{Path('x.zip').resolve()}"

file = fsspec.open(url, "rb").open()
gc.collect()
try:
    file.seek(100)
    file.read(1)
    said = ""
except ValueError as error:
    said = str(error)
print("file alone:", said or "reads")

system, name = fsspec.core.url_to_fs(url)
with system.open(name, "rb") as held:
    gc.collect()
    held.seek(100)
    print("with its file system held:", held.read(1))
assert "closed" in said
PYTHON
