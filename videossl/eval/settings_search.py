"""The settings of label propagation that a search tries, and in which order.

Settings travel as text, as `--set` takes them, so that what is tried is what can be typed.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict

from videossl.errors import UserError
from videossl.eval.presets import preset
from videossl.eval.protocol import Protocol

Settings = Mapping[str, str]
Grid = Mapping[str, tuple[str, ...]]

# What the encoder is shown and how: other values need other features. Centring and the norm come after.
FEATURE_SETTINGS = (
    *("short_side", "long_side_multiple", "input_hw", "grey"),
    *("clip", "window_frames", "window_step", "time"),
)
# Around the values of the published protocols (see PRESETS).
DEFAULT_GRID: Grid = {
    "temperature": ("0.01", "0.02", "0.05", "0.07", "0.1"),
    "top_k": ("5", "10", "20"),
    "radius": ("6", "12", "18"),
    "context_frames": ("3", "7", "14", "20"),
}


def parse_grid(texts: Sequence[str]) -> Grid:
    """What `--grid KEY=V1,V2 ...` asks for; values that hold commas themselves are parted by `/`.

    Raises UserError for a setting without values, and for settings that change the features.
    """
    grid = {}
    for text in texts:
        key, equals, values = (part.strip() for part in text.partition("="))
        parts = [part.strip() for part in values.split("/" if "/" in values else ",")]
        if not equals or not all(parts):
            raise UserError(f"--grid takes KEY=V1,V2,..., got {text!r}")
        if key in FEATURE_SETTINGS:
            raise UserError(
                f"--grid {key}: features are made once and {key} changes them; give one value by --set {key}=... and run "
                "again for others"
            )
        grid[key] = tuple(dict.fromkeys(parts))
    return grid


def default_grid(protocol: Protocol) -> Grid:
    """The default search for a protocol: without settings that it does not use."""
    unused = {key for key in ("top_k", "radius") if getattr(protocol, key) is None}
    if protocol.memory_offsets is not None:
        unused.add("context_frames")
    return {key: values for key, values in DEFAULT_GRID.items() if key not in unused}


def setting_text(value: object) -> str:
    """A value of a protocol as `--set` takes it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def changes(protocol: Protocol, preset_name: str) -> dict[str, str]:
    """The settings by which a protocol differs from a preset, as text."""
    published = asdict(preset(preset_name))
    found = asdict(protocol)
    return {
        key: setting_text(value)
        for key, value in found.items()
        if key != "source" and value != published[key]
    }


def search_by_coordinate(
    start: Settings, grid: Grid, evaluate: Callable[[Settings], float | None], *, passes: int
) -> None:
    """Tries the values of one setting after the other, each time keeping the best; `evaluate` is told all of them.

    A value must be better to be kept, so that the start wins ties. Ends after `passes` rounds, or one that changes nothing.
    `evaluate` answers None for settings that do not go together.
    """
    best = dict(start)
    best_score = evaluate(best)
    assert best_score is not None
    for _ in range(passes):
        before = dict(best)
        for key, values in grid.items():
            kept = dict(best)  # the values of one setting are compared with the others alike
            for value in values:
                score = evaluate({**kept, key: value})
                if score is not None and score > best_score:
                    best, best_score = {**kept, key: value}, score
        if best == before:
            return


def all_combinations(start: Settings, grid: Grid) -> Iterator[Settings]:
    """The start, then each combination of the grid."""
    yield start
    for values in itertools.product(*grid.values()):
        yield {**start, **dict(zip(grid, values, strict=True))}


def check_grid(preset_name: str, start: Settings, grid: Grid) -> None:
    """Raises UserError for a setting or value that does not exist or does not go with the others of the start."""
    for key, values in grid.items():
        for value in values:
            preset(preset_name, {**start, key: value})
