"""Files behind URLs (https://, s3://, whatever fsspec opens), fetched once into a cache folder."""

import hashlib
import logging
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import fsspec

from videossl.decode.urls import path_of
from videossl.errors import UserError
from videossl.models.encoder_file import SUFFIX
from videossl.progress import track
from videossl.whole_file import whole_file

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
