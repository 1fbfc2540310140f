"""Small files that announce what would take the machine down: refused by the limits, with a message that says which."""

import io
import re
import struct
from fractions import Fraction
from pathlib import Path

import av
import pytest
from numbered_video import Variant, read_numbers, write_numbered_video

from videossl.__main__ import main
from videossl.data.manifest import read_manifest
from videossl.decode.container import MAX_PIXELS
from videossl.decode.index import read_index
from videossl.decode.pyav_reader import PyavReader
from videossl.errors import VideoDecodeError

TEN_HOURS = 36_000


def patched(content: bytes, mark: bytes, offset: int, patch: bytes) -> bytes:
    """The content with `patch` over it, `offset` bytes behind the mark."""
    at = content.index(mark) + len(mark) + offset
    return content[:at] + patch + content[at + len(patch) :]


def sized(content: bytes, suffix: str) -> bytes:
    """A file whose header announces 65535x65535 pixels."""
    if suffix == ".gif":
        return patched(content, b"GIF89a", 0, b"\xff" * 4)
    if suffix == ".avi":
        content = patched(content, b"avih", 36, struct.pack("<2I", 65535, 65535))
        return patched(content, b"strf", 8, struct.pack("<2i", 65535, 65535))
    content = patched(content, b"tkhd", 76, b"\xff\xff\0\0" * 2)
    return patched(content, b"stsdxxxx"[:4], 40, b"\xff" * 4)


def h264_of_side(blocks: int) -> bytes:
    """A stream whose own parameters, and not a container's, announce a square of that many macroblocks a side."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="h264") as output:
        stream = output.add_stream("libx264", rate=25, options={"profile": "baseline"})
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = 64, 64, "yuv420p", 1
        frame = av.VideoFrame(64, 64, "yuv420p")
        frame.pts = 0
        output.mux([*stream.encode(frame), *stream.encode(None)])
    units = re.split(b"\0\0\0?\1", buffer.getvalue())[1:]
    return b"".join(
        b"\0\0\0\1" + (_parameters(blocks) if unit[0] & 31 == 7 else unit) for unit in units
    )


def _parameters(blocks: int) -> bytes:
    """A sequence parameter set of the baseline profile (ITU-T H.264, 7.3.2.1.1)."""

    def golomb(value: int) -> str:
        digits = f"{value + 1:b}"
        return "0" * (len(digits) - 1) + digits

    bits = f"{66:08b}{0:08b}{51:08b}" + "".join(map(golomb, (0, 0, 2, 1))) + "0"
    bits += golomb(blocks - 1) * 2 + "11001"
    bits += "0" * (-len(bits) % 8)
    content = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
    return b"\x67" + re.sub(rb"\0\0(?=[\0-\3])", lambda _: b"\0\0\3", content)


def ten_hours(path: Path) -> Path:
    """One frame, shown for ten hours."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = 64, 64, "yuv420p", 1
        frame = av.VideoFrame(64, 64, "yuv420p")
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        for packet in (*stream.encode(frame), *stream.encode(None)):
            packet.duration = TEN_HOURS * 25
            output.mux(packet)
    return path


@pytest.fixture(scope="session")
def bombs(tmp_path_factory, numbered_video) -> Path:
    """A folder of them."""
    folder = tmp_path_factory.mktemp("bombs")
    raw = folder / "raw.avi"
    write_numbered_video(raw, Variant("rawvideo", ".avi", num_frames=2))
    lossless = folder / "ffv1.avi"
    write_numbered_video(lossless, Variant("ffv1", ".avi", num_frames=2))
    for path in (raw, lossless):
        path.write_bytes(sized(path.read_bytes(), ".avi"))
    gif = sized(numbered_video("gif").read_bytes(), ".gif")
    (folder / "picture.gif").write_bytes(gif)
    (folder / "stream.mp4").write_bytes(h264_of_side(4095))
    (folder / "eight_times.mp4").write_bytes(h264_of_side(600))
    for suffix in (".mp4", ".mkv"):
        ten_hours(folder / f"ten_hours{suffix}")
    one = write_numbered_video(folder / "rate.avi", Variant("mpeg4", ".avi", num_frames=1))
    hours = struct.pack("<2I", TEN_HOURS, 1)  # seconds and frames
    one.write_bytes(patched(one.read_bytes(), b"strh", 24, hours))
    mp4 = numbered_video("h264").read_bytes()
    # A million frames of one byte each, in the only chunk.
    sizes = patched(mp4, b"stsz", 4, struct.pack(">2I", 1, 10**6))
    sizes = patched(sizes, b"stts", 8, struct.pack(">I", 10**6))
    (folder / "sizes.mp4").write_bytes(patched(sizes, b"stsc", 12, struct.pack(">I", 10**6)))
    avi = patched(numbered_video("mpeg4_avi").read_bytes(), b"avih", 20, struct.pack("<I", 10**9))
    (folder / "counts.avi").write_bytes(patched(avi, b"strh", 36, struct.pack("<I", 10**9)))
    return folder


CAUSES = {
    "raw.avi": f"its stream announces 65535x65535 pixels, the limit is {MAX_PIXELS}",
    "ffv1.avi": f"its stream announces 65535x65535 pixels, the limit is {MAX_PIXELS}",
    "picture.gif": f"its stream announces 65535x65535 pixels, the limit is {MAX_PIXELS}",
    "stream.mp4": f"its stream announces 65520x65520 pixels, the limit is {MAX_PIXELS}",
    "eight_times.mp4": f"its header announces 9600x9600 pixels, the limit is {MAX_PIXELS}",
    "ten_hours.mp4": "its 1 frame(s) are shown for 36000 s each, the limit is 60 s",
    "ten_hours.mkv": "its 1 frame(s) are shown for 36000 s each, the limit is 60 s",
    "rate.avi": "its 1 frame(s) are shown for 36000 s each, the limit is 60 s",
    "sizes.mp4": "truncated: its index needs 1000048 bytes",
    "counts.avi": "its header announces 1000000000 frames, it holds 60 (damaged or truncated)",
}


@pytest.mark.parametrize("name", CAUSES)
def test_bomb_fails(bombs, name):
    with pytest.raises(VideoDecodeError, match=re.escape(CAUSES[name])):
        read_index(bombs / name)


def test_a_count_of_times_that_no_frame_has_does_no_harm(numbered_video, tmp_path):
    """An mp4 may announce more than it shows, and often does where it was trimmed: its samples are what counts."""
    sound = read_index(numbered_video("h264"))
    content = numbered_video("h264").read_bytes()
    path = tmp_path / "times.mp4"
    path.write_bytes(patched(content, b"stts", 8, struct.pack(">I", 2**32 - 1)))
    assert read_index(path).pts.tolist() == sound.pts.tolist()


def test_a_cause_is_given_again_although_ffmpeg_says_the_same_twice(bombs):
    for name in ("ffv1.avi", "ffv1.avi", "picture.gif", "ffv1.avi"):
        with pytest.raises(VideoDecodeError, match=re.escape(CAUSES[name])):
            read_index(bombs / name)


@pytest.mark.parametrize("options", [[], ["--deep"]])
def test_scan_of_bombs_gives_each_its_reason(bombs, tmp_path, options):
    out = tmp_path / "m.parquet"
    assert main(["scan", str(bombs), "-o", str(out), "--workers", "2", *options]) == 1
    reasons = {Path(entry.path).name: entry.reason for entry in read_manifest(out)}
    assert reasons.keys() == CAUSES.keys()
    for name, cause in CAUSES.items():
        assert reasons[name].startswith(cause)


@pytest.mark.parametrize("name", ["h264", "mpeg4", "mpeg4_avi"])
def test_size_that_only_the_container_claims_does_no_harm(numbered_video, tmp_path, name):
    """The streams of these tell their own size, which is the one that is decoded."""
    sound = numbered_video(name)
    path = tmp_path / f"claim{sound.suffix}"
    path.write_bytes(sized(sound.read_bytes(), sound.suffix))
    index = read_index(path)
    assert (index.info.width, index.info.height) == (128, 96)
    with PyavReader(path, index=index) as reader:
        assert read_numbers(reader.frames_at([0, 17]).data) == [0, 17]
