"""A video of eight frames that PyAV writes here, and whether what a decoder makes of it is right.

Each frame shows its number as three blocks, black or white, above a field of one colour: a frame of another time, swapped
channels and a wrong colour range are all told.
"""

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # where it is missing, that too must be said
    import numpy as np
    from numpy.typing import NDArray

NUM_FRAMES = 8
NUM_BITS = 3
KEY_FRAME_EVERY = 4  # so that reading single frames must seek
FRAME_SECONDS = 0.04
HEIGHT, WIDTH = 96, 128  # multiples of 16 and 32: decord cannot copy narrower rows
COLOUR = (170, 90, 50)
# Of the mean of the field. Limited range, chroma at half size and a lossy codec move it by less than 10 on every codec here.
COLOUR_TOLERANCE = 20
# In the order in which they are tried; what each codec is called comes first.
ENCODERS = {
    "h264": ("libx264", "libopenh264"),
    "hevc": ("libx265",),
    "vp9": ("libvpx-vp9",),
    "av1": ("libsvtav1", "libaom-av1", "librav1e"),
    "mpeg4": ("mpeg4",),
}
_QUIET = {"libx265": {"x265-params": "log-level=error"}, "libsvtav1": {"preset": "12"}}


def picture(number: int) -> "NDArray[np.uint8]":
    """Frame `number`, (H, W, 3) uint8 RGB."""
    import numpy as np

    pixels = np.empty((HEIGHT, WIDTH, 3), dtype=np.uint8)
    bits = np.array([(number >> bit) & 1 for bit in range(NUM_BITS)])
    block_of = np.arange(WIDTH) * NUM_BITS // WIDTH
    pixels[: HEIGHT // 2] = np.where(bits[block_of], 230, 25)[None, :, None]
    pixels[HEIGHT // 2 :] = COLOUR
    return pixels


def write_tiny_video(path: Path, encoder: str) -> None:
    """Writes the file. Raises PyAV's errors where the encoder is missing or fails."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            encoder, rate=round(1 / FRAME_SECONDS), options=_QUIET.get(encoder, {})
        )
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.gop_size = KEY_FRAME_EVERY
        stream.thread_count = 1
        for number in range(NUM_FRAMES):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, round(1 / FRAME_SECONDS))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_with_any(path: Path, codec: str) -> str:
    """Writes the file with the first encoder of the codec that works and returns its name, or "" where none does."""
    import av

    for encoder in ENCODERS[codec]:
        try:
            write_tiny_video(path, encoder)
        except (av.FFmpegError, ValueError, LookupError):  # not built in, or built in and failing
            path.unlink(missing_ok=True)
            continue
        return encoder
    return ""


def read_with_pyav(path: Path) -> "tuple[NDArray[np.uint8], str]":
    """All frames, (N, H, W, 3) uint8 RGB, and the decoder's name. Raises PyAV's errors."""
    import av
    import numpy as np

    with av.open(str(path)) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        return np.stack(frames), container.streams.video[0].codec_context.codec.name


def listing_fault(path: Path) -> str:
    """What is wrong with the frames and times that `scan` lists of the file, or "" for the right ones. Needs no torch."""
    import numpy as np

    from videossl.decode.info import read_index
    from videossl.errors import VideoDecodeError

    try:
        index = read_index(path)
    except VideoDecodeError as error:
        return f"scan calls a sound video broken: {error.cause}"
    seconds = index.pts_seconds - index.info.begin_seconds
    expected = np.arange(NUM_FRAMES) * FRAME_SECONDS
    # Matroska counts in milliseconds.
    if seconds.shape != expected.shape or np.abs(seconds - expected).max() > 1e-3:
        return f"scan lists frames at {seconds.round(3).tolist()} s in place of {expected.round(3).tolist()}"
    return ""


def fault(frames: "NDArray[np.uint8]", *, shrunk: int = 1) -> str:
    """What is wrong with the frames of the file, (N, H / shrunk, W / shrunk, 3) in order, or "" for the right ones."""
    import numpy as np

    height, width = HEIGHT // shrunk, WIDTH // shrunk
    if frames.shape != (NUM_FRAMES, height, width, 3):
        return f"it gave frames {frames.shape} in place of {(NUM_FRAMES, height, width, 3)}"
    centres = [int((bit + 0.5) * width / NUM_BITS) for bit in range(NUM_BITS)]
    bits = frames[:, height // 4, centres].mean(axis=-1) > 127
    numbers = [sum(int(bit) << at for at, bit in enumerate(row)) for row in bits]
    if numbers != list(range(NUM_FRAMES)):
        return f"it gave the wrong frames: {numbers} in place of 0 to {NUM_FRAMES - 1}"
    means = frames[:, height * 5 // 8 : height * 7 // 8].mean(axis=(0, 1, 2))
    if np.abs(means - COLOUR).max() > COLOUR_TOLERANCE:
        return f"it gave wrong colours: RGB {means.round().astype(int).tolist()} in place of {list(COLOUR)}"
    return ""
