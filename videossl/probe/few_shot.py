"""Few-shot: logistic regression on the frozen features of a few labelled videos a class, drawn anew for each seed.

Thoker et al., SEVERE, ECCV 2022, section 4.2, asks how far features go with few labels. scikit-learn's solver with its own
regularisation (C = 1) on standardised features: with so few videos there is no validation part to choose settings on.
"""

import numpy as np
import torch
from torch import Tensor

from videossl.probe.examples import Examples
from videossl.rng import generator

SHOTS = (1, 5, 10)
NUM_SEEDS = 3


def draw_shots(labels: Tensor, shots: int, *, seed: int) -> np.ndarray | None:
    """Positions of `shots` videos of each class, ascending; None where a class has fewer."""
    drawn = []
    for one in labels.unique().tolist():
        members = torch.nonzero(labels == one)[:, 0]
        if len(members) < shots:
            return None
        # Not of the shots: those of five are the first of the ten.
        order = torch.randperm(len(members), generator=generator(seed, "few shots", one))
        drawn.append(members[order[:shots]])
    return torch.cat(drawn).sort().values.numpy()


def few_shot(
    train: Examples, test: Examples, shots: int, *, num_classes: int, seed: int
) -> Tensor | None:
    """(V, L) probabilities of the test part after `shots` videos a class; None where a class has fewer."""
    drawn = draw_shots(train.labels, shots, seed=seed)
    if drawn is None:
        return None
    few = train.select(drawn)
    from sklearn.linear_model import LogisticRegression  # sklearn takes two seconds to load
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    model.fit(few.per_video.numpy(), few.labels.numpy())
    probabilities = torch.zeros(len(test), num_classes, dtype=torch.float64)
    # Columns are those of the classes that were shown.
    probabilities[:, model.classes_] = torch.from_numpy(
        model.predict_proba(test.per_video.numpy())
    ).double()
    return probabilities
