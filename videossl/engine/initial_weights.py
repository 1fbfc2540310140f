"""`encoder.init`: a fresh run whose encoder begins with the weights of another, instead of random ones."""

import logging

from videossl.engine.checkpoint import restore_encoder
from videossl.engine.multitask import MultiTask
from videossl.errors import UserError
from videossl.models.encoder import STAGES, Encoder

log = logging.getLogger("videossl")


def begin_with(model: MultiTask, init: str | None) -> None:
    """Copies the weights of a run folder, checkpoint or encoder file into the model's encoder and its slow copy.

    None leaves both as they are. Stages behind the model's deepest are not read, and strides may differ, which changes no
    weight. Raises UserError if the weights are not of the same encoder.
    """
    if init is None:
        return
    source = restore_encoder(init)
    _check(source, model.encoder, init)
    weights = source.state_dict()
    for encoder in (model.encoder, model.slow_encoder):
        if encoder is not None:
            encoder.load_state_dict({name: weights[name] for name in encoder.state_dict()})
    log.info("the encoder begins with the weights of %s", init)
    if (colours := model.encoder.spec.colours) != "lab":
        log.info(
            "these weights read %s, and tasks show Lab: each clip is turned back into RGB in front of the first "
            "convolution, colours outside of sRGB are clipped",
            colours,
        )


def _check(source: Encoder, encoder: Encoder, init: str) -> None:
    given, wanted = source.spec, encoder.spec
    if given.name != wanted.name:
        raise UserError(
            f"encoder.init {init} is of {given.name!r}, the run's encoder is {wanted.name!r}: set encoder.name={given.name}"
        )
    if given.colours != wanted.colours:
        value = "null" if given.colours == "lab" else given.colours
        raise UserError(
            f"encoder.init {init} reads {given.colours}, the run's encoder {wanted.colours}: set encoder.colours={value}"
        )
    for setting in ("frame_wise", "normalization"):
        theirs, ours = (str(getattr(spec, setting)).lower() for spec in (given, wanted))
        if theirs != ours:
            raise UserError(
                f"encoder.init {init} has {setting} {theirs}, the run's encoder {ours}: set encoder.{setting}={theirs}"
            )
    if STAGES.index(given.deepest_stage) < STAGES.index(wanted.deepest_stage):
        raise UserError(
            f"encoder.init {init} ends after {given.deepest_stage}, but tasks read {wanted.deepest_stage}: choose tasks' "
            "stages up to that, or other weights"
        )
