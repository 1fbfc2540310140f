"""Programs: an encoder with its preprocessing as one graph in a torch.export or ONNX file, checked against the module.

Input `video` (N, T, 3, H, W) uint8 RGB, output `features` (N, C), or `maps` (N, C, T', h, w). N is free. H and W are free in
a torch.export file without a size of its own, and fixed in the others. T is free where nothing that is read strides over
time; behind such a stride a graph has the frames that it was traced with.
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from videossl.errors import UserError
from videossl.export.video_encoder import ClipForm, VideoEncoder, check_video
from videossl.io.output_files import whole_file
from videossl.models.encoder import Encoder
from videossl.models.encoder_file import RECORD_KEY

log = logging.getLogger("videossl")

TOLERANCE = 1e-4  # of the features' root mean square
PT2_RECORD = f"{RECORD_KEY}.json"  # the extra file that holds the record in a .pt2

Run = Callable[[Tensor], Tensor]


class Unequal(Exception):
    """A program does not compute what its module does. The message is one line."""


@dataclass(frozen=True)
class Difference:
    """The greatest absolute difference over all elements of all inputs tried, and that over the features' scale.

    The scale is the root mean square of the module's features over the same elements. `videos` are the shapes tried.
    """

    absolute: float
    relative: float
    videos: tuple[tuple[int, ...], ...]

    def __str__(self) -> str:
        batches = len({shape[0] for shape in self.videos})
        return (
            f"greatest difference from the module {self.absolute:.2g}, which is {self.relative:.2g} of the root mean square "
            f"of its features (at most {TOLERANCE:g}), on {len(self.videos)} inputs of {batches} batch sizes"
        )


class Program(nn.Module):
    """What is exported: `encoder` cut after its stage, for frames of `size` (None: of any size)."""

    def __init__(
        self, encoder: VideoEncoder, *, size: tuple[int, int] | None = None, maps: bool = False
    ) -> None:
        super().__init__()
        self.encoder, self.maps, self.size = cut_after_stage(encoder), maps, size
        stages = self.encoder.encoder.stages.values()
        self.has_free_frames = all(info.temporal_stride == 1 for info in stages)

    def forward(self, video: Tensor) -> Tensor:
        """See the module's docstring."""
        if not self.maps:
            features: Tensor = self.encoder(video)
            return features
        return self.encoder.feature_maps(video)[self.encoder.stage]

    def describe(self) -> dict[str, Any]:
        """What the program takes and gives, in plain types: None stands for any number."""
        frames = None if self.has_free_frames else self.encoder.clip.num_frames
        size = None if self.size is None else list(self.size)
        return {"frames": frames, "size": size, "output": "maps" if self.maps else "features"}

    def video(
        self,
        batch: int,
        frames: int,
        fill: int | None = None,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """An input of the program: random pixels, the same at every call, or `fill` everywhere."""
        side = self.encoder.clip.resize
        shape = (batch, frames, 3, *(self.size or size or (side + 3, side + 17)))
        if fill is not None:
            return torch.full(shape, fill, dtype=torch.uint8)
        generator = torch.Generator().manual_seed(batch)
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)

    def videos(self) -> Iterator[Tensor]:
        """What the program is checked on: batches of 1, 2 and 3, black and white, and other lengths and sizes where free."""
        frames = self.encoder.clip.num_frames
        yield self.video(1, frames)
        yield self.video(2, frames)
        yield self.video(3, frames)
        yield self.video(1, frames, fill=0)
        yield self.video(2, frames, fill=255)
        if self.has_free_frames:
            yield self.video(2, frames + 1)
            yield self.video(1, 1)
        if self.size is None:
            side = self.encoder.clip.resize
            for size in ((side, side), (2 * side + 1, side + 1), (side // 2 + 1, side)):
                yield self.video(1, frames, size=size)


def cut_after_stage(encoder: VideoEncoder) -> VideoEncoder:
    """The same function with no weights behind the stage that it reads: graphs would carry them along."""
    spec = replace(encoder.encoder.spec, deepest_stage=encoder.stage)
    cut = Encoder(spec)
    weights = encoder.encoder.state_dict()
    cut.load_state_dict({name: weights[name] for name in cut.state_dict()})
    return VideoEncoder(cut, encoder.clip, stage=encoder.stage).eval()


def write_torch_program(path: Path, program: Program, record: Mapping[str, Any]) -> Difference:
    """Writes a .pt2 for `torch.export.load`, with the record as its extra file `videossl.json`.

    Raises UserError if it cannot be traced or written, Unequal if what was written is not what was meant; no file is left.
    """
    traced = _trace(program, "torch.export")
    with whole_file(path) as partial:
        with _quiet():
            record = {**record, "program": program.describe()}
            torch.export.save(traced, partial, extra_files={PT2_RECORD: json.dumps(record)})
            read = torch.export.load(partial).module()
        return check(read, program)


def write_onnx(path: Path, program: Program, record: Mapping[str, Any]) -> Difference:
    """Writes an ONNX file, weights inside, with the record in its metadata, and runs it in onnxruntime.

    A program without a size gets the clip's: square, its short side scaled. Raises as `write_torch_program`.
    """
    import onnxruntime

    if (
        program.size is None
    ):  # a graph of ONNX has no antialiased scaling to a size that depends on the input
        side = program.encoder.clip.resize
        program.size = (side, side)
    traced = _trace(program, "onnx")
    with _quiet(), _one_line("onnx"):
        made = torch.onnx.export(
            traced,
            dynamo=True,
            verbose=False,
            input_names=["video"],
            output_names=["maps" if program.maps else "features"],
            dynamic_shapes=_free_axes(program),
        )
    assert made is not None
    record = {**record, "program": program.describe()}
    made.model.metadata_props[RECORD_KEY] = json.dumps(record)
    with whole_file(path) as partial:
        made.save(partial, external_data=False)
        session = onnxruntime.InferenceSession(partial, providers=["CPUExecutionProvider"])
        return check(onnx_run(session), program)


def check(run: Run, program: Program) -> Difference:
    """Compares a program with the module on `program.videos()`. Raises Unequal above TOLERANCE."""
    greatest, squares, count, shapes = 0.0, 0.0, 0, []
    for video in program.videos():
        with torch.no_grad():
            expected, found = program(video).double(), run(video).double()
        shapes.append(tuple(video.shape))
        if found.shape != expected.shape:
            raise Unequal(
                f"{tuple(video.shape)} gives {tuple(found.shape)}, not {tuple(expected.shape)}"
            )
        difference = float((found - expected).abs().max())
        if not difference < float("inf"):
            raise Unequal(f"{tuple(video.shape)} gives features that are not finite")
        greatest = max(greatest, difference)
        squares, count = squares + float((expected**2).sum()), count + expected.numel()
    scale = (squares / count) ** 0.5
    relative = greatest / scale if greatest else 0.0  # features may be 0 everywhere
    found_difference = Difference(greatest, relative, tuple(shapes))
    if not relative <= TOLERANCE:
        raise Unequal(str(found_difference))
    return found_difference


def _trace(program: Program, kind: str) -> torch.export.ExportedProgram:
    video = program.video(
        2, program.encoder.clip.num_frames
    )  # graphs are specialised to a batch of 1
    with _quiet(), _one_line(kind), torch.no_grad():
        return torch.export.export(program, (video,), dynamic_shapes=_free_axes(program))


def _free_axes(program: Program) -> tuple[dict[int, Any]]:
    axes = {0: torch.export.Dim("batch", min=1)}
    if program.has_free_frames:
        axes[1] = torch.export.Dim("frames", min=1)
    if program.size is None:
        axes |= {3: torch.export.Dim("height", min=2), 4: torch.export.Dim("width", min=2)}
    return (axes,)


def onnx_run(session: Any) -> Run:
    """What runs a video through a session of onnxruntime."""

    def run(video: Tensor) -> Tensor:
        (found,) = session.run(None, {"video": video.numpy()})
        return torch.from_numpy(found)

    return run


@contextmanager
def _one_line(kind: str) -> Iterator[None]:
    try:
        yield
    # What tracing raises is of no common class, and names an operator or a shape: all mean that there is no such graph.
    except Exception as error:
        cause = str(error).strip().split("\n")[0][:200]
        raise UserError(
            f"this encoder cannot be exported as {kind} with torch {torch.__version__} ({type(error).__name__}: {cause})"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Tracing warns of torch's own deprecations: nothing a user could mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


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
