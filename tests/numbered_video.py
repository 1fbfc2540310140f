"""Real video files whose frame number can be read from the pixels: eight blocks, black or white, in the upper half."""

import os
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

NUM_BITS = 8


@dataclass(frozen=True)
class Variant:
    """One kind of file; every frame i shows the number i and is on screen from `seconds(i)` on."""

    codec: str = "libx264"
    suffix: str = ".mp4"
    pixel_format: str = "yuv420p"
    width: int = 128  # as shown
    height: int = 96
    num_frames: int = 60
    fps: int = 25
    gap_frames: tuple[int, ...] = ()  # frames after which the next three are missing: variable rate
    clockwise_rotation: int = 0  # written as a flag
    options: dict[str, str] = field(default_factory=dict)

    @property
    def ticks(self) -> list[int]:
        """Presentation time of each frame, in frames of the nominal rate."""
        return [i + 3 * sum(gap < i for gap in self.gap_frames) for i in range(self.num_frames)]

    @property
    def seconds(self) -> np.ndarray:
        """Presentation time of each frame."""
        return np.array(self.ticks) / self.fps


VARIANTS = {
    "h264": Variant(options={"g": "12", "bf": "0"}),
    "h264_b_frames": Variant(options={"g": "24", "bf": "3", "b-pyramid": "normal"}),
    "h264_open_gop": Variant(
        options={"bf": "3", "x264-params": "open-gop=1:keyint=12:scenecut=0:bframes=3"}
    ),
    "h264_long_gop": Variant(num_frames=250, options={"g": "1000", "bf": "2"}),
    "h264_variable_rate": Variant(gap_frames=(3, 20, 21, 40), options={"g": "12", "bf": "2"}),
    "h264_odd_size": Variant(width=131, height=97, pixel_format="yuv444p"),
    "h264_422": Variant(pixel_format="yuv422p"),
    "h264_full_range": Variant(pixel_format="yuvj420p"),
    "h264_10_bit": Variant(pixel_format="yuv420p10le"),
    "h264_rotated_90": Variant(clockwise_rotation=90),
    "h264_rotated_180": Variant(clockwise_rotation=180),
    "h264_rotated_270": Variant(clockwise_rotation=270, options={"bf": "2"}),
    "h264_one_frame": Variant(num_frames=1),
    "h264_mkv": Variant(suffix=".mkv", options={"g": "12", "bf": "2"}),
    "h264_flv": Variant(suffix=".flv", options={"g": "12", "bf": "2"}),
    "h264_ts": Variant(suffix=".ts", options={"g": "12", "bf": "2"}),
    "h264_avi": Variant(suffix=".avi", options={"g": "12", "bf": "2"}),
    "hevc": Variant(
        codec="libx265", options={"x265-params": "log-level=error:keyint=20:bframes=3"}
    ),
    "hevc_10_bit": Variant(
        codec="libx265", pixel_format="yuv420p10le", options={"x265-params": "log-level=error"}
    ),
    "mpeg4": Variant(codec="mpeg4", options={"g": "12"}),
    "mpeg4_b_frames": Variant(codec="mpeg4", options={"g": "12", "bf": "2"}),
    "mpeg4_padded_rows": Variant(codec="mpeg4", width=48, height=48, options={"g": "12"}),
    "mpeg4_avi": Variant(codec="mpeg4", suffix=".avi", options={"g": "12", "bf": "2"}),
    "mpeg2_ps": Variant(codec="mpeg2video", suffix=".mpg", options={"g": "12", "bf": "2"}),
    "vp8": Variant(
        codec="libvpx",
        suffix=".webm",
        options={"g": "30", "auto-alt-ref": "1", "lag-in-frames": "16", "b": "400k"},
    ),
    "vp9": Variant(codec="libvpx-vp9", suffix=".webm", options={"g": "30", "cpu-used": "8"}),
    "vp9_odd_size": Variant(
        codec="libvpx-vp9", suffix=".webm", width=131, height=97, options={"cpu-used": "8"}
    ),
    "av1": Variant(codec="libsvtav1", options={"preset": "12", "g": "30"}),
    "wmv": Variant(codec="wmv2", suffix=".wmv", options={"g": "12"}),
    "gif": Variant(codec="gif", suffix=".gif", pixel_format="rgb8", num_frames=20),
}


def write_numbered_video(path: Path, variant: Variant) -> Path:
    """Writes the file and returns its path."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(variant.codec, rate=variant.fps, options=variant.options)
        stored_height, stored_width, _ = stored_picture(0, variant).shape
        stream.width, stream.height = stored_width, stored_height
        stream.pix_fmt = variant.pixel_format
        stream.thread_count = 1
        time_base = Fraction(1, variant.fps)
        stream.codec_context.time_base = time_base
        for number, tick in enumerate(variant.ticks):
            frame = av.VideoFrame.from_ndarray(stored_picture(number, variant), format="rgb24")
            frame.pts, frame.time_base = tick, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    end_realtime()
    if variant.clockwise_rotation:
        write_rotation_flag(path, variant.clockwise_rotation)
    return path


def end_realtime() -> None:
    """Ends what SVT-AV1 begins: run as root, it makes the thread that writes a file a real-time one, for good.

    What that thread starts inherits it, and two such processes starve each other and all else, once they have more threads
    than cores.
    """
    if hasattr(os, "sched_setscheduler"):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def stored_picture(number: int, variant: Variant) -> np.ndarray:
    """The picture as the camera stored it: upright once the rotation flag is obeyed."""
    picture = np.rot90(numbered_picture(number, variant), variant.clockwise_rotation // 90)
    return np.ascontiguousarray(picture)


def numbered_picture(number: int, variant: Variant) -> np.ndarray:
    """(H, W, 3) uint8, upright: the number in binary above, colours that move with it below."""
    height, width = variant.height, variant.width
    picture = np.empty((height, width, 3), dtype=np.uint8)
    bits = [(number >> bit) & 1 for bit in range(NUM_BITS)]
    block_of = np.arange(width) * NUM_BITS // width
    picture[: height // 2] = np.array([25, 230])[np.array(bits)[block_of]][None, :, None]
    row, column = np.mgrid[: height - height // 2, :width]
    picture[height // 2 :, :, 0] = 100 + 60 * np.sin((column + 2 * number) / 15)
    picture[height // 2 :, :, 1] = 100 + 60 * np.cos(row / 9)
    picture[height // 2 :, :, 2] = 128
    return picture


def read_numbers(frames: torch.Tensor) -> list[int]:
    """The numbers shown in (N, 3, H, W) upright frames."""
    rows = frames[:, :, : frames.shape[2] // 4].float().mean(dim=(1, 2))  # (N, W)
    width = rows.shape[1]
    centers = [int((bit + 0.5) * width / NUM_BITS) for bit in range(NUM_BITS)]
    bits = rows[:, centers] > 127
    return [sum(int(bit) << at for at, bit in enumerate(row)) for row in bits]


def write_rotation_flag(path: Path, clockwise_degrees: int) -> None:
    """Writes the display matrix of the first track of an MP4 (ISO 14496-12, 8.3.2), which no encoder here can."""
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[clockwise_degrees]
    one = 0x10000  # 16.16 fixed point; the last column is 2.30
    matrix = [cos * one, sin * one, 0, -sin * one, cos * one, 0, 0, 0, 0x40000000]
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 40
    content[start : start + 36] = b"".join(
        value.to_bytes(4, "big", signed=True) for value in matrix
    )
    path.write_bytes(content)
