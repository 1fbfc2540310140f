"""Configs and files that a command is given: told what is wrong before torch is loaded, which takes seconds.

Each check imports what it needs, so that --help works where no library is installed.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videossl.errors import UserError

if TYPE_CHECKING:
    from videossl.config import Config


def check_config(given: str | Path, overrides: Sequence[str]) -> "Config":
    """Raises UserError as `load_config` does, and for wrong settings of tasks, and manifests and weights that are not there.

    A task from outside of videossl is checked where it is imported.
    """
    from videossl.config import load_config, validate
    from videossl.data.manifest_path import check_is_there
    from videossl.decode.source import is_url
    from videossl.models.encoder_sources import CHECKPOINTS, checkpoints, find_checkpoint
    from videossl.pretext import check_known
    from videossl.pretext.settings import CONFIGS

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


def check_given_paths(args: argparse.Namespace) -> None:
    """Raises UserError for the first option whose file or folder is not there. An option means the same in every command."""
    for name, check in CHECKS.items():
        given = getattr(args, name, None)
        if given is not None:
            check(f"--{name.replace('_', '-')}", given)


def _encoder(option: str, given: str | Path) -> None:
    from videossl.decode.source import is_url
    from videossl.models.encoder_sources import find_checkpoint

    if not is_url(str(given)):
        find_checkpoint(given)


def _manifest(option: str, given: str | Path) -> None:
    from videossl.data.manifest_path import check_is_there

    check_is_there(Path(given))


def _file(option: str, given: str | Path) -> None:
    if not Path(given).is_file():
        raise UserError(f"{option} {given}: no such file")


def _folder(option: str, given: str | Path) -> None:
    if not Path(given).is_dir():
        raise UserError(f"{option} {given}: no such folder")


CHECKS: dict[str, Callable[[str, Any], None]] = {
    "checkpoint": _encoder,
    "manifest": _manifest,
    "video": _file,
    "mask": _file,
    "weights": _file,
    "split_file": _file,
    "split_list": _file,
    "unseen": _file,
    "tapvid": _file,
    "davis": _folder,
    "youtube_vos": _folder,
    "badja": _folder,
    "jhmdb": _folder,
    "voc": _folder,
    "tracks": _folder,
}
