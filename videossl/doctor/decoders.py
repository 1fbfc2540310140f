"""Whether each decoder gives the right frames of a video just written. Each check runs in a process of its own, since a
decoder may hang or crash.
"""

import importlib.metadata
import re
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from videossl.doctor.machine import Place, Row, reason, state_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from videossl.data.entry import VideoEntry
    from videossl.decode.index import VideoIndex
    from videossl.decode.source import VideoSource


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

    from videossl.decode.index import read_index
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


REQUIRED_CODEC = "h264"
REINSTALL = "pip install --force-reinstall av torch torchvision"
_APT = "install FFmpeg's libraries, version 4 to 9, e.g. `apt install ffmpeg`"


def pyav(place: Place) -> list[Row]:
    """PyAV, which reads by default; without torch, so that a broken one says nothing about it."""
    try:
        import av
    except ImportError as error:
        return [_not_importable("PyAV", "av", error, "pip install --upgrade av")]
    found = f"{av.__version__} with its own FFmpeg {av.ffmpeg_version_info}"
    path = _written(place)
    frames, _ = read_with_pyav(path)
    if wrong := fault(frames) or listing_fault(path):
        return [Row("PyAV", "broken", f"{found}: {wrong}", "pip install --force-reinstall av")]
    return [Row("PyAV", "ok", f"{found}; decoded {NUM_FRAMES} frames")]


def scan_and_read(place: Place) -> list[Row]:
    """The way of a video through videossl: a row of `scan`, a manifest, and frames by that row as `train` takes them."""
    from videossl.catalog.listing import FoundVideo
    from videossl.catalog.scanning import scan_video
    from videossl.data.entry import write_manifest
    from videossl.data.manifest import read_manifest

    path, manifest = _written(place), place.folder / "videos.parquet"
    scanned = scan_video(FoundVideo(str(path)))
    if not scanned.is_ok:
        return [_unread(f"scan calls a sound video broken: {scanned.reason}")]
    write_manifest([scanned], manifest)
    (entry,) = read_manifest(manifest)
    index = entry.index()
    for source, known in ((entry.source, None), (entry.source, index), (_member(entry), index)):
        for shrunk in (1, 2):
            if wrong := _fault_out_of_order(source, known, shrunk):
                return [_unread(wrong)]
    found = f"scanned a video and read its {NUM_FRAMES} frames by its row, one by one"
    return [Row("scan and read", "ok", found)]


def torchcodec(place: Place) -> list[Row]:
    """The FFmpeg that torchcodec finds, and torchcodec with it."""
    try:
        import torchcodec
        from torchcodec.decoders import VideoDecoder
    except Exception as error:  # it loads its libraries at import, in every way that can fail
        row = _not_importable("torchcodec", "torchcodec", error, "pip install --upgrade torchcodec")
        ffmpeg = _ffmpeg_row("") if "libtorchcodec" in str(error) else _unknown_ffmpeg()
        return [ffmpeg, row]
    version = importlib.metadata.version(torchcodec.__name__)
    path = _written(place)
    try:
        VideoDecoder(str(path))
    except Exception as error:
        from videossl.decode.torchcodec_reader import short_load_error

        text = short_load_error(error)
        mend = _APT if "FFmpeg" in text else "pip install torchcodec of the version for this torch"
        is_ffmpeg = "FFmpeg" in text
        ffmpeg = _ffmpeg_row("") if is_ffmpeg else _unknown_ffmpeg()
        return [ffmpeg, Row("torchcodec", "missing", f"{version}: {text}", mend)]
    rows = [_ffmpeg_row(_loaded_library("libavcodec"))]
    return [*rows, _by_reader("torchcodec", version, path, "cpu")]


def decord(place: Place) -> list[Row]:
    """decord, for comparisons only."""
    try:
        import decord
    except Exception as error:  # it loads its library at import
        mend = "only for comparisons: pip install decord (Linux on x86-64, Windows)"
        return [_not_importable("decord", "decord", error, mend)]
    return [_by_reader("decord", decord.__version__, _written(place), "cpu")]


def nvdec(place: Place) -> list[Row]:
    """The video decoder of each GPU; one row where there is none to try."""
    import torch

    from videossl.decode.backends import available_backends

    if not torch.cuda.is_available():
        return [Row("NVDEC", "missing", "no GPU that torch can use", "none: the processor decodes")]
    if why := available_backends()["torchcodec"]:
        return [Row("NVDEC", "missing", f"it needs torchcodec: {why}", _APT)]
    version = f"through torchcodec {importlib.metadata.version('torchcodec')}"
    path = _written(place)
    count = torch.cuda.device_count()
    return [
        _by_reader(f"NVDEC {index}" if count > 1 else "NVDEC", version, path, f"cuda:{index}")
        for index in range(count)
    ]


def codec(place: Place, name: str) -> list[Row]:
    """One codec through PyAV: written by the first encoder that works, decoded, compared."""
    import av

    what = f"codec {name}"
    path = place.folder / f"{name}{'.webm' if name == 'vp9' else '.mp4'}"
    encoder = write_with_any(path, name)
    if not encoder:
        tried = ", ".join(ENCODERS[name])
        try:
            decoder = av.Codec(name, "r").name
        except (av.FFmpegError, ValueError):
            return [Row(what, "missing", "this PyAV cannot decode it", "pip install --upgrade av")]
        found = f"decoder {decoder}, not tried: no encoder to write a sample ({tried})"
        return [Row(what, "warning", found, "pip install --upgrade av")]
    frames, decoder = read_with_pyav(path)
    if wrong := fault(frames) or listing_fault(path):
        return [Row(what, "broken", f"{decoder}: {wrong}", "pip install --force-reinstall av")]
    return [Row(what, "ok", f"decodes ({decoder}), written by {encoder}")]


def _written(place: Place) -> Path:
    """The tiny video, in H.264 if that can be had."""
    path = place.folder / "tiny.mp4"
    if not (write_with_any(path, "h264") or write_with_any(path, "mpeg4")):
        raise RuntimeError("PyAV can write neither H.264 nor MPEG-4: there is no video to try")
    return path


def _member(entry: "VideoEntry") -> "VideoSource":
    """The same video as a part of a larger file, as packed ones are."""
    from videossl.decode.source import VideoSource

    shard, before = Path(entry.path).with_suffix(".shard"), bytes(512)
    shard.write_bytes(before + entry.source.read() + before)
    return VideoSource(str(shard), len(before), entry.bytes)


def _fault_out_of_order(source: "VideoSource", index: "VideoIndex | None", shrunk: int) -> str:
    """What is wrong with frames read one by one, each before the one it follows, so that the reader must seek."""
    import torch

    from videossl.decode.backends import open_video

    with open_video(source, short_side=HEIGHT // shrunk, index=index) as reader:
        singles = [reader.frames_at([number]).data for number in reversed(range(NUM_FRAMES))]
        together = reader.frames_at(range(NUM_FRAMES)).data
    one_by_one = fault(_pixels(torch.cat(singles[::-1])), shrunk=shrunk)
    return one_by_one or fault(_pixels(together), shrunk=shrunk)


def _pixels(frames: "Tensor") -> "NDArray[np.uint8]":
    """(N, 3, H, W) of any device as (N, H, W, 3)."""
    return frames.cpu().permute(0, 2, 3, 1).numpy()


def _unread(found: str) -> Row:
    return Row("scan and read", "broken", found, REINSTALL)


def _by_reader(name: str, version: str, path: Path, device: str) -> Row:
    """Decodes as training does."""
    from videossl.decode.torchcodec_reader import TorchcodecReader

    mend = "none needed: PyAV reads instead"
    try:
        if name == "decord":
            from videossl.decode.decord_reader import DecordReader

            with DecordReader(path) as reader:
                batch = reader.frames_at(range(NUM_FRAMES))
        else:
            with TorchcodecReader(path, device=device) as reader:
                batch = reader.frames_at(range(NUM_FRAMES))
    except Exception as error:
        return Row(name, "broken", f"{version}: {reason(error)}", mend)
    if wrong := fault(_pixels(batch.data)):
        return Row(name, "broken", f"{version}: {wrong}", mend)
    return Row(name, "ok", f"{version}; decoded {NUM_FRAMES} frames")


def _not_importable(what: str, module: str, error: Exception, mend: str) -> Row:
    state = state_of(error, module)
    return Row(what, state, "not installed" if state == "missing" else reason(error), mend)


def _ffmpeg_row(path: str) -> Row:
    what = "FFmpeg libraries"
    if not path:
        return Row(what, "missing", "torchcodec finds none (PyAV brings its own)", _APT)
    # FFmpeg 4 has libavcodec.so.58, and each version since then one more.
    number = re.search(r"\.so\.(\d+)|avcodec[.-](\d+)", Path(path).name)
    major = f"version {int(number[1] or number[2]) - 54}, " if number else ""
    return Row(what, "ok", f"{major}{path}")


def _unknown_ffmpeg() -> Row:
    found = "not looked for: torchcodec itself does not load"
    return Row("FFmpeg libraries", "missing", found, "mend torchcodec first")


def _loaded_library(name: str) -> str:
    """The path of a library that this process has loaded, not PyAV's or decord's own; "loaded" where none can be told."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return "loaded"
    paths = {line.split(maxsplit=5)[5] for line in lines if name in line}
    others = sorted(path for path in paths if not re.search(r"/(av|decord)\.libs/", path))
    return others[0] if others else "loaded"
