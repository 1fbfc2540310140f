"""Arrays out of a pickle without running anything that it asks for.

A pickle is a program: it names functions and has them called. Here every name that an array needs is answered by a
stand-in that only keeps what it is given, and any other name is refused, so that no code of the file's choosing runs,
not even numpy's own rebuilding of arrays.
"""

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videossl.errors import UserError

_PLAIN_DTYPE = re.compile(r"[|<>=]?(b1|[iu][1248]|f[248])")
# What the pickle machine raises on a damaged file, found by cutting and flipping bytes.
_DAMAGE = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    OverflowError,
    MemoryError,
)


def load_array_pickle(path: Path) -> dict[str, dict[str, NDArray]]:
    """The arrays of a pickled dict (or list) of dicts, by the outer key (or number) and the inner key.

    Anything that is not an array of numbers is left out. Raises UserError for a file that is missing, damaged, of another
    form, or that asks for anything but arrays and plain containers.
    """
    try:
        with path.open("rb") as file:
            found = _ArraysOnly(file).load()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except _Refused as refused:
        raise UserError(
            f"{path} asks for {refused} when read; only numpy arrays of numbers in dicts and lists are allowed: "
            "store it again in that form, or as .npz"
        ) from None
    except _DAMAGE as error:
        raise UserError(f"{path} is not a sound pickle: {error}") from None
    if isinstance(found, list):
        found = {f"{index:05d}": entry for index, entry in enumerate(found)}
    if not isinstance(found, dict) or not all(isinstance(entry, dict) for entry in found.values()):
        raise UserError(f"{path} must hold a dict of dicts of arrays, by video")
    return {str(name): _arrays_of(entry) for name, entry in found.items()}


def _arrays_of(entry: dict[Any, Any]) -> dict[str, NDArray]:
    found = {str(key): value.array for key, value in entry.items() if type(value) is _Array}
    return {key: array for key, array in found.items() if array is not None}


class _Refused(Exception):
    """The name that a pickle asked for."""


class _Dtype:
    """Keeps what a pickled dtype says of itself."""

    def __init__(self, name: object = "", *_: object) -> None:
        self.name = name
        self.is_big_endian = False

    def __setstate__(self, state: Any) -> None:
        self.is_big_endian = state[1] == ">"

    def resolve(self) -> np.dtype:
        """The dtype, if it is one of plain numbers."""
        if not isinstance(self.name, str) or not _PLAIN_DTYPE.fullmatch(self.name):
            raise _Refused(f"an array of {self.name!r}")
        dtype = np.dtype(self.name)
        return dtype.newbyteorder(">") if self.is_big_endian else dtype


class _Array:
    """Keeps what a pickled array says of itself, and then its numbers."""

    array: NDArray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, raw = state
        self.fill(raw, dtype, shape, "F" if is_fortran else "C")

    def fill(self, raw: Any, dtype: Any, shape: Any, order: Any) -> "_Array":
        """Takes the numbers from bytes."""
        if type(dtype) is not _Dtype or not isinstance(raw, bytes | bytearray):
            raise _Refused("an array of objects")
        numbers = np.frombuffer(raw, dtype.resolve())
        self.array = numbers.reshape(tuple(map(int, shape)), order=order)
        return self


def _new_array(*_: object) -> _Array:
    return _Array()


def _filled_array(raw: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    return _Array().fill(raw, dtype, shape, order)


def _latin1(text: Any, encoding: Any = "latin1") -> bytes:
    """Old protocols carry bytes as text; the only encoding they use is this one."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _Refused(f"the encoding {encoding!r}")
    return text.encode("latin1")


_STAND_INS = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _latin1,
    # numpy 2 renamed `core`.
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _new_array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _filled_array for core in ("core", "_core")},
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return _STAND_INS[module_name, global_name]
        except KeyError:
            raise _Refused(f"{module_name}.{global_name}") from None
