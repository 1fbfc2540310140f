"""The signatures of videos and footage, on disk beside the manifest: each is read once, also by a scan that is cut off."""

import base64
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from videossl.data.signature import NUM_VALUES, FrameSignatures
from videossl.errors import UserError

FORMAT = 2  # to be raised with whatever changes the signature of a file
_HEADER = json.dumps({"videossl_signatures": FORMAT}).encode() + b"\n"


@dataclass(frozen=True)
class FileKey:
    """A file or folder, and what must not have changed for its signatures to be true."""

    path: str
    bytes: int
    modified: int  # nanoseconds since 1970; 0 where unknown
    with_crops: bool = False  # footage has the signatures of its crops too


class SignatureFile:
    """Signatures by file, appended; a hidden file beside the manifest at `manifest`.

    They stay on disk; a million keys take a few hundred MB here. Raises UserError if it cannot be written.
    """

    def __init__(self, manifest: str | Path, *, fresh: bool = False) -> None:
        """`fresh` forgets all earlier ones."""
        manifest = Path(manifest)
        self.path = manifest.with_name(f".{manifest.name}.signatures")
        self._at: dict[FileKey, int] = {}
        try:
            manifest.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("w+b" if fresh else "a+b")
            self._load()
        except OSError as error:
            raise self._unwritable(error) from None

    def __contains__(self, key: FileKey) -> bool:
        return key in self._at

    def __getitem__(self, key: FileKey) -> FrameSignatures:
        self._file.seek(self._at[key])
        row = json.loads(self._file.readline())
        seconds = np.frombuffer(base64.b64decode(row["seconds"]), np.dtype("<f8"))
        values = np.frombuffer(base64.b64decode(row["values"]), np.int8).reshape(-1, NUM_VALUES)
        return FrameSignatures(row["num_frames"], seconds, values)

    def append(self, key: FileKey, frames: FrameSignatures) -> None:
        """Adds those of one file and hands them to the system. Raises UserError where the disk is full."""
        row = {
            "path": key.path,
            "bytes": key.bytes,
            "modified": key.modified,
            "with_crops": key.with_crops,
            "num_frames": frames.num_frames,
            "seconds": base64.b64encode(frames.seconds.astype("<f8").tobytes()).decode(),
            "values": base64.b64encode(frames.values.tobytes()).decode(),
        }
        try:
            self._file.seek(0, os.SEEK_END)
            at = self._file.tell()
            self._file.write(json.dumps(row).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise self._unwritable(error) from None
        self._at[key] = at

    def close(self) -> None:
        """Keeps them for the next scan."""
        self._file.close()

    def _load(self) -> None:
        self._file.seek(0)
        if self._file.readline() != _HEADER:  # new, or of another version
            self._file.truncate(0)
            self._file.write(_HEADER)
            self._file.flush()
            return
        at = len(_HEADER)
        for line in iter(self._file.readline, b""):
            if not line.endswith(b"\n"):
                break  # torn when the last scan was cut off
            row = json.loads(line)
            key = FileKey(row["path"], row["bytes"], row["modified"], row["with_crops"])
            self._at[key] = at
            at += len(line)
        self._file.truncate(at)

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"cannot write {self.path}: {error.strerror or error}")
