#!/usr/bin/env bash
# PyAV 18.1.0: `VideoFrame.rotation` is an angle for each of the eight display matrices, also for the four that mirror.
#
# An mp4 may ask to be shown mirrored (front cameras, "flip" in players): its matrix has a negative determinant. The angle is
# -180 for a picture flipped left to right, 0 for one flipped upside down, -90 and 90 for the two transposed ones. Turning by it
# shows each of them wrong, and nothing tells them from the four that do not mirror. The matrix itself is in `frame.side_data`.
# A good guess is that the angle is None, or an error, where no angle can say it.
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


import struct

write("plain.mp4", 4, {})
data = bytearray(open("plain.mp4", "rb").read())
at = data.index(b"tkhd") + 44
MATRICES = {"left to right": (-1, 0, 0, 1), "upside down": (1, 0, 0, -1), "transposed": (0, 1, 1, 0), "transverse": (0, -1, -1, 0)}
found = {}
for name, (a, b, c, d) in MATRICES.items():
    data[at : at + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    open("mirrored.mp4", "wb").write(data)
    with av.open("mirrored.mp4") as container:
        frame = next(container.decode(video=0))
        found[name] = frame.rotation
print(found)
assert found == {"left to right": -180, "upside down": 0, "transposed": -90, "transverse": 90}
PYTHON
