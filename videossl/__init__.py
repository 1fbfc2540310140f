"""videossl learns video representations without labels and scores them by tracking.

Importing the package loads nothing heavy: torch comes with the first attribute that needs it.
"""

from videossl.version import __version__

__all__ = ["__version__", "load_encoder"]


def __getattr__(name: str) -> object:
    if name == "load_encoder":
        from videossl.export.loading import load_encoder

        return load_encoder
    raise AttributeError(f"module 'videossl' has no attribute {name!r}")
