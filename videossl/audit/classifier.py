"""Logistic regression as a cheat: fitted on questions about training videos, judged on those about held-out ones."""

import warnings

import numpy as np

INVERSE_PENALTY = (
    0.1  # on standardised numbers; chosen: a few hundred questions, up to as many numbers
)
MAX_ITERATIONS = 300


class Cheater:
    """A linear classifier that has seen features (Q, D) and labels (Q,); if `is_balanced`, all labels weigh alike.

    Where it was shown one label alone, it always says that one.
    """

    def __init__(
        self, features: np.ndarray, labels: np.ndarray, *, is_balanced: bool = True
    ) -> None:
        from sklearn.exceptions import ConvergenceWarning  # sklearn takes two seconds to load
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self._only = int(labels[0]) if len(np.unique(labels)) == 1 else None
        self._pipeline = make_pipeline(
            StandardScaler(),
            LogisticRegression(
                C=INVERSE_PENALTY,
                class_weight="balanced" if is_balanced else None,
                max_iter=MAX_ITERATIONS,
            ),
        )
        if self._only is None:
            with warnings.catch_warnings():  # an answer that is not quite the best is a cheat's too
                warnings.simplefilter("ignore", ConvergenceWarning)
                self._pipeline.fit(features, labels)

    def answer(self, features: np.ndarray) -> np.ndarray:
        """(Q,) int64."""
        if self._only is not None:
            return np.full(len(features), self._only)
        answers: np.ndarray = self._pipeline.predict(features)
        return answers


def class_weights(labels: np.ndarray) -> np.ndarray:
    """(Q,) weights under which every label that occurs weighs alike: a constant answer scores 1 / labels."""
    _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return 1.0 / counts[index]
