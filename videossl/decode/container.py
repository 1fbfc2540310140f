"""Opens a video with PyAV within limits, since its header may announce anything, and turns its frames into RGB."""

import functools
import itertools
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import av
import av.logging
import numpy as np
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
# FFmpeg goes by content: a list of files named .mp4 (concat, hls, dash, sdp, image2, mlv, ...) would open what it names.
# These read nothing but the file itself: what our endings of videos stand for, and sound and stills, to say what they are.
_FORMATS = (
    "mov,matroska,avi,ogg,flv,live_flv,kux,asf,asf_o,wtv,rm,ivr,mpeg,mpegts,mpegvideo,m4v,pva,ty,"
    "mxf,gxf,dv,dhav,nut,nuv,nsv,ivf,yuv4mpegpipe,h261,h263,h264,hevc,vvc,evc,obu,av1,vc1,"
    "vc1test,mjpeg,mjpeg_2000,mpjpeg,smjpeg,cavsvideo,avs2,avs3,dirac,dnxhd,gif,gif_pipe,apng,flic,"
    "bink,smk,roq,vivo,film_cpk,4xm,ea,idcin,ipmovie,wsvqa,rl2,anm,cine,filmstrip,ifv,lmlm4,lxf,"
    "mtv,nc,r3d,rpl,thp,vmd,wc3movie,xmv,yop,webp_pipe,png_pipe,jpeg_pipe,jpegls_pipe,jpegxl_pipe,"
    "jpegxl_anim,j2k_pipe,bmp_pipe,tiff_pipe,dpx_pipe,exr_pipe,hdr_pipe,pam_pipe,pbm_pipe,pgm_pipe,"
    "ppm_pipe,pcx_pipe,psd_pipe,qoi_pipe,sgi_pipe,sunrast_pipe,svg_pipe,xbm_pipe,xpm_pipe,xwd_pipe,ico,"
    "aac,ac3,aiff,amr,ape,au,caf,dsf,dts,eac3,flac,mp3,mpc,tta,w64,wav,wv,srt,ass,webvtt"
)
# Streams without a container state no times: only looking at their pictures tells how long these are shown.
_BARE = frozenset(
    (
        *("h261", "h263", "h264", "hevc", "vvc", "evc", "obu", "m4v", "mpegvideo", "vc1"),
        *("cavsvideo", "avs2", "avs3", "dirac", "dnxhd", "mjpeg", "jpeg_pipe"),
    )
)
# What `_pipe` formats read as a single picture may be a bare stream of them; two are a picture and its preview.
MIN_PICTURES = 3
_PICTURE_SIZE = re.compile(r"Picture size ([1-9]\d*x[1-9]\d*)")


STILL = "it is a still picture, not a video"


def open_container(
    source: VideoSource, *, known_format: str | None = None
) -> "av.container.InputContainer":
    """Opens a video for reading, its decoders of one thread and held to MAX_PIXELS; the caller closes it.

    With `known_format`, FFmpeg's name of the container, the header has to do: no bytes are read to tell the format, and no
    frames decoded to guess rates, which takes half of the opening.

    Raises VideoDecodeError if its bytes cannot be had, PyAV's errors if they are no video.
    """
    options = {"format_whitelist": _FORMATS}
    if known_format and known_format not in _BARE:
        options |= {"analyzeduration": "0", "fpsprobesize": "0"}
    place = source.ffmpeg_url() or source.open()
    try:
        container = av.open(place, format=known_format, options=options, **AS_ANY_METADATA)
    except av.ArgumentError as error:
        if not _is_unlisted(source, known_format):
            raise
        cause = "it is no video but a list of others, or in a format that is not read"
        raise VideoDecodeError(str(source), "pyav", cause) from error
    for stream in container.streams.video:
        if stream.codec_context is None:  # `video_stream` refuses it
            continue
        # Threads over frames delay the output and need more memory; videos are read in parallel instead.
        stream.thread_type = "NONE"
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    return container


def check_format(source: VideoSource) -> list[tuple[int, int]]:
    """The (height, width) as stored of every video stream, pictures that are attached left out.

    Raises VideoDecodeError for a file that other decoders must not open: they would open what it names.
    """
    with as_decode_error(source, "pyav"), open_container(source) as container:
        return [
            (stream.codec_context.height, stream.codec_context.width)
            for stream in container.streams.video
            if stream.codec_context and not stream.disposition & Disposition.attached_pic
        ]


def _is_unlisted(source: VideoSource, known_format: str | None) -> bool:
    """Whether a format is refused: FFmpeg says so in its log alone, so the file is opened once more."""
    options = {"format_whitelist": _FORMATS}
    with logged_errors() as said, suppress(av.FFmpegError):
        place = source.ffmpeg_url() or source.open()
        av.open(place, format=known_format, options=options, **AS_ANY_METADATA).close()
    return any("not on whitelist" in text for _, _, text in said)


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
    if container.format.name == "image2":
        raise fail(STILL)
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


# Packed clips come in a handful of sizes, and to make a graph takes as long as to open one of them.
NUM_KEPT = 8


def to_rgb(frame: "av.VideoFrame", size: tuple[int, int] | None = None) -> "av.VideoFrame":
    """The frame in planes of green, blue and red, scaled to (height, width) `size`; or, without one, in pixels of RGB.

    The scaler is quicker into planes, the plain conversion into pixels. Raises PyAV's errors.
    """
    shape = (frame.width, frame.height, frame.format.name)
    color = (int(frame.colorspace), int(frame.color_range))
    graph = _graph(threading.get_ident(), shape, color, size)
    try:
        graph.push(frame)
        return graph.pull()
    except av.FFmpegError:
        _graph.cache_clear()  # what it holds may be of this frame
        raise


@functools.lru_cache(maxsize=NUM_KEPT)
def _graph(
    thread: int, shape: tuple[int, int, str], color: tuple[int, int], size: tuple[int, int] | None
) -> "av.filter.Graph":
    """One for all frames of a kind, of all files: a graph remembers nothing from one frame to the next.

    The colours are no argument of it, since frames say them; but a change amid its life is no thing that filters promise to
    obey.
    """
    width, height, pixel_format = shape
    source = f"video_size={width}x{height}:pix_fmt={pixel_format}:time_base=1/1000"
    if size is None:
        # Not planes: swscale leaves the last columns of some widths unwritten (FFmpeg 8.1: 390, 408, 200).
        return filter_graph(source, ["format=rgb24"])
    # Scaling before the conversion is 3 times quicker than after it, and 1 of 255 away on average.
    return filter_graph(source, [f"scale={size[1]}:{size[0]}:flags=bilinear", "format=gbrp"])


def plane_rows(plane: "av.video.plane.VideoPlane") -> np.ndarray:
    """(H, bytes) uint8 view of a plane from the top, with the padding of its rows; some are stored bottom up."""
    rows = np.frombuffer(plane, np.uint8).reshape(-1, abs(plane.line_size))
    return rows if plane.line_size > 0 else rows[::-1]


def filter_graph(source: str, filters: Sequence[str]) -> "av.filter.Graph":
    """A graph of one thread: frames as the arguments `source` of FFmpeg's buffer say, through filters like "scale=64:48"."""
    graph = av.filter.Graph()
    if hasattr(graph, "threads"):
        graph.threads = 1  # more only wait for each other on frames this small
    nodes = [graph.add("buffer", source)]
    for text in filters:
        name, _, arguments = text.partition("=")
        nodes.append(graph.add(name, arguments or None))
    nodes.append(graph.add("buffersink"))
    for one, other in itertools.pairwise(nodes):
        one.link_to(other)
    graph.configure()
    return graph
