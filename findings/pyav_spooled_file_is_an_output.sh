#!/usr/bin/env bash
# PyAV 18.1.0: `av.open` of a `tempfile.SpooledTemporaryFile`, open for reading and at its beginning, takes it for an output.
#
# The mode is guessed from the file's own `mode`, "w+b" for all temporary files, so that reading one without saying mode="r" ends in
# "Could not determine output format". A good guess is that `av.open(file)` reads, as it does for a path and for a BytesIO.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "av==18.1.0" "numpy<3"
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import av
import numpy as np
from fractions import Fraction


def write(path, count, options):
    with av.open(path, "w") as out:
        stream = out.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = 128, 96, "yuv420p", 1
        for at in range(count):
            frame = av.VideoFrame.from_ndarray(np.zeros((96, 128, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = at, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


import io
import tempfile

write("a.mp4", 4, {})
content = open("a.mp4", "rb").read()
with av.open(io.BytesIO(content)) as container:
    print("BytesIO:", len(list(container.decode(video=0))), "frames")
with tempfile.SpooledTemporaryFile() as file:
    file.write(content)
    file.seek(0)
    try:
        av.open(file)
    except ValueError as error:
        print("SpooledTemporaryFile:", error)
        said = str(error)
    file.seek(0)
    with av.open(file, "r") as container:
        print("with mode r:", len(list(container.decode(video=0))), "frames")
assert "output format" in said
PYTHON
