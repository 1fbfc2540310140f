#!/usr/bin/env bash
# fsspec 2026.9.0 with aiohttp: `cat_file(url, start=..., end=...)` of a server that does not serve ranges gives the whole file.
#
# The server answers 200 with all bytes to a request for some, as HTTP allows. `cat_file` returns them as if they were the part that
# was asked for, without an error or a warning. A good guess is `end - start` bytes, or an error.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "fsspec[http]==2026.9.0"
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec

Path("a.bin").write_bytes(bytes(range(200)))


class Quiet(SimpleHTTPRequestHandler):  # which knows no ranges
    def log_message(self, *args):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory="."))
threading.Thread(target=server.serve_forever, daemon=True).start()
part = fsspec.filesystem("http").cat_file(f"http://127.0.0.1:{server.server_port}/a.bin", start=10, end=20)
server.shutdown()
print("asked for 10 bytes, got", len(part))
assert len(part) == 200
PYTHON
