"""A config is right, and what it names is there: told before torch is loaded, which takes seconds."""

from collections.abc import Sequence
from pathlib import Path

from videossl.config import Config, load_config, validate
from videossl.data.manifest_file import check_is_there
from videossl.decode.urls import is_url
from videossl.models.encoder_sources import CHECKPOINTS, checkpoints, find_checkpoint
from videossl.pretext import check_known
from videossl.pretext.settings import CONFIGS


def check_config(given: str | Path, overrides: Sequence[str]) -> Config:
    """Raises UserError as `load_config` does, and for wrong settings of tasks, and manifests and weights that are not there.

    A task from outside of videossl is checked where it is imported.
    """
    config = load_config(given, overrides)
    for name, settings in config.tasks.items():
        check_known(name)
        if name in CONFIGS:
            validate(CONFIGS[name], settings or {}, f"tasks.{name}")
    for manifest in (config.data.manifest, config.monitor.knn.manifest):
        if manifest is not None:
            check_is_there(manifest)
    is_begun = bool(
        checkpoints(Path(config.out) / CHECKPOINTS)
    )  # which is then read in place of init
    if config.encoder.init is not None and not is_url(config.encoder.init) and not is_begun:
        find_checkpoint(config.encoder.init)
    return config
