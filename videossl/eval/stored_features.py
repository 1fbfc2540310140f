"""Features that somebody else made, as .npy files: one of a sequence, (T, D, h, w), or one a frame, (D, h, w)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from videossl.errors import UserError
from videossl.eval.frame_order import in_frame_order
from videossl.leftovers import is_system_leftover


class StoredFeatures:
    """Reads `<folder>/<sequence>.npy`, or `<folder>/<sequence>/<anything>.npy` in the order of frames (in_frame_order).

    Nothing in a file is executed: arrays of numbers alone are read. Raises UserError for a folder without any.
    """

    stride = 1  # what it was is not known, nor at which size the frames were seen
    is_per_frame = True
    input: Literal["lab", "rgb"] = "rgb"

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        self.folder, self.device = folder, torch.device(device)
        if not arrays_of(folder) and not any(map(arrays_of, folder.glob("*/"))):
            raise UserError(
                f"{folder} holds no features: <sequence>.npy (T, D, h, w) or <sequence>/<frame>.npy (D, h, w) are read"
            )

    def __call__(self, clip: Tensor) -> Tensor:
        """Never: features are made already."""
        raise TypeError("stored features answer for a sequence, not for a clip")

    def describe(self) -> dict[str, object]:
        """Plain types for JSON."""
        return {"stored": str(self.folder)}

    def of(self, name: str, num_frames: int) -> Iterator[Tensor]:
        """The features of one sequence, (D, h, w) float32 per frame.

        Raises UserError for features that are missing, of other frames, sizes or kinds.
        """
        whole = self.folder / f"{name}.npy"
        if whole.is_file():
            array = _read(whole, num_axes=4)
            found = len(array)
            frames: Iterator[NDArray[np.generic]] = iter(array)
        else:
            paths = arrays_of(self.folder / name)
            found = len(paths)
            frames = (_read(path, num_axes=3) for path in paths)
        if found != num_frames:
            raise UserError(
                f"{self.folder} has features of {found} frames of {name}, which has {num_frames}: "
                f"{name}.npy or {name}/*.npy must hold one per frame"
            )
        shape: tuple[int, ...] | None = None
        for index, frame in enumerate(frames):
            shape = shape or frame.shape
            if frame.shape != shape:
                raise UserError(f"{name}: frame {index} has features {frame.shape}, others {shape}")
            with np.errstate(over="ignore"):  # infinities are refused by who reads them
                values = np.array(frame, np.float32)
            yield torch.from_numpy(values).to(self.device)


def arrays_of(folder: Path) -> list[Path]:
    """The .npy files of a folder in the order of frames."""
    return in_frame_order(p for p in folder.glob("*.npy") if not is_system_leftover(p.name))


def _read(path: Path, *, num_axes: int) -> NDArray[np.generic]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: no array of numbers can be read ({error})") from None
    axes = {3: "(D, h, w)", 4: "(T, D, h, w)"}[num_axes]
    if array.ndim != num_axes or array.dtype.kind != "f":
        raise UserError(f"{path}: {axes} floats are needed, got {array.shape} {array.dtype}")
    return array
