"""What may stand wherever an encoder is asked for: a run's folder, a file of it, an exported file, or a shipped name.

Nothing here needs torch, so that a mistyped path is told before torch is loaded. Each shipped encoder has its model card
beside it: what it was trained on, how, what it measures, where it fails.
"""

import re
from collections.abc import Collection
from pathlib import Path

from videossl.errors import UserError

FOLDER = Path(__file__).parent.parent / "shipped"
TRACK_SMALL = "track-small"
SHIPPED = (TRACK_SMALL,)
CHECKPOINTS = "checkpoints"  # the folder of a run that holds them
CHECKPOINT_NAME = re.compile(r"step_(\d+)\.pt")


def shipped_or_given(source: str | Path) -> Path:
    """The file of a shipped encoder for its name, unless something of that name lies there; else the path as given."""
    path = Path(source)
    if str(source) in SHIPPED and not path.exists():
        return FOLDER / f"{source}.safetensors"
    return path


def encoder_name(source: str | Path) -> str:
    """What an encoder is called in tables and folders of results.

    A run's folder by its name, a checkpoint of it with its step (`mine_step900`, `mine_best`), any other file by its name
    without the ending.
    """
    path = Path(source)
    if str(source) in SHIPPED and not path.exists():
        return path.name
    path = path.absolute()
    if path.is_dir():
        return (path.parent if path.name == CHECKPOINTS else path).resolve().name
    if path.parent.name != CHECKPOINTS:
        return path.stem
    is_step = CHECKPOINT_NAME.fullmatch(path.name)
    return f"{path.parent.parent.name}_{f'step{step_of(path)}' if is_step else path.stem}"


def name_beside(name: str, taken: Collection[str]) -> str:
    """The name of an encoder's row among what else is written there, of which it takes no name."""
    return f"{name}_encoder" if name in taken else name


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    found = [path for path in folder.glob("step_*.pt") if CHECKPOINT_NAME.fullmatch(path.name)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step that a file of `checkpoints` was written after."""
    return int(checkpoint.stem.removeprefix("step_"))


def find_checkpoint(path: str | Path) -> Path:
    """The newest checkpoint of a run folder, the file itself, or that of a shipped encoder's name.

    Raises UserError if there is none.
    """
    path = shipped_or_given(path)
    if path.is_dir():
        found = checkpoints(path / CHECKPOINTS) or checkpoints(path)
        if not found:
            raise UserError(
                f"{path} holds no checkpoint: give a run folder with checkpoints/step_*.pt, or such a file"
            )
        return found[-1]
    if not path.exists():
        raise UserError(
            f"checkpoint {path} does not exist: give a run folder, a checkpoints/step_*.pt file or an exported .safetensors"
        )
    return path
