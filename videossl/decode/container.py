"""Opens a video with PyAV within limits: no file may take the machine down by what its header announces."""

import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import av
import av.logging
from av.stream import Disposition

from videossl.decode.source import VideoSource
from videossl.errors import VideoDecodeError

# Generous for honest files, and all far below what hurts. 8K film has 33 million pixels.
MAX_PIXELS = 2**26
MAX_FRAMES = 10_000_000  # 92 hours at 30 frames a second
MAX_FRAME_SECONDS = 60.0  # mean time that a frame is shown: a slide show, not a video
# Headers that count a frame or two too many are common; a tenth more than there is means that much is missing.
MAX_OVERCOUNT_SHARE = 0.1
MAX_OVERCOUNT = 16
# Phone files carry metadata that is not UTF-8, for which PyAV before version 19 refuses a file unless told otherwise.
# Later versions keep such bytes as surrogates and know the argument no more.
AS_ANY_METADATA = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
_PICTURE_SIZE = re.compile(r"Picture size ([1-9]\d*x[1-9]\d*)")


def open_container(
    source: VideoSource, *, known_format: str | None = None
) -> "av.container.InputContainer":
    """Opens a video for reading, its decoders of one thread and held to MAX_PIXELS; the caller closes it.

    With `known_format`, FFmpeg's name of the container, the header has to do: no bytes are read to tell the format, and no
    frames decoded to guess rates, which takes half of the opening.

    Raises VideoDecodeError if its bytes cannot be had, PyAV's errors if they are no video.
    """
    options = {"analyzeduration": "0", "fpsprobesize": "0"} if known_format else {}
    place = source.ffmpeg_url() or source.open()
    container = av.open(place, format=known_format, options=options, **AS_ANY_METADATA)
    for stream in container.streams.video:
        if stream.codec_context is None:  # `video_stream` refuses it
            continue
        # Threads over frames delay the output and need more memory; videos are read in parallel instead.
        stream.thread_type = "NONE"
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    return container


@contextmanager
def as_decode_error(source: VideoSource, backend: str) -> Iterator[None]:
    """Turns PyAV's own exceptions into VideoDecodeError."""
    try:
        yield
    except av.InvalidDataError as error:
        cause = "invalid data (not a video, damaged or truncated)"
        raise VideoDecodeError(str(source), backend, cause) from error
    except av.FFmpegError as error:
        raise VideoDecodeError(str(source), backend, error.strerror or str(error)) from error
    except (IndexError, UnicodeError, MemoryError, EOFError, OSError) as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise VideoDecodeError(str(source), backend, cause) from error


def video_stream(container: "av.container.InputContainer", source: VideoSource) -> "av.VideoStream":
    """The best video stream (FFmpeg's choice, as in every backend), its announced size within MAX_PIXELS.

    Raises VideoDecodeError for a file without one.
    """
    fail = functools.partial(VideoDecodeError, str(source), "pyav")
    if not container.streams:
        raise fail("it holds no stream at all (damaged or truncated)")
    stream = container.streams.best("video")
    if stream is None or stream.disposition & Disposition.attached_pic:  # a song with a cover
        kinds = sorted({stream.type for stream in container.streams} - {"video"})
        raise fail(f"no video stream (it holds {', '.join(kinds) or 'a still picture'})")
    # A picture named .mp4 would be a video of one frame.
    if container.format.name.endswith("_pipe") or container.format.name == "image2":
        raise fail("it is a still picture, not a video")
    if stream.codec_context is None:
        raise fail("FFmpeg has no decoder for its video stream (damaged, or of an unknown codec)")
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > MAX_PIXELS:
        raise fail(f"its header announces {width}x{height} pixels, the limit is {MAX_PIXELS}")
    return stream


@contextmanager
def logged_errors() -> Iterator[list[tuple[int, str, str]]]:
    """What FFmpeg logs as errors from here on, as (level, name, text)."""
    level, skips_repeated = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    # Else an error goes unsaid where the one before it, of another file perhaps, had the same words.
    av.logging.set_skip_repeated(False)
    try:
        with av.logging.Capture() as said:
            yield said
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skips_repeated)


def refused_size(source: VideoSource) -> str:
    """The picture size ("65535x65535") for which FFmpeg refuses a video, or an empty string.

    Its exceptions say "Invalid argument" then: the size is in its log alone, so the file is opened once more.
    """
    with (
        logged_errors() as said,
        suppress(av.FFmpegError, VideoDecodeError, IndexError, UnicodeError, MemoryError),
        open_container(source) as container,
    ):
        next(container.demux(video_stream(container, source))).decode()
    sizes = [match for _, _, text in said if (match := _PICTURE_SIZE.search(text))]
    return sizes[0][1] if sizes else ""


def check_not_truncated(stream: "av.VideoStream", source: VideoSource, num_bytes: int) -> None:
    """Raises VideoDecodeError for an mp4 whose index points beyond its end. Other indexes store no byte ranges."""
    if "mp4" not in stream.container.format.name:
        return
    needed = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    if needed > num_bytes:
        cause = f"truncated: its index needs {needed} bytes and the file has {num_bytes}"
        raise VideoDecodeError(str(source), "pyav", cause)


def check_counts(source: VideoSource, *, announced: int, num_held: int) -> None:
    """Raises VideoDecodeError for a header that announces far more frames than there are."""
    if announced - num_held > max(MAX_OVERCOUNT, MAX_OVERCOUNT_SHARE * num_held):
        cause = (
            f"its header announces {announced} frames, it holds {num_held} (damaged or truncated)"
        )
        raise VideoDecodeError(str(source), "pyav", cause)


def check_no_slide_show(source: VideoSource, *, num_frames: int, seconds: float) -> None:
    """Raises VideoDecodeError where frames are shown for longer than MAX_FRAME_SECONDS on average."""
    if seconds / num_frames > MAX_FRAME_SECONDS:
        cause = (
            f"its {num_frames} frame(s) are shown for {seconds / num_frames:.0f} s each, "
            f"the limit is {MAX_FRAME_SECONDS:.0f} s"
        )
        raise VideoDecodeError(str(source), "pyav", cause)
