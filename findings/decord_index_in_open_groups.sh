#!/usr/bin/env bash
# decord 0.6.0 gives the wrong frame of a sound mp4 when it seeks into an open group of pictures.
#
# The file is plain H.264 of x264 with open-gop=1: after a key frame come, in the file, frames shown before it. The list of times
# that decord makes is right, and so is reading in order; by index some frames are those of another number, under the time of the
# one that was asked for. A good guess is that frame k is frame k whichever way it is read.
# Seen: the last three frames before each key frame come as the next one, all others right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "decord==0.6.0" "av==18.1.0" "numpy<3"
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


write("open.mp4", 60, {"bf": "3", "x264-params": "open-gop=1:keyint=12:min-keyint=12:scenecut=0:bframes=3"})
import decord

in_order = [number(frame.asnumpy()) for frame in decord.VideoReader("open.mp4", num_threads=1)]
print("in order:", in_order == list(range(60)))
wrong = {}
for at in range(60):
    reader = decord.VideoReader("open.mp4", num_threads=1)  # a fresh one, so that nothing was read before
    got = number(reader.get_batch([at]).asnumpy()[0])
    if got != at:
        wrong[at] = got
print("by index, asked and got:", wrong)
assert in_order == list(range(60))
assert wrong, "decord seeks right now"
PYTHON
