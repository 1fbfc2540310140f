"""P0: whether where a question stands gives its answer away: its place in the batch, its index, the rank that asks it.

A label must be a fact of the video or a draw. The mutual information of labels and places is compared with that of shuffled
labels: estimated from finitely many it is never 0, but then shuffling does not lower it.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from videossl.audit.findings import Check

NUM_PERMUTATIONS = 2000
LEAST_BITS = 1e-3  # below, a dependence is too weak to learn from
MAX_P = 1e-3  # of a permutation test; several places of several tasks are tested
IMAGINED_RANKS = 2  # among which the rows of a batch would be shared out


@dataclass(frozen=True)
class Places:
    """Where each of Q questions stood: the dataset's position of its video, and its row in a batch of `batch_size`."""

    positions: np.ndarray
    batch_size: int

    def all(self) -> dict[str, np.ndarray]:
        """Every way in which a place could be tied to a label, by name."""
        rows = self.positions % self.batch_size
        return {
            "parity of the video's index": self.positions % 2,
            "row in the batch": rows,
            "batch": self.positions // self.batch_size % 2,
            f"rank, of {IMAGINED_RANKS}": rows * IMAGINED_RANKS // self.batch_size,
        }


def label_checks(labels: np.ndarray, places: Places, *, seed: int = 0) -> list[Check]:
    """How often each label occurs, and whether one is tied to a place."""
    counts = Counter(labels.tolist())
    shares = ", ".join(f"{label}: {counts[label]}" for label in sorted(counts))
    checks = [
        Check(
            "P0", "label counts", len(counts) > 1, f"labels occur {shares}", {"labels": len(counts)}
        )
    ]
    random = np.random.default_rng(seed)
    for name, place in places.all().items():
        if len(np.unique(place)) < 2:
            continue
        bits, p = dependence(labels, place, places.positions, random)
        is_clean = p > MAX_P or bits < LEAST_BITS
        tied = "is not tied to" if is_clean else "is tied to"
        says = f"the label {tied} the {name}: {bits:.4f} bits above shuffled labels (p = {p:.4f})"
        checks.append(Check("P0", f"label and {name}", is_clean, says, {"bits": bits, "p": p}))
    return checks


def dependence(
    labels: np.ndarray, place: np.ndarray, videos: np.ndarray, random: np.random.Generator
) -> tuple[float, float]:
    """(bits, p): mutual information less its mean under permutations, and how rarely a permutation has as much.

    Whole videos change places: several questions about one stand at one place together, and their labels are no
    independent draws.
    """
    _, label = np.unique(labels, return_inverse=True)
    distinct, first, video = np.unique(videos, return_index=True, return_inverse=True)
    place_of_video = np.unique(place[first], return_inverse=True)[1]
    table = np.zeros((len(distinct), label.max() + 1))
    np.add.at(table, (video, label), 1)
    indicator = np.eye(place_of_video.max() + 1)[place_of_video]  # (videos, places)
    observed = mutual_information(indicator.T @ table)
    shuffled = np.array(
        [
            mutual_information(indicator[random.permutation(len(distinct))].T @ table)
            for _ in range(NUM_PERMUTATIONS)
        ]
    )
    p = (1 + int((shuffled >= observed - 1e-12).sum())) / (1 + NUM_PERMUTATIONS)
    return float(observed - shuffled.mean()), p


def mutual_information(counts: np.ndarray) -> float:
    """In bits, of a (places, labels) table of counts."""
    joint = counts / counts.sum()
    expected = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log2(joint[seen] / expected[seen])).sum())
