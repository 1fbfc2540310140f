"""Sound files that cameras, cutters and people make, in which packets are not frames one to one: each with what it shows.

Every frame shows its number (`numbered_video`); the numbers are what FFmpeg gives by decoding in order.
"""

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from numbered_video import Variant, numbered_picture, read_numbers

FPS = 25
GROUP = 20  # frames from one key frame to the next
CLOSED = {"g": str(GROUP), "bf": "2", "x264-params": f"keyint={GROUP}:scenecut=0"}
OPEN = {
    "bf": "3",
    "x264-params": f"open-gop=1:keyint={GROUP}:min-keyint={GROUP}:scenecut=0:bframes=3",
}
REPEATED = {"g": "25", "bf": "0", "x264-params": "repeat-headers=1:scenecut=0"}  # for streams
HEVC_OPEN = {
    "x265-params": f"log-level=error:keyint={GROUP}:min-keyint={GROUP}:bframes=3:open-gop=1:scenecut=0"
}
Shown = tuple[Path, list[int]]


def encode(
    path: Path,
    numbers: range,
    *,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    pixel_aspect: Fraction | None = None,
) -> Path:
    """Writes frames that show these numbers."""
    with av.open(str(path), "w", options=container_options or {}) as out:
        stream = out.add_stream(codec, rate=FPS, options=options or {})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        stream.thread_count = 1
        stream.codec_context.time_base = Fraction(1, FPS)
        if pixel_aspect:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        for at, number in enumerate(numbers):
            picture = numbered_picture(number, Variant())
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = at, Fraction(1, FPS)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def copy_packets(
    source: Path,
    path: Path,
    first: int,
    *,
    shift_seconds: float | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Copies packets from the `first` on without decoding; their times begin at 0, or are shifted."""
    with av.open(str(source)) as container, av.open(str(path), "w", options=options or {}) as out:
        stream = container.streams.video[0]
        copied = out.add_stream_from_template(stream)
        packets = [packet for packet in container.demux(stream) if packet.size][first:]
        base = packets[0].dts
        if shift_seconds is not None:
            base = -round(shift_seconds / stream.time_base)
        for packet in packets:
            packet.stream = copied
            packet.pts, packet.dts = packet.pts - base, packet.dts - base
            out.mux(packet)
    return path


def key_packets(path: Path) -> list[int]:
    """The numbers of the key packets, in the order of the file."""
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(container.streams.video[0]) if p.size]
        return [at for at, packet in enumerate(packets) if packet.is_keyframe]


def set_edits(path: Path, edits: list[tuple[float, float]]) -> None:
    """Makes an mp4 show [begin, end) seconds of its media, one part after the other (ISO 14496-12, 8.6.6)."""
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") - 4
    size, _, version, count = struct.unpack(">I4sII", data[at : at + 16])
    assert (version, count) == (0, 1)
    movie = struct.unpack(">I", data[data.index(b"mvhd") + 16 : data.index(b"mvhd") + 20])[0]
    media = struct.unpack(">I", data[data.index(b"mdhd") + 16 : data.index(b"mdhd") + 20])[0]
    delay = struct.unpack(">i", data[at + 20 : at + 24])[0]  # of the first frame, by B-frames
    rows = b"".join(
        struct.pack(">IiI", round((end - begin) * movie), delay + round(begin * media), 0x10000)
        for begin, end in edits
    )
    grown = 12 * (len(edits) - 1)
    for box in (b"moov", b"trak", b"edts", b"elst"):  # behind the media, so that nothing moves it
        start = data.index(box) - 4
        old = struct.unpack(">I", data[start : start + 4])[0]
        data[start : start + 4] = struct.pack(">I", old + grown)
    data[at + 12 : at + size] = struct.pack(">I", len(edits)) + rows
    path.write_bytes(data)


def set_matrix(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Writes the display matrix x' = a x + c y, y' = b x + d y of an mp4 (ISO 14496-12, 8.3.2)."""
    one = 0x10000
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    row = (a * one, b * one, 0, c * one, d * one, 0, 0, 0, 0x40000000)
    data[at : at + 36] = struct.pack(">9i", *row)
    path.write_bytes(data)


# --- the files, each in a folder of its own ---


def trimmed(folder: Path, begin: float, end: float) -> Shown:
    path = encode(folder / "trimmed.mp4", range(100), options=CLOSED)
    set_edits(path, [(begin, end)])
    return path, list(range(round(begin * FPS), round(end * FPS)))


def two_edits(folder: Path) -> Shown:
    path = encode(folder / "two_edits.mp4", range(100), options={**CLOSED, "bf": "0"})
    set_edits(path, [(0.0, 0.8), (2.0, 3.2)])
    return path, [*range(20), *range(50, 80)]


def cut_at_open_group(folder: Path, codec: str, options: dict[str, str], suffix: str) -> Shown:
    source = encode(folder / "whole.mkv", range(100), codec=codec, options=options)
    cut = copy_packets(source, folder / f"cut{suffix}", key_packets(source)[2])
    source.unlink()
    return cut, list(range(2 * GROUP, 100))


def cut_avi(folder: Path) -> Shown:
    source = encode(folder / "whole.avi", range(60), codec="mpeg4", options={"g": "20", "bf": "2"})
    cut = copy_packets(source, folder / "cut.avi", key_packets(source)[1])
    source.unlink()
    shown = read_whole(cut)
    return cut, list(range(shown[0], 60))


def read_whole(path: Path) -> list[int]:
    """The numbers of the frames that FFmpeg gives in order: where an encoder chose its key frames by itself."""
    pictures = torch.from_numpy(decoded_in_order(path)).permute(0, 3, 1, 2)
    return read_numbers(pictures)


def before_zero(folder: Path) -> Shown:
    """Times below 0, which Matroska stores and FFmpeg reads as no time at all."""
    source = encode(folder / "whole.mp4", range(100), options=OPEN)
    first = key_packets(source)[1]
    keep = {"avoid_negative_ts": "disabled"}
    path = copy_packets(source, folder / "cut.mkv", first, shift_seconds=-1.2, options=keep)
    source.unlink()
    return path, list(range(GROUP, 100))


def begins_amid(folder: Path, suffix: str) -> Shown:
    source = encode(folder / f"whole{suffix}", range(100), options={**CLOSED, "bf": "0"})
    cut = copy_packets(source, folder / f"amid{suffix}", 7)
    source.unlink()
    return cut, list(range(GROUP, 100))


def broadcast_begins_amid(folder: Path) -> Shown:
    source = encode(folder / "whole.ts", range(100), options=REPEATED)
    data = source.read_bytes()
    source.unlink()
    path = folder / "amid.ts"
    path.write_bytes(data[188 * (len(data) // 188 // 10) :])
    return path, list(range(25, 100))


def joined(
    folder: Path,
    codec: str,
    options: dict[str, str],
    suffix: str,
    delay: float,
    *,
    begin: float = 0.0,
) -> Shown:
    """Two recordings of two seconds end to end, whose clocks begin at `begin` and at `delay` seconds."""
    parts = [
        encode(
            folder / f"{first}{suffix}",
            range(first, first + 50),
            codec=codec,
            options=options,
            container_options={"output_ts_offset": str(offset)},
        )
        for first, offset in ((0, begin), (100, delay))
    ]
    path = folder / f"joined{suffix}"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    for part in parts:
        part.unlink()
    return path, [*range(50), *range(100, 150)]


def append_packets(
    parts: list[Path],
    path: Path,
    *,
    offset_seconds: float = 0.0,
    options: dict[str, str] | None = None,
    call_all_keys: bool = False,
    after_first: bool = False,
) -> Path:
    """Copies the packets of parts one after the other without decoding, each later one shifted by the offset.

    Times of decoding that would not rise are raised, and those shown with them: so does `ffmpeg -f concat -c copy`.
    With `after_first` they rise from the time on at which the first one is shown: so does `ffmpeg -ss ... -c copy`.
    """
    with av.open(str(path), "w", options=options or {}) as out:
        copied, last = None, None
        for number, part in enumerate(parts):
            with av.open(str(part)) as container:
                stream = container.streams.video[0]
                copied = copied or out.add_stream_from_template(stream)
                shift = round(number * offset_seconds / stream.time_base)
                for packet in container.demux(stream):
                    if not packet.size:
                        continue
                    packet.dts = (
                        packet.dts + shift if last is None else max(packet.dts + shift, last + 1)
                    )
                    packet.pts = max(packet.pts + shift, packet.dts)
                    packet.is_keyframe |= call_all_keys
                    is_first = last is None
                    last, packet.stream = packet.dts, copied
                    if is_first and after_first:
                        last = packet.pts
                    out.mux(packet)
    return path


def concatenated(folder: Path, codec: str, options: dict[str, str], suffix: str) -> Shown:
    """Parts joined by copying whose times overlap by a tenth of a second: decoding goes on, and what is shown goes back."""
    parts = [
        encode(folder / f"{first}.mp4", range(first, first + 50), codec=codec, options=options)
        for first in (0, 100)
    ]
    path = append_packets(parts, folder / f"concatenated{suffix}", offset_seconds=1.9)
    for part in parts:
        part.unlink()
    return path, [*range(50), *range(100, 150)]


def cut_with_late_times(folder: Path, codec: str, suffix: str) -> Shown:
    """Cut by copying at a key frame: frames that lead it, and cannot be decoded, get times behind it."""
    source = encode(folder / "whole.mp4", range(60), codec=codec, options=MPEG2)
    first = key_packets(source)[1]
    cut = copy_packets(source, folder / "cut.mkv", first)
    path = append_packets([cut], folder / f"late{suffix}", after_first=True)
    for part in (source, cut):
        part.unlink()
    shown = read_whole(path)
    return path, list(range(shown[0], 60))


def called_keys(folder: Path, codec: str, options: dict[str, str], name: str) -> Shown:
    """Every packet is called a key frame, and few are."""
    source = encode(folder / "honest.mp4", range(60), codec=codec, options=options)
    fragments = {"movflags": "frag_keyframe+empty_moov", "frag_duration": "500000"}
    path = append_packets(
        [source],
        folder / name,
        options=fragments if "fragments" in name else {},
        call_all_keys=True,
    )
    source.unlink()
    return path, list(range(60))


def times_of_decoding(folder: Path, suffix: str) -> Shown:
    """ASF and AVI store the times at which packets are decoded, and with B-frames those are not the times shown."""
    return encode(folder / f"b_frames{suffix}", range(60), options=CLOSED), list(range(60))


def refreshed(folder: Path) -> Shown:
    options = {"x264-params": "intra-refresh=1:keyint=20"}
    return encode(folder / "refreshed.mp4", range(60), options=options), list(range(60))


def bare(folder: Path) -> Shown:
    return encode(folder / "bare.h264", range(60), options=CLOSED), list(range(60))


def at_the_time_of_day(folder: Path, seconds: float) -> Shown:
    source = encode(folder / "zero.mkv", range(60), options={**CLOSED, "bf": "0"})
    path = copy_packets(source, folder / "day.mkv", 0, shift_seconds=seconds)
    source.unlink()
    return path, list(range(60))


MPEG2 = {"g": "12", "bf": "2"}
STREAMS: dict[str, Callable[[Path], Shown]] = {
    "trimmed_in_the_middle": lambda folder: trimmed(folder, 1.6, 2.8),
    "trimmed_amid_a_group": lambda folder: trimmed(folder, 1.2, 4.0),
    "trimmed_a_little": lambda folder: trimmed(folder, 0.4, 4.0),
    "two_edits": two_edits,
    "h264_cut_mkv": lambda folder: cut_at_open_group(folder, "libx264", OPEN, ".mkv"),
    "h264_cut_mp4": lambda folder: cut_at_open_group(folder, "libx264", OPEN, ".mp4"),
    "hevc_cut_mkv": lambda folder: cut_at_open_group(folder, "libx265", HEVC_OPEN, ".mkv"),
    "hevc_cut_mp4": lambda folder: cut_at_open_group(folder, "libx265", HEVC_OPEN, ".mp4"),
    "begins_amid_mp4": lambda folder: begins_amid(folder, ".mp4"),
    "begins_amid_mkv": lambda folder: begins_amid(folder, ".mkv"),
    "broadcast_begins_amid": broadcast_begins_amid,
    "joined_same_clock": lambda folder: joined(folder, "libx264", REPEATED, ".ts", 0.0),
    "joined_other_clock": lambda folder: joined(folder, "libx264", REPEATED, ".ts", 0.013),
    "joined_later_clock": lambda folder: joined(folder, "libx264", REPEATED, ".ts", 3600.0),
    "joined_program_streams": lambda folder: joined(folder, "mpeg2video", MPEG2, ".mpg", 0.0),
    "joined_program_streams_later": lambda folder: joined(
        folder, "mpeg2video", MPEG2, ".mpg", 13.0
    ),
    "joined_overlapping_mp4": lambda folder: concatenated(folder, "libx264", CLOSED, ".mp4"),
    "joined_overlapping_ts": lambda folder: concatenated(folder, "libx264", CLOSED, ".ts"),
    "joined_overlapping_mkv": lambda folder: concatenated(folder, "libx264", CLOSED, ".mkv"),
    "joined_overlapping_mpeg2": lambda folder: concatenated(folder, "mpeg2video", MPEG2, ".ts"),
    "joined_overlapping_mpeg4": lambda folder: concatenated(folder, "mpeg4", MPEG2, ".mp4"),
    "late_times_mpeg2_ts": lambda folder: cut_with_late_times(folder, "mpeg2video", ".ts"),
    "late_times_mpeg4_mp4": lambda folder: cut_with_late_times(folder, "mpeg4", ".mp4"),
    "called_keys_h264": lambda folder: called_keys(folder, "libx264", CLOSED, "fragments.mp4"),
    "called_keys_hevc_mp4": lambda folder: called_keys(folder, "libx265", HEVC_OPEN, "a.mp4"),
    "called_keys_hevc_mkv": lambda folder: called_keys(folder, "libx265", HEVC_OPEN, "a.mkv"),
    "called_keys_mpeg4": lambda folder: called_keys(folder, "mpeg4", {"g": "12"}, "fragments.mp4"),
    "b_frames_asf": lambda folder: times_of_decoding(folder, ".asf"),
    "b_frames_avi": lambda folder: times_of_decoding(folder, ".avi"),
    "intra_refresh": refreshed,
    "bare_h264": bare,
    "cut_avi": cut_avi,
    "before_zero": before_zero,
    "no_time_at_all": lambda folder: at_the_time_of_day(folder, 2e11),
    "time_of_day": lambda folder: at_the_time_of_day(folder, 1_764_500_000.0),
}
JOINED = tuple(name for name in STREAMS if name.startswith("joined"))


def decoded_in_order(path: Path) -> np.ndarray:
    """(n, H, W, 3) uint8: what plain decoding from the beginning gives, packets that do not decode passed over."""
    pictures = []
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        stream.thread_type = "NONE"
        for packet in container.demux(stream):
            try:
                pictures += [frame.to_ndarray(format="rgb24") for frame in packet.decode()]
            except av.FFmpegError:
                continue
    return np.stack(pictures)
