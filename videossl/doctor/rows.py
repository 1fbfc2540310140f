"""What `videossl doctor` finds, a row each."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

State = Literal["ok", "warning", "missing", "broken"]


@dataclass(frozen=True)
class Row:
    """One thing looked at. `is_required`: without it scan, train or track cannot run."""

    what: str
    state: State
    found: str
    mend: str = ""
    is_required: bool = False

    @property
    def stops(self) -> bool:
        """Whether this alone keeps the project from running here."""
        return self.is_required and self.state in ("missing", "broken")

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Place:
    """Where the checks work: `folder` is temporary and theirs, `targets` are the folders a user wants to write into."""

    folder: Path
    targets: tuple[Path, ...] = ()


def reason(error: BaseException) -> str:
    """The error in one line, its kind first."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def mib(num_bytes: float) -> str:
    """A size to read: GiB from one on, else MiB."""
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"
