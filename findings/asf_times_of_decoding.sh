#!/usr/bin/env bash
# FFmpeg 8.1 (in PyAV 18.1.0): frames read from its own ASF files with B-frames have times that go back.
#
# ASF has a presentation time for each packet. The muxer writes the decoding time there, without a warning, so that decoded
# frames, which come in the right order, bear times out of order: 0.04, 0.12, 0.16, 0.08 s, ... A good guess is that the times of
# frames that a decoder gives out ascend, as they do for the same stream in mp4, mkv and ts.
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

BITS = 8


def picture(number):
    """The number in binary, as eight blocks of black and white."""
    bits = np.array([(number >> bit) & 1 for bit in range(BITS)])
    return np.where(bits[np.arange(128) * BITS // 128], 230, 25).astype(np.uint8)[None, :, None].repeat(96, 0).repeat(3, 2)


def number(pixels):
    row = pixels[40].mean(axis=-1) > 127
    return sum(int(row[int((bit + 0.5) * 16)]) << bit for bit in range(BITS))


def write(path, count, options):
    with av.open(path, "w") as out:
        stream = out.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = 128, 96, "yuv420p", 1
        for at in range(count):
            frame = av.VideoFrame.from_ndarray(picture(at), format="rgb24")
            frame.pts, frame.time_base = at, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def times(path):
    with av.open(path) as container:
        frames = list(container.decode(video=0))
    assert [number(frame.to_ndarray(format="rgb24")) for frame in frames] == list(range(24)), path
    return [round(frame.time, 3) for frame in frames]


for path in ("b.mp4", "b.mkv", "b.asf"):
    write(path, 24, {"bf": "2", "g": "12"})
    print(path, times(path)[:8])
assert times("b.mp4") == sorted(times("b.mp4"))
assert times("b.mkv") == sorted(times("b.mkv"))
assert times("b.asf") != sorted(times("b.asf"))
PYTHON
