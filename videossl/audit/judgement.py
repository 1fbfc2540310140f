"""From answers to figures: accuracy and its kin beside constant answers and rules without a network, with intervals."""

from typing import Any

import numpy as np

from videossl.stats import UNKNOWN, Floats, bootstrap, bootstrap_over_videos
from videossl.types import Answers

MAX_CONFUSION = 32  # answers up to which a confusion matrix can be read


def judge(answers: Answers, *, seed: int = 0) -> dict[str, Any]:
    """All that can be said of a task's answers: plain types, intervals as [estimate, low, high].

    `accuracy`, `balanced_accuracy` (mean recall of the answers that occur), `auc` (two answers; Mann-Whitney), `majority`
    (the best constant answer), `rivals` (each rule's accuracy, and the model's less the rule's, paired), `numbers` (means),
    `confusion` (rows: right answer, columns: said), and `subsets`, each judged in the same way. Where answers are a batch's
    candidates and no classes, `chance` stands for what only classes have.
    """
    judged = _judge_rows(answers, np.ones(len(answers.labels), dtype=bool), seed)
    judged["subsets"] = {
        name: _judge_rows(answers, rows.numpy(), seed) for name, rows in answers.subsets.items()
    }
    return judged


def _judge_rows(answers: Answers, rows: np.ndarray, seed: int) -> dict[str, Any]:
    assert answers.weights is not None
    weights = answers.weights.numpy().astype(np.float64)[rows]
    scores, labels = answers.scores.numpy()[rows], answers.labels.numpy()[rows]
    videos = answers.videos.numpy()[rows]
    said = scores.argmax(1) if len(scores) else labels
    right = (said == labels).astype(np.float64)
    judged: dict[str, Any] = {
        "num_questions": int((weights > 0).sum()),
        "num_videos": len(np.unique(videos[weights > 0])),
        "accuracy": _mean(right, weights, videos, seed),
    }
    has_classes = answers.chance is None
    if answers.chance is not None:
        judged["chance"] = _mean(answers.chance.numpy()[rows], weights, videos, seed)[0]
    else:
        judged["balanced_accuracy"] = _balanced(right, labels, weights, videos, seed)
        judged["majority"] = majority(labels, weights)
    if has_classes and scores.shape[1] == 2:
        judged["auc"] = list(
            bootstrap(
                lambda w: auc(scores[:, 1] - scores[:, 0], labels, w), weights, videos, seed=seed
            )
        )
    judged["rivals"] = {}
    for name, answer in answers.rivals.items():
        rival = (answer.numpy()[rows] == labels).astype(np.float64)
        judged["rivals"][name] = {
            "accuracy": _mean(rival, weights, videos, seed),
            "model_minus_rival": _mean(right - rival, weights, videos, seed),
        }
        if has_classes:
            balanced = _balanced(rival, labels, weights, videos, seed)
            judged["rivals"][name]["balanced_accuracy"] = balanced
    judged["numbers"] = {
        name: _mean(values.numpy()[rows], weights, videos, seed)
        for name, values in answers.numbers.items()
    }
    if has_classes and scores.shape[1] <= MAX_CONFUSION:
        judged["confusion"] = confusion(labels, said, weights, scores.shape[1]).tolist()
    return judged


def confusion(labels: np.ndarray, said: np.ndarray, weights: Floats, num_answers: int) -> Floats:
    """(A, A) weights of right answers (rows) and answers given (columns)."""
    flat = np.bincount(labels * num_answers + said, weights, minlength=num_answers**2)
    return flat.astype(np.float64).reshape(num_answers, num_answers)


def majority(labels: np.ndarray, weights: Floats) -> float:
    """What the best constant answer scores; nan where nothing is asked."""
    total = weights.sum()
    return float(np.bincount(labels, weights).max() / total) if total > 0 else float("nan")


def auc(scores: np.ndarray, labels: np.ndarray, weights: Floats) -> float:
    """The chance that a question of label 1 scores above one of label 0, half for ties, rows weighted; nan without both."""
    order = np.argsort(scores, kind="stable")
    scores, labels, weights = scores[order], labels[order], weights[order]
    positive, negative = weights * (labels == 1), weights * (labels == 0)
    if not positive.sum() > 0 or not negative.sum() > 0:
        return float("nan")
    tie = np.unique(scores, return_inverse=True)[1]
    negative_of_tie = np.bincount(tie, negative)
    below = np.cumsum(negative_of_tie) - negative_of_tie
    wins = positive * (below[tie] + negative_of_tie[tie] / 2)
    return float(wins.sum() / (positive.sum() * negative.sum()))


def _mean(values: np.ndarray, weights: Floats, videos: np.ndarray, seed: int) -> list[float]:
    return list(bootstrap_over_videos(values, weights, videos, seed=seed))


def _balanced(
    right: Floats, labels: np.ndarray, weights: Floats, videos: np.ndarray, seed: int
) -> list[float]:
    """Mean recall: of each video only the sums per class matter, so that resampling is cheap."""
    if not weights.sum() > 0:
        return list(UNKNOWN)
    names, index = np.unique(videos, return_inverse=True)
    num_classes = int(labels.max()) + 1
    cell = index * num_classes + labels
    shape = (len(names), num_classes)
    hits = np.bincount(cell, right * weights, minlength=shape[0] * shape[1]).reshape(shape)
    counts = np.bincount(cell, weights, minlength=shape[0] * shape[1]).reshape(shape)

    def mean_recall(video_weights: Floats) -> float:
        seen = (summed := video_weights @ counts) > 0
        return float(((video_weights @ hits)[seen] / summed[seen]).mean())

    return list(bootstrap(mean_recall, np.ones(len(names)), np.arange(len(names)), seed=seed))
