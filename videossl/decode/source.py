"""Where a video's bytes lie: a file, a URL that fsspec opens, or a member of a tar shard in either."""

import io
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from videossl.errors import VideoDecodeError

WHOLE_FILE = -1  # the offset of a video that is not part of a larger file


@dataclass(frozen=True)
class VideoSource:
    """A local file or an fsspec URL, whole or the `num_bytes` bytes from `offset` on."""

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
            status = Path(self.path).stat()
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

    def open(self) -> str | BinaryIO:
        """What a decoder takes: the absolute path of a whole local file, else a seekable file object.

        A member of a shard is read at once, by one range read. Raises VideoDecodeError if the bytes cannot be had.
        """
        if self.is_local_file:
            # An absolute path cannot be mistaken for a protocol ("a:b.mp4").
            return str(Path(self.path).absolute())
        if self.offset != WHOLE_FILE:
            return io.BytesIO(self.read())
        return self._open_remote()

    def read(self) -> bytes:
        """The video's bytes, all of them. Raises VideoDecodeError if they cannot be had."""
        try:
            if is_url(self.path):
                data = self._read_remote()
            elif self.offset == WHOLE_FILE:
                data = Path(self.path).read_bytes()
            else:
                with Path(self.path).open("rb", buffering=0) as file:
                    file.seek(self.offset)
                    data = file.read(self.num_bytes)
        except FileNotFoundError:
            raise self._error("no such file") from None
        except OSError as error:
            raise self._error(error.strerror or str(error)) from None
        if self.offset != WHOLE_FILE and len(data) != self.num_bytes:
            raise self._error(
                f"truncated: the shard holds {len(data)} of the member's {self.num_bytes} bytes"
            )
        return data

    def _read_remote(self) -> bytes:
        import fsspec

        system, name = fsspec.core.url_to_fs(self.path)
        if self.offset == WHOLE_FILE:
            return system.cat_file(name)
        return system.cat_file(name, start=self.offset, end=self.offset + self.num_bytes)

    def _open_remote(self) -> BinaryIO:
        import fsspec

        try:
            return fsspec.open(self.path, "rb").open()
        except (OSError, ImportError, ValueError) as error:
            raise self._error(_remote_cause(error)) from error

    def _remote_size(self) -> int:
        import fsspec

        try:
            system, name = fsspec.core.url_to_fs(self.path)
            size = system.size(name)
        except (OSError, ImportError, ValueError) as error:
            raise self._error(_remote_cause(error)) from error
        if size == 0:
            raise self._error("the file is empty (0 bytes)")
        return int(size or 0)

    def _error(self, cause: str) -> VideoDecodeError:
        return VideoDecodeError(str(self), "reading", cause)


def as_source(source: "str | Path | VideoSource") -> VideoSource:
    """A path or URL as a source; a source as it is."""
    return source if isinstance(source, VideoSource) else VideoSource(str(source))


def is_url(path: str) -> bool:
    """Whether fsspec, not the operating system, opens this path."""
    return "://" in path


def _remote_cause(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return " ".join(str(error).split()) or type(error).__name__
