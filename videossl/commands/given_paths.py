"""What is given to a command lies where it is said to lie: told at once, before torch is loaded, which takes seconds."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from videossl.errors import UserError


def check_given_paths(args: argparse.Namespace) -> None:
    """Raises UserError for the first option whose file or folder is not there. An option means the same in every command."""
    for name, check in CHECKS.items():
        given = getattr(args, name, None)
        if given is not None:
            check(f"--{name.replace('_', '-')}", given)


def _encoder(option: str, given: str | Path) -> None:
    from videossl.decode.urls import is_url
    from videossl.models.encoder_sources import find_checkpoint

    if not is_url(str(given)):
        find_checkpoint(given)


def _manifest(option: str, given: str | Path) -> None:
    from videossl.data.manifest_file import check_is_there

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
