"""Whether there is a manifest, asked before the libraries that read one are loaded."""

from pathlib import Path

from videossl.errors import UserError

REMEDY = "make one with `videossl scan DIR -o manifest.parquet`"


def given_manifest(path: str | None) -> Path:
    """The manifest of a config. Raises UserError where it has none."""
    if path is None:
        raise UserError(
            "data.manifest is not set; run `videossl scan DIR -o manifest.parquet` and pass data.manifest=..."
        )
    return Path(path)


def check_is_there(path: str | Path) -> None:
    """Raises UserError unless there is a file; what is in it `read_manifest` sees."""
    path = Path(path)
    if path.is_dir():  # Arrow would read the folder as one table
        raise UserError(f"{path} is a folder: name the manifest file in it")
    if not path.exists():
        raise UserError(f"no manifest at {path}: {REMEDY}")
