"""`videossl.load_encoder`: from a run's folder or one of its files to a module that takes videos."""

from pathlib import Path

from videossl.engine.checkpoint import find_checkpoint, load_checkpoint, restore_encoder
from videossl.export.clip_form import ClipForm
from videossl.export.video_encoder import VideoEncoder


def load_encoder(
    source: str | Path, *, stage: str | None = None, untrained_seed: int | None = None
) -> VideoEncoder:
    """The encoder of a run's folder or checkpoint file with its preprocessing inside, in evaluation mode, on the CPU.

    `stage` names the stage whose mean is the feature (None: the deepest). With `untrained_seed` the same architecture has
    fresh weights of that seed. Raises UserError if there is no sound checkpoint.
    """
    encoder = restore_encoder(source, untrained_seed=untrained_seed)
    config = load_checkpoint(find_checkpoint(Path(source))).get("config", {})
    stride = encoder.stages[next(reversed(encoder.stages))].spatial_stride
    return VideoEncoder(encoder, ClipForm.of_config(config, stride), stage=stage).eval()
