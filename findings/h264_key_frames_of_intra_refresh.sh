#!/usr/bin/env bash
# FFmpeg 8.1 (in PyAV 18.1.0): decoding from a packet that is called a key frame does not give the frame of that packet.
#
# H.264 with intra refresh (x264's intra-refresh=1, live encoders) has no key frames after the first, but points from which all
# parts of the picture will have been renewed some frames later. Their packets bear the flag of key frames, in mp4 and elsewhere,
# and a seek lands on them; the decoder then holds back the frames up to the end of the refresh. A good guess is that the first
# frame that comes out after a seek to a key frame is that frame.
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


write("refresh.mp4", 100, {"x264-params": "intra-refresh=1:keyint=20:scenecut=0"})
with av.open("refresh.mp4") as container:
    stream = container.streams.video[0]
    keys = [packet.pts for packet in container.demux(stream) if packet.is_keyframe and packet.size]
    late = []
    for key in keys[1:]:
        container.seek(key, stream=stream)
        first = next(container.decode(stream))
        late.append(round((first.pts - key) * stream.time_base * 25))
print(len(keys), "key frames; frames missing after a seek to each:", late)
assert late and all(frames > 0 for frames in late)
PYTHON
