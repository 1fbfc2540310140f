"""Writes and reads whole video encoders: the weights in safetensors, everything else in the header."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from videossl.errors import UserError
from videossl.export.video_encoder import VideoEncoder
from videossl.models.encoder_file import (
    FILE_FORMAT,
    RECORD_KEY,
    TASK_PREFIX,
    is_encoder_file,
    read_encoder,
    read_record,
    weights_digest,
)
from videossl.version import __version__
from videossl.whole_file import whole_file


def encoder_record(encoder: VideoEncoder, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What every exported file says of its encoder, in plain types; `facts` are those of its making."""
    weights = {name: tensor.cpu() for name, tensor in encoder.encoder.state_dict().items()}
    return {
        "format": FILE_FORMAT,
        "version": __version__,
        "encoder": encoder.describe(),
        "weights_sha256": weights_digest(weights),
        "facts": dict(facts),
    }


def write_encoder_file(
    path: str | Path,
    encoder: VideoEncoder,
    facts: Mapping[str, Any] | None = None,
    *,
    task: tuple[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """Writes `encoder` to `path`, which must end in .safetensors. Raises UserError if it cannot be written.

    `task` is the name and the weights of the pretext task that made it track, which adapting it goes on with.
    """
    if not is_encoder_file(path):
        raise UserError(f"{path}: the name of an encoder file must end in .safetensors")
    weights = {n: t.cpu().contiguous() for n, t in encoder.encoder.state_dict().items()}
    record = encoder_record(encoder, facts or {})
    if task is not None:
        name, task_weights = task[0], {n: t.cpu().contiguous() for n, t in task[1].items()}
        record["task"] = {"name": name, "weights_sha256": weights_digest(task_weights)}
        weights |= {TASK_PREFIX + n: tensor for n, tensor in task_weights.items()}
    data = save(weights, {"format": "pt", RECORD_KEY: json.dumps(record)})
    with whole_file(path) as partial:
        partial.write_bytes(data)


def read_encoder_file(
    path: str | Path, *, stage: str | None = None, untrained_seed: int | None = None
) -> VideoEncoder:
    """The encoder of a file in evaluation mode; `stage` replaces the one that it was exported with.

    Raises UserError if the file is damaged, lies or is another's.
    """
    encoder = read_encoder(path, untrained_seed=untrained_seed)
    described = read_record(path)["encoder"]
    try:
        return VideoEncoder.of_description(described, encoder, stage=stage).eval()
    except UserError as error:
        raise UserError(f"encoder file {path}: {error}") from error
