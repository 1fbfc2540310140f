"""Fingerprints of weights and of videos: what cached features belong to, and whether frozen weights stayed frozen."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from torch import nn

from videossl.data.table import Manifest
from videossl.models.encoder_file import weights_digest


def state_digest(module: nn.Module) -> str:
    """SHA-256 of every parameter and buffer, by name, type, shape and bytes."""
    return weights_digest({name: value.cpu() for name, value in module.state_dict().items()})


def videos_digest(manifest: Manifest, rows: Sequence[int]) -> str:
    """SHA-256 of where these videos lie, their sizes and when they were changed: other files give another one."""
    digest = hashlib.sha256()
    for row in rows:
        entry = manifest[row]
        digest.update(
            f"{entry.path}\0{entry.offset}\0{entry.bytes}\0{entry.modified}\0{entry.status}\n".encode()
        )
    return digest.hexdigest()


def settings_digest(settings: Any) -> str:
    """SHA-256 of plain types."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
