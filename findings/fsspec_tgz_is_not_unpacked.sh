#!/usr/bin/env bash
# fsspec 2026.9.0: a member of an archive named .tgz cannot be read by tar://, while the same bytes named .tar.gz can.
#
# TarFileSystem takes the compression from the name's last ending, of which .tgz is none that it knows, and hands the bytes
# to tarfile as plain tar: a ReadError about its header. Python's tarfile and mimetypes know .tgz for what it is, a gzipped tar.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "fsspec==2026.9.0"
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import io
import shutil
import tarfile

import fsspec

with tarfile.open("all.tar.gz", "w:gz") as archive:
    member = tarfile.TarInfo("a.txt")
    member.size = 5
    archive.addfile(member, io.BytesIO(b"frame"))
shutil.copy("all.tar.gz", "all.tgz")


def read(name):
    try:
        with fsspec.open(f"tar://a.txt::file://{name}", "rb") as file:
            return file.read()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


found = {name: read(name) for name in ("all.tar.gz", "all.tgz")}
print("fsspec", fsspec.__version__, found)
assert tarfile.is_tarfile("all.tgz")
assert found["all.tar.gz"] == b"frame"
assert found["all.tgz"].startswith("ReadError"), found["all.tgz"]
with fsspec.open("tar://a.txt::file://all.tgz", "rb", tar={"compression": "gzip"}) as file:
    assert file.read() == b"frame"  # said in so many words it works
PYTHON
