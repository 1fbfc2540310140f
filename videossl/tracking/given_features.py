"""Other people's encoders in the same protocol: a function of frames by name, or a folder of features."""

import importlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from videossl.errors import UserError
from videossl.tracking.features import Extractor, StoredFeatures

_TRIED_PIXELS = 224  # side of the empty frames on which the stride is measured


def load_features(spec: str, device: torch.device | str = "cpu") -> Callable[[], Extractor]:
    """A maker of extractors from `module:function` or a folder of .npy files (see StoredFeatures).

    The function is called with frames (T, 3, H, W), uint8 RGB on the device, and answers (T, D, h, w); a callable class is
    made first, without arguments. It sees windows of frames as a 3D encoder does; with the attribute `is_per_frame = True`
    batches without overlap. Modules beside the working folder are found. Raises UserError for what is not there or answers
    something else.
    """
    if Path(spec).is_dir():
        StoredFeatures(Path(spec), device)
        return partial(StoredFeatures, Path(spec), device)
    if ":" not in spec:
        raise UserError(f"--features {spec}: no such folder, and not module:function")
    FunctionFeatures(spec, device)
    return partial(FunctionFeatures, spec, device)


class FunctionFeatures:
    """An extractor that calls a function found by name; its stride is measured on frames of zeros."""

    input: Literal["lab", "rgb"] = "rgb"

    def __init__(self, spec: str, device: torch.device | str = "cpu") -> None:
        self.spec, self.device = spec, torch.device(device)
        self._function = _find(spec)
        self.is_per_frame = bool(getattr(self._function, "is_per_frame", False))
        side = _TRIED_PIXELS
        answer = self(torch.zeros(3, 2, side, side, dtype=torch.uint8, device=self.device))
        self.channels, height = answer.shape[1], answer.shape[2]
        if side % height or answer.shape[2] != answer.shape[3]:
            raise UserError(
                f"--features {spec}: {side}x{side} pixels give {height}x{answer.shape[3]} cells, which is no whole stride"
            )
        self.stride = side // height

    @torch.no_grad()
    def __call__(self, clip: Tensor) -> Tensor:
        """See Extractor; the clip is (3, T, H, W) uint8 RGB."""
        try:
            answer = self._function(clip.transpose(0, 1).contiguous())
        except Exception as error:  # somebody else's code may raise anything
            raise _foreign_error(self.spec, f"failed on {clip.shape[1]} frames", error) from None
        if not isinstance(answer, Tensor) or answer.ndim != 4 or len(answer) != clip.shape[1]:
            got = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise UserError(
                f"--features {self.spec}: {clip.shape[1]} frames must give features ({clip.shape[1]}, D, h, w), got {got}"
            )
        return answer.detach().float().to(self.device)

    def describe(self) -> dict[str, object]:
        """See Extractor."""
        return {"function": self.spec, "channels": self.channels, "cell_pixels": self.stride}


def _find(spec: str) -> Callable[..., Any]:
    module_name, _, name = spec.partition(":")
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise UserError(f"--features {spec}: {module_name!r} is no name of a module")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a module may raise anything, or end the program
        raise _foreign_error(spec, f"{module_name} cannot be imported", error) from None
    found = getattr(module, name, None)
    if not callable(found):
        own = (n for n, v in vars(module).items() if getattr(v, "__module__", "") == module_name)
        callables = [n for n in own if callable(getattr(module, n)) and not n.startswith("_")]
        raise UserError(
            f"--features {spec}: {module_name} has no function {name!r}; it has {', '.join(callables) or 'none'}"
        )
    if not isinstance(found, type):
        return found
    try:
        made = found()
    except Exception as error:  # somebody else's code may raise anything
        raise _foreign_error(spec, f"{name} cannot be made without arguments", error) from None
    if not callable(made):
        raise UserError(f"--features {spec}: what {name}() makes cannot be called with frames")
    return made


def _foreign_error(spec: str, what: str, error: BaseException) -> UserError:
    """One line about an error in somebody else's code."""
    lines = str(error).splitlines() or [""]
    return UserError(f"--features {spec}: {what} ({type(error).__name__}: {lines[0]})")
