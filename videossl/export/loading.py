"""`videossl.load_encoder`: from a run, one of its files, an exported file or a URL to a module that takes videos."""

import hashlib
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import fsspec

from videossl.decode.source import path_of
from videossl.engine.checkpoint import encoder_of_state, load_newest_or_named
from videossl.errors import UserError
from videossl.export.programs import ProgramEncoder, is_program, load_program
from videossl.export.video_encoder import ClipForm, VideoEncoder, read_encoder_file
from videossl.io.output_files import whole_file
from videossl.io.progress import track
from videossl.models.encoder_file import SUFFIX, is_encoder_file, read_record
from videossl.models.encoder_sources import find_checkpoint, shipped_or_given

log = logging.getLogger("videossl")

MIB = 2**20


def is_url(source: str | Path) -> bool:
    """Whether `source` is fetched rather than opened."""
    return "://" in str(source)


def public_url(text: str) -> str:
    """Without what a URL in it may hold of secrets: user and password, query, fragment; other text as it is."""
    if not is_url(text):
        return text
    return re.sub(r"[?#].*", "", re.sub(r"(://)[^/?#]*@", r"\1", text), flags=re.DOTALL)


def cache_folder() -> Path:
    """$VIDEOSSL_CACHE, else ~/.cache/videossl."""
    return Path(os.environ.get("VIDEOSSL_CACHE") or Path.home() / ".cache" / "videossl")


def fetched(url: str, *, sha256: str | None = None) -> Path:
    """The file behind `url`, from the cache if it was fetched before; with `sha256` (hex) only if that is its digest.

    A cached file of another digest is fetched again; without `sha256` it is taken as it is, also offline: delete it to fetch
    anew. Raises UserError if the file cannot be fetched whole or is not the one asked for; nothing is then kept.
    """
    # Named by a digest: nothing of a remote name gets into a path but one of two endings.
    ending = SUFFIX if PurePosixPath(path_of(url)).suffix == SUFFIX else ".pt"
    path = cache_folder() / "encoders" / (hashlib.sha256(url.encode()).hexdigest()[:32] + ending)
    if path.exists() and (sha256 is None or file_sha256(path) == sha256.lower()):
        log.info("%s: from the cache, %s", url, path)
        return path
    with whole_file(path) as partial:
        _fetch(url, partial)
        check_sha256(partial, sha256, name=url)
    return path


def check_sha256(path: Path, sha256: str | None, *, name: str) -> None:
    """Raises UserError unless `sha256` is None or the file's digest; `name` is what the file is called in it."""
    if sha256 is None:
        return
    try:
        found = file_sha256(path)
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}") from error
    if found != sha256.lower():
        raise UserError(
            f"{name} is not the file asked for: its SHA-256 is {found}, expected {sha256.lower()}"
        )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(url: str, partial: Path) -> None:
    try:
        system, name = fsspec.core.url_to_fs(url)
        size = system.info(name).get("size")
        source = system.open(name, "rb")
    # Each protocol's library has its own exceptions, of no common class: all mean that the file cannot be had.
    except Exception as error:
        raise UserError(_cannot(url, error)) from error
    total = None if size is None else math.ceil(size / MIB)
    with source, partial.open("wb") as file:
        for block in track(_mebibytes(url, source), description="fetched, MiB", total=total):
            file.write(block)
        written = file.tell()
    if size is not None and written != size:
        raise UserError(
            f"{url} was cut: {written} of {size} bytes came; nothing is kept, try again"
        )


def _mebibytes(url: str, source: BinaryIO) -> Iterator[bytes]:
    """The bytes in blocks of one MiB, the last one shorter: streams give less than they are asked for."""
    while True:
        block = bytearray()
        while len(block) < MIB:
            try:
                part = source.read(MIB - len(block))
            except Exception as error:  # as in _fetch
                raise UserError(_cannot(url, error)) from error
            if not part:
                break
            block += part
        if not block:
            return
        yield bytes(block)


def _cannot(url: str, error: Exception) -> str:
    cause = "no such file" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())
    hint = "; pip install 'fsspec[http]'" if isinstance(error, ImportError) else ""
    return f"{url} cannot be fetched ({type(error).__name__}: {cause[:200]}){hint}"


@dataclass(frozen=True)
class Loaded:
    """An encoder, the file that it came from, and what else that says: a checkpoint's state or an encoder file's record."""

    encoder: VideoEncoder
    path: Path
    contents: Mapping[str, Any]


def load_encoder(
    source: str | Path,
    *,
    stage: str | None = None,
    untrained_seed: int | None = None,
    sha256: str | None = None,
    is_trusted: bool = False,
) -> VideoEncoder | ProgramEncoder:
    """An encoder with its preprocessing inside, in evaluation mode, on the CPU.

    `source` is a run's folder, a checkpoint file, an exported .safetensors file, the URL of either (fetched once, see
    `videossl.export.loading`) or "track-small", which comes with the package. `stage` names the stage whose mean is the
    feature (None: the deepest, or the exported one). With `untrained_seed` the same architecture has fresh weights of that
    seed. `sha256` is what the file's digest must be, which is seen before anything in the file is read.

    A .onnx file of `videossl export` is run by onnxruntime behind the same interface, and so is a .pt2 file if it
    `is_trusted`: reading one can run code of who made it.

    Raises UserError if there is no such file or it is damaged, foreign or another one.
    """
    if is_program(source):
        if stage is not None or untrained_seed is not None:
            raise UserError(f"{source} is a program: its stage and its weights are what they are")
        path = fetched(str(source), sha256=sha256) if is_url(source) else Path(source)
        if sha256 is not None:
            check_sha256(path, sha256, name=str(source))
        return load_program(path, is_trusted=is_trusted)
    return load(source, stage=stage, untrained_seed=untrained_seed, sha256=sha256).encoder


def load(
    source: str | Path,
    *,
    stage: str | None = None,
    untrained_seed: int | None = None,
    sha256: str | None = None,
) -> Loaded:
    """As `load_encoder`, with the file and what it says; no program, whose layers cannot be reached."""
    if is_program(source):
        raise UserError(
            f"{source} is a program, which `videossl.load_encoder` runs: give the run, a checkpoint or a .safetensors file"
        )
    path = fetched(str(source), sha256=sha256) if is_url(source) else shipped_or_given(source)
    if sha256 is not None:  # before anything in the file is read
        path = find_checkpoint(path)
        check_sha256(path, sha256, name=str(path if Path(source).is_dir() else source))
    if is_encoder_file(path) and not path.is_dir():
        encoder = read_encoder_file(path, stage=stage, untrained_seed=untrained_seed)
        return Loaded(encoder, path, read_record(path))
    found, state = load_newest_or_named(path)
    bare = encoder_of_state(found, state, untrained_seed=untrained_seed)
    stride = bare.stages[next(reversed(bare.stages))].spatial_stride
    try:
        clip = ClipForm.of_config(state.get("config") or {}, stride)
    except UserError as error:
        raise UserError(f"checkpoint {found}: {error}") from error
    return Loaded(VideoEncoder(bare, clip, stage=stage).eval(), found, state)
