"""What answers are worth: accuracies by scikit-learn, with intervals over source groups."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    top_k_accuracy_score,
)
from torch import Tensor

from videossl.intervals import Interval, bootstrap_over_videos
from videossl.probe.examples import Examples

TOP_K = 5


def judge_classes(probabilities: Tensor, test: Examples, *, num_classes: int) -> dict[str, Any]:
    """Top-1 with its interval over source groups, balanced accuracy, top-5 of more than five classes, confusion.

    `probabilities` (V, L). `confusion[i][j]` counts videos of class i answered j.
    """
    truth, answers = test.labels.numpy(), probabilities.argmax(1).numpy()
    every = np.arange(num_classes)
    interval = bootstrap_over_videos(answers == truth, np.ones(len(truth)), np.asarray(test.groups))
    judged: dict[str, Any] = {
        "top1": [float(accuracy_score(truth, answers)), interval.low, interval.high],
        "balanced_accuracy": float(balanced_accuracy_score(truth, answers)),
        "num_videos": len(truth),
        "confusion": confusion_matrix(truth, answers, labels=every).tolist(),
    }
    if num_classes > TOP_K:
        judged["top5"] = float(
            top_k_accuracy_score(truth, probabilities.numpy(), k=TOP_K, labels=every)
        )
    return judged


def difference(first: Tensor, second: Tensor, groups: Sequence[str] | np.ndarray) -> Interval:
    """How much better the first is on the same videos, with the paired interval over source groups; both (V,)."""
    return bootstrap_over_videos(
        (first.double() - second.double()).numpy(), np.ones(len(first)), np.asarray(groups)
    )


def chance_of_classes(fitted: Tensor, test: Tensor, num_classes: int) -> dict[str, float]:
    """What always answering the class that is most frequent in the fitted part scores on the test part."""
    most_frequent = int(torch.bincount(fitted, minlength=num_classes).argmax())
    return {
        "top1": float((test == most_frequent).double().mean()),
        "balanced_accuracy": 1 / num_classes,
    }
