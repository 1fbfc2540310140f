"""Frames of a decoder as RGB, through FFmpeg's filters: as torchcodec and FFmpeg's own tool convert and scale them.

`VideoFrame.reformat` takes another way through swscale: up to 112 of 255 away on 10-bit and odd-sized files.
"""

import functools
import itertools
import threading
from collections.abc import Sequence

import av

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
