"""The encoders that come with the package: their names stand wherever a run or a file is asked for.

Each has its model card beside it: what it was trained on, how, what it measures, where it fails.
"""

from pathlib import Path

FOLDER = Path(__file__).parent.parent / "shipped"
TRACK_SMALL = "track-small"
SHIPPED = (TRACK_SMALL,)


def shipped_or_given(source: str | Path) -> Path:
    """The file of a shipped encoder for its name, unless something of that name lies there; else the path as given."""
    path = Path(source)
    if str(source) in SHIPPED and not path.exists():
        return FOLDER / f"{source}.safetensors"
    return path
