"""Whether each decoder gives the right frames of a video just written. Each check runs in a process of its own, since a
decoder may hang or crash.
"""

import importlib.metadata
import re
from pathlib import Path
from typing import TYPE_CHECKING

from videossl.doctor.rows import Place, Row, reason
from videossl.doctor.software import state_of
from videossl.doctor.tiny_video import (
    ENCODERS,
    HEIGHT,
    NUM_FRAMES,
    fault,
    listing_fault,
    read_with_pyav,
    write_with_any,
)

if TYPE_CHECKING:  # where one is missing, that too must be said
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from videossl.data.manifest import VideoEntry
    from videossl.decode.info import VideoIndex
    from videossl.decode.source import VideoSource

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
    from videossl.data.listing import FoundVideo
    from videossl.data.manifest import write_manifest
    from videossl.data.scan import scan_video
    from videossl.data.table import read_manifest

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
