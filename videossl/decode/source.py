"""Where a video's bytes lie: a file, a URL that fsspec opens, or a member of a tar shard in either.

Paths travel as text: in manifests, logs and pages. A name of the file system that is not UTF-8 becomes text by
`stored_path`, and what is opened is the file of `local_path`; nothing else knows of such names.
"""

import hashlib
import io
import os
import posixpath
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes, urljoin

from videossl.errors import VideoDecodeError

_WEB = ("http", "https")


def is_url(path: str) -> bool:
    """Whether fsspec, not the operating system, opens this path; a `file://` alone is a local file."""
    return "://" in path and not path.startswith("file://")


def split_url(url: str) -> tuple[str, str, str]:
    """What stands before the path, the path, and the rest of the chain; put together they are the URL again.

    The path is that of the first link that has one: `simplecache::s3://bucket/a.mp4` has the path `bucket/a.mp4`.
    """
    links = url.split("::")
    first = next(number for number, link in enumerate(links) if "://" in link)
    protocol, path = links[first].split("://", 1)
    before = "::".join([*links[:first], protocol]) + "://"
    return before, path, "".join("::" + link for link in links[first + 1 :])


def protocol_of(url: str) -> str:
    """The protocol of the link that has the path: `s3` in `simplecache::s3://bucket/a.mp4`."""
    return split_url(url)[0].removesuffix("://").rsplit("::", 1)[-1]


def path_of(url: str) -> str:
    """The path in a URL, without the query of one on the web."""
    path = split_url(url)[1]
    return path.partition("?")[0].partition("#")[0] if protocol_of(url) in _WEB else path


def beside(url: str, path: str) -> str:
    """The URL of `path`, which is relative to the folder of `url`; another URL is left as it is."""
    if is_url(path):
        return path
    before, own, after = split_url(url)
    if protocol_of(url) in _WEB:
        chain, _, protocol = before.removesuffix("://").rpartition("::")
        joined = urljoin(f"{protocol}://{own}", path)
        return f"{chain}::{joined}{after}" if chain else joined + after
    folder = own.rpartition("/")[0]
    joined = posixpath.normpath(f"{folder}/{path}" if folder else path)
    return before + ("/" + joined.lstrip("/") if own.startswith("/") else joined) + after


WHOLE_FILE = -1  # the offset of a video that is not part of a larger file
FILE_SCHEME = "file://"
SPOOL_BYTES = 2**28  # chosen: what is larger is unpacked to the disk
_END_BYTES = 4096  # of each end that tells files apart: containers write sizes and times there
NO_RANGES = (
    "the server does not serve parts of files (HTTP range requests), which reading a video needs: download the file, "
    "or put simplecache:: before its URL, which then fetches it whole"
)


# Short endings of packed tar archives, which fsspec does not know: its name of the packing.
_TAR_ENDINGS = {".tgz": "gzip", ".tbz": "bz2", ".tbz2": "bz2", ".txz": "xz"}


@dataclass(frozen=True)
class VideoSource:
    """A local file or an fsspec URL, whole or the `num_bytes` bytes from `offset` on.

    `path` is as `stored_path` writes it, or any local path.
    """

    path: str
    offset: int = WHOLE_FILE
    num_bytes: int = 0  # of the video; read only where there is an offset

    def __str__(self) -> str:
        if self.offset == WHOLE_FILE:
            return self.path
        return f"{self.path}[{self.offset}:{self.offset + self.num_bytes}]"

    @property
    def is_local_file(self) -> bool:
        """Whether a decoder can open the path by itself."""
        return self.offset == WHOLE_FILE and not is_url(self.path)

    def size(self) -> int:
        """Bytes of the video. Raises VideoDecodeError unless it is a readable, regular file that is not empty."""
        if self.offset != WHOLE_FILE:
            return self.num_bytes
        if is_url(self.path):
            return self._remote_size()
        try:
            status = self._file.stat()
        except FileNotFoundError:
            raise self._error("no such file") from None
        except OSError as error:
            raise self._error(error.strerror or str(error)) from None
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise self._error(f"it is {kind}")
        if status.st_size == 0:
            raise self._error("the file is empty (0 bytes)")
        return status.st_size

    def ends_digest(self) -> str:
        """Tells a whole local file from another of its size, by its first and last bytes; "" for anything else.

        Raises VideoDecodeError if they cannot be read.
        """
        if not self.is_local_file:
            return ""
        try:
            with self._file.open("rb", buffering=0) as file:
                head = file.read(_END_BYTES)
                file.seek(-min(_END_BYTES, len(head)), os.SEEK_END)
                return hashlib.sha256(head + file.read(_END_BYTES)).hexdigest()[:16]
        except OSError as error:
            raise self._error(error.strerror or str(error)) from None

    def open(self) -> str | BinaryIO:
        """What a decoder takes: the absolute path of a whole local file, else a seekable file object.

        A member of a shard is read at once, by one range read. Raises VideoDecodeError if the bytes cannot be had.
        """
        if self.is_local_file:
            # An absolute path cannot be mistaken for a protocol ("a:b.mp4").
            path = str(self._file.absolute())
            return path if is_text(path) else self._opened(path)  # decoders take UTF-8
        if self.offset != WHOLE_FILE:
            return io.BytesIO(self.read())
        return self._open_remote()

    def ffmpeg_url(self) -> str:
        """How FFmpeg itself reads a member of a whole local shard, its bytes not passing through Python; else ""."""
        if self.offset == WHOLE_FILE or is_url(self.path):
            return ""
        path, end = os.path.abspath(local_path(self.path)), self.offset + self.num_bytes  # noqa: PTH100  # twice as quick
        try:
            size = os.stat(path).st_size  # noqa: PTH116
        except OSError:
            return ""  # reading it says why
        if size < end or not is_text(path):
            return ""
        return f"subfile,,start,{self.offset},end,{end},,:{path}"

    def read(self) -> bytes:
        """The video's bytes, all of them. Raises VideoDecodeError if they cannot be had."""
        try:
            if is_url(self.path):
                data = self._read_remote()
            elif self.offset == WHOLE_FILE:
                data = self._file.read_bytes()
            else:
                with self._file.open("rb", buffering=0) as file:
                    file.seek(self.offset)
                    data = file.read(self.num_bytes)
        except FileNotFoundError:
            raise self._error("no such file") from None
        except OSError as error:
            raise self._error(error.strerror or str(error)) from None
        if self.offset != WHOLE_FILE and len(data) != self.num_bytes:
            if len(data) > self.num_bytes:  # all of the shard, or what is left of it
                raise self._error(NO_RANGES)
            raise self._error(
                f"truncated: the shard holds {len(data)} of the member's {self.num_bytes} bytes"
            )
        return data

    @property
    def _file(self) -> Path:
        return Path(local_path(self.path))

    def _opened(self, path: str) -> BinaryIO:
        try:
            return Path(path).open("rb")
        except OSError as error:
            raise self._error(error.strerror or str(error)) from None

    def _read_remote(self) -> bytes:
        try:
            system, name = file_system(self.path)
            if self.offset == WHOLE_FILE:
                return system.cat_file(name)
            return system.cat_file(name, start=self.offset, end=self.offset + self.num_bytes)
        except Exception as error:  # each kind of storage raises its own
            raise self._error(remote_cause(error, self.path)) from error

    def _open_remote(self) -> BinaryIO:
        from fsspec.archive import AbstractArchiveFileSystem

        try:
            system, name = file_system(self.path)
            opened = system.open(name, "rb")
            if isinstance(system, AbstractArchiveFileSystem):
                opened = _unpacked(opened)
        except Exception as error:  # each kind of storage raises its own
            raise self._error(remote_cause(error, self.path)) from error
        if getattr(opened, "size", 0) is None:  # a stream, which only goes forward
            raise self._error(NO_RANGES)
        return _RemoteFile(self, opened, system)  # type: ignore[return-value]

    def _remote_size(self) -> int:
        try:
            system, name = file_system(self.path)
            size = system.size(name)
        except Exception as error:  # each kind of storage raises its own
            raise self._error(remote_cause(error, self.path)) from error
        if size == 0:
            raise self._error("the file is empty (0 bytes)")
        return int(size or 0)

    def _error(self, cause: str) -> VideoDecodeError:
        return VideoDecodeError(str(self), "reading", cause)


class _RemoteFile(io.RawIOBase):
    """A file of a storage whose errors are VideoDecodeErrors; the storage stays open as long as it."""

    def __init__(self, source: VideoSource, opened: BinaryIO, system: Any) -> None:
        self._source, self._opened, self._system = source, opened, system
        self._has_failed = (
            False  # said once: decoders go on asking, and print what they cannot raise
        )

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self._has_failed:
            return b""
        try:
            return self._opened.read(size)
        except Exception as error:  # each kind of storage raises its own
            raise self._failure(error) from error

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if self._has_failed:
            return self._opened.tell()
        try:
            return self._opened.seek(offset, whence)
        except Exception as error:  # each kind of storage raises its own
            raise self._failure(error) from error

    def tell(self) -> int:
        return self._opened.tell()

    def close(self) -> None:
        if not self.closed:
            self._opened.close()
        super().close()

    def _failure(self, error: Exception) -> VideoDecodeError:
        self._has_failed = True
        return self._source._error(remote_cause(error, self._source.path))


def as_source(source: "str | Path | VideoSource") -> VideoSource:
    """A path or URL as a source; a source as it is."""
    return source if isinstance(source, VideoSource) else VideoSource(str(source))


def stored_path(path: str) -> str:
    """A local path as text that can be stored and printed everywhere; `local_path` is its inverse.

    A path is itself. One with bytes that are not UTF-8 is its file URI (RFC 8089), where %XX stands for a byte:
    `file:///data/caf%E9.mp4`; it must be absolute.
    """
    return path if is_text(path) else Path(path).as_uri()


def local_path(stored: str) -> str:
    """The path that the operating system knows, of what `stored_path` gives or of any file:// URL."""
    if not stored.startswith(FILE_SCHEME):
        return stored
    literal = stored.removeprefix(FILE_SCHEME).removeprefix("localhost")
    decoded = os.fsdecode(unquote_to_bytes(os.fsencode(literal)))
    # Many tools write a path behind file:// as it is.
    return literal if not os.path.lexists(decoded) and os.path.lexists(literal) else decoded


def file_path(path: str) -> str:
    """The path alone of what a manifest stores: of a URL without protocol and archive, of a file as the system has it."""
    return path_of(path) if is_url(path) else local_path(path)


def as_text(name: str) -> str:
    r"""A name of the file system as text for people: bytes that are not UTF-8 become `\xe9`."""
    if is_text(name):
        return name
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def is_text(name: str) -> bool:
    """Whether a name of the file system is UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unpacked(member: BinaryIO) -> BinaryIO:
    """All of an archive's member: going back in a compressed one would unpack it from its beginning each time."""
    unpacked = tempfile.SpooledTemporaryFile(SPOOL_BYTES)  # noqa: SIM115 (its reader closes it)
    with member:
        shutil.copyfileobj(member, unpacked, 2**20)
    unpacked.seek(0)
    return unpacked  # type: ignore[return-value]


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, chained ones too, and the path in it. Raises whatever the storage raises."""
    import fsspec

    kind = _TAR_ENDINGS.get(posixpath.splitext(url)[1].lower()) if "::" in url else None
    return fsspec.core.url_to_fs(url, **({"tar": {"compression": kind}} if kind else {}))


def remote_cause(error: Exception, url: str) -> str:
    """Why a storage failed, in one line, and what to do where a server sends whole files only."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    cause = " ".join(str(error).split())
    if "range requests" not in cause and "Cannot seek streaming" not in cause:
        return cause or type(error).__name__
    before, archive, rest = url.partition("::")
    if archive and "simplecache" not in url:
        return f"{NO_RANGES}: {before}::simplecache::{rest}"
    return NO_RANGES
