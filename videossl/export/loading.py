"""`videossl.load_encoder`: from a run, one of its files, an exported file or a URL to a module that takes videos."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videossl.engine.checkpoint import encoder_of_state, load_newest_or_named
from videossl.errors import UserError
from videossl.export.clip_form import ClipForm
from videossl.export.download import check_sha256, fetched, is_url
from videossl.export.encoder_file import read_encoder_file
from videossl.export.program_encoder import ProgramEncoder, is_program, load_program
from videossl.export.video_encoder import VideoEncoder
from videossl.models.encoder_file import is_encoder_file, read_record
from videossl.models.encoder_sources import find_checkpoint, shipped_or_given


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
    `videossl.export.download`) or "track-small", which comes with the package. `stage` names the stage whose mean is the
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
