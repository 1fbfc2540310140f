"""How well a setting tracks, for a search over settings: features made once, J and F of each sequence out."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from videossl.errors import UserError
from videossl.eval.davis import DavisSequence
from videossl.eval.features import Extractor, input_size, sequence_features
from videossl.eval.footage import davis_footage
from videossl.eval.protocol import Protocol
from videossl.eval.scoring import ObjectScore, score_masks
from videossl.eval.stored_features import arrays_of
from videossl.eval.tracking import footage_masks


@dataclass(frozen=True)
class SequenceScore:
    """J and F of one sequence, means over its frames, of each of its objects."""

    j: tuple[float, ...]
    f: tuple[float, ...]

    @property
    def j_and_f(self) -> float:
        """The mean of both over the objects."""
        return float(np.mean(self.j + self.f))


@dataclass(frozen=True)
class Scores:
    """What one setting reached, by sequence."""

    sequences: Mapping[str, SequenceScore]

    @property
    def j(self) -> float:
        """Region similarity: the mean over all objects, as the official table has it."""
        return float(np.mean([value for s in self.sequences.values() for value in s.j]))

    @property
    def f(self) -> float:
        """Contour accuracy, likewise."""
        return float(np.mean([value for s in self.sequences.values() for value in s.f]))

    @property
    def j_and_f(self) -> float:
        """The mean of both: what is searched for."""
        return (self.j + self.f) / 2

    def as_dict(self) -> dict[str, object]:
        """Plain types for JSON, as fractions."""
        return {
            "J&F-Mean": self.j_and_f,
            "J-Mean": self.j,
            "F-Mean": self.f,
            "per_sequence": {
                name: {"J&F": s.j_and_f, "J": float(np.mean(s.j)), "F": float(np.mean(s.f))}
                for name, s in self.sequences.items()
            },
        }

    def sequences_won(self, other: "Scores") -> int:
        """On how many sequences J&F is higher; a tie is not won."""
        mine, theirs = self.sequences, other.sequences
        return sum(mine[name].j_and_f > theirs[name].j_and_f for name in mine)


def scores_of(objects: Sequence[ObjectScore]) -> Scores:
    """The means over frames, by sequence."""
    found: dict[str, list[ObjectScore]] = {}
    for score in objects:
        found.setdefault(score.sequence, []).append(score)
    return Scores(
        {
            name: SequenceScore(tuple(o.j.mean for o in of_one), tuple(o.f.mean for o in of_one))
            for name, of_one in found.items()
        }
    )


def store_features(
    sequence: DavisSequence, extractor: Extractor, protocol: Protocol, folder: Path
) -> None:
    """Writes the features of a sequence, not centred nor normalised, as `<folder>/<name>.npy`, whole or not at all."""
    path = folder / f"{sequence.name}.npy"
    if path.is_file():
        return
    raw = replace(protocol, centre=False, normalize=False)
    partial = path.with_suffix(".partial")
    array: np.memmap | None = None  # in a file, since a train list does not fit in memory
    source = davis_footage(sequence).source
    for index, feature in enumerate(sequence_features(source, extractor, raw)):
        if array is None:
            shape = (len(sequence.frame_names), *feature.shape)
            array = open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
        array[index] = feature.cpu().numpy()
    assert array is not None
    array.flush()
    partial.rename(path)


def check_space(sequences: Sequence[DavisSequence], folder: Path) -> None:
    """Raises UserError if the features of all sequences, judged by the first, do not fit on the disk."""
    frames = sum(len(sequence.frame_names) for sequence in sequences)
    stored = {path.stem: path.stat().st_size for path in arrays_of(folder)}
    first = sequences[0]
    total = stored[first.name] * frames // len(first.frame_names)
    missing, free = total - sum(stored.values()), shutil.disk_usage(folder).free
    if missing > free:
        raise UserError(
            f"features of {frames} frames take about {total / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB left: give "
            "--out on another disk, fewer --sequences, a lower --max-frames or a smaller short_side"
        )


@dataclass(frozen=True)
class Trial:
    """A setting to be tried on features, most often stored ones; picklable, so that sequences can be tried side by side."""

    protocol: Protocol
    features: Extractor
    cell_pixels: int  # of the encoder that made the features

    def __call__(self, sequence: DavisSequence) -> list[ObjectScore]:
        """The scores of one sequence, tracked from its first mask."""
        footage = davis_footage(sequence)
        features = sequence_features(
            footage.source, self.features, self.protocol, name=sequence.name
        )
        size = input_size(footage.source.native_size, self.protocol, self.cell_pixels)
        masks = footage_masks(footage, features, self.protocol, input_size=size)
        return score_masks(sequence, list(masks).__getitem__)
