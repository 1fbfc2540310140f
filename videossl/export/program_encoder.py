"""A program of `videossl export`, run behind the interface of the encoder that it was made of."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from videossl.errors import UserError
from videossl.export.clip_form import ClipForm
from videossl.export.programs import PT2_RECORD, Run, onnx_run
from videossl.export.video_encoder import check_video
from videossl.models.encoder_file import RECORD_KEY

SUFFIXES = (".onnx", ".pt2")


def is_program(path: str | Path) -> bool:
    """Whether the name says that it is one."""
    return Path(path).suffix in SUFFIXES


class ProgramEncoder(nn.Module):
    """`encoder(video)` gives (N, C) as the `VideoEncoder` that was exported; on the CPU, without gradients.

    Raises UserError for videos of another type, number of frames or size than the program takes.
    """

    def __init__(self, run: Run, record: Mapping[str, Any], *, name: str) -> None:
        super().__init__()
        self._run, self._name = run, name
        try:
            described, program = record["encoder"], record["program"]
            self.clip, self.stage = ClipForm(**described["clip"]), str(described["stage"])
            self.frames, self.size, self.output = (program[k] for k in ("frames", "size", "output"))
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{name} does not say what it takes: export it again with this version of videossl"
            ) from error

    def forward(self, video: Tensor) -> Tensor:
        """Features of whole clips."""
        found = self._answer(video)
        return found.mean(dim=(-3, -2, -1)) if self.output == "maps" else found

    def feature_maps(self, video: Tensor) -> dict[str, Tensor]:
        """The maps of its stage, (N, C, T, h, w), of a program that was exported with --maps; else raises UserError."""
        if self.output != "maps":
            raise UserError(
                f"{self._name} gives features alone: export it with --maps, or take the run's encoder"
            )
        return {self.stage: self._answer(video)}

    def _answer(self, video: Tensor) -> Tensor:
        check_video(video)
        frames, size = video.shape[-4], tuple(video.shape[-2:])
        if self.frames is not None and frames != self.frames:
            raise UserError(f"{self._name} takes clips of {self.frames} frames, got {frames}")
        if self.size is not None and size != tuple(self.size):
            height, width = self.size
            raise UserError(
                f"{self._name} takes frames of {height} x {width} pixels (height x width), got {size[0]} x {size[1]}: "
                "scale them, or export it with --input-size"
            )
        if min(size) < 2:
            raise UserError(f"{self._name} takes frames of 2 pixels a side at least, got {size}")
        with torch.no_grad():
            found = self._run(video if video.ndim == 5 else video[None])
        return found if video.ndim == 5 else found[0]


def load_program(path: Path, *, is_trusted: bool) -> ProgramEncoder:
    """The encoder in a .onnx or .pt2 file. Raises UserError for a .pt2 that is not said to be trusted, and for damage."""
    try:
        if path.suffix == ".onnx":
            return _load_onnx(path)
        if not is_trusted:
            raise UserError(
                f"{path} is a program of torch.export, and reading one can run its maker's code: if you trust it, say "
                "load_encoder(..., is_trusted=True) or torch.export.load(path).module(); .safetensors files never run any"
            )
        extra = {PT2_RECORD: ""}
        module = torch.export.load(path, extra_files=extra).module()
        return ProgramEncoder(module, json.loads(extra[PT2_RECORD]), name=str(path))
    except UserError:
        raise
    except (
        Exception
    ) as error:  # what the two readers raise for a damaged file is of no common class
        cause = " ".join(str(error).split())[:120]
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {cause})") from error


def _load_onnx(path: Path) -> ProgramEncoder:
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"{path} needs onnxruntime: pip install 'videossl[onnx]'") from None
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    record = json.loads(session.get_modelmeta().custom_metadata_map.get(RECORD_KEY, "{}"))
    return ProgramEncoder(onnx_run(session), record, name=str(path))
