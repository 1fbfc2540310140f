"""Each protocol of `videossl probe`: frozen features, or a network, to answers about the test part."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
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

from videossl.data.manifest import Manifest
from videossl.export.video_encoder import VideoEncoder
from videossl.probe.classifiers import (
    NUM_SEEDS,
    RECALLS,
    SHOTS,
    Chosen,
    attentive_probe,
    chance_of_hit,
    few_shot,
    hits,
    join,
    linear_probe,
    similarities,
    votes,
)
from videossl.probe.embedding import ClipReader, Form, VideoFeatures
from videossl.probe.feature_store import cached_features, state_digest
from videossl.probe.fine_tuning import Classifier, Recipe, train_with_labels
from videossl.probe.labelled_split import Examples, LabelledSplit, examples_of
from videossl.stats import Interval, bootstrap_over_videos

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


@dataclass(frozen=True)
class Setting:
    """The videos that are asked about, and how they are shown."""

    manifest: Manifest
    split: LabelledSplit
    clips_per_video: int
    device: torch.device
    cache: Path
    seed: int

    @property
    def num_classes(self) -> int:
        return len(self.split.classes)


@dataclass(frozen=True)
class Parts:
    """The examples of one encoder: those settings are fitted on, chosen on, and judged on."""

    train: Examples
    validation: Examples
    test: Examples

    @property
    def fitted(self) -> Examples:
        """Train and validation."""
        return join(self.train, self.validation)


@dataclass(frozen=True)
class Judged:
    """`numbers` for the record; `right` (V,) per test video, for paired differences; `probabilities` (V, L) or None.

    `fitted` are the classes of the videos that were learned from, or searched.
    """

    numbers: dict[str, Any]
    right: Tensor
    test: Examples
    fitted: Tensor
    probabilities: Tensor | None = None
    frozen: dict[str, str] = field(default_factory=dict)


def features_of(
    encoder: VideoEncoder,
    setting: Setting,
    rows: Sequence[int],
    *,
    why: str,
    form: Form = "pooled",
) -> dict[int, VideoFeatures]:
    """The features of these rows, from the cache where they are there."""
    reader = ClipReader(setting.manifest, encoder.clip, setting.clips_per_video)
    return cached_features(
        encoder, reader, rows, cache=setting.cache, device=setting.device, form=form, why=why
    )


def parts_of(features: Mapping[int, VideoFeatures], split: LabelledSplit) -> Parts:
    """The videos that have features, part by part."""
    return Parts(
        examples_of(split.train, split, features, "train"),
        examples_of(split.validation, split, features, "validation"),
        examples_of(split.test, split, features, "test"),
    )


def judge_frozen(protocol: str, encoder: VideoEncoder, setting: Setting, *, why: str) -> Judged:
    """A protocol that learns from frozen features. The weights are compared by SHA-256 before and after.

    Raises RuntimeError if they changed: then no number would mean anything.
    """
    before = state_digest(encoder)
    form: Form = "tokens" if protocol == "attentive" else "pooled"
    features = features_of(encoder, setting, setting.split.rows, why=why, form=form)
    judged = _FROZEN[protocol](parts_of(features, setting.split), setting)
    after = state_digest(encoder)
    if after != before:
        raise RuntimeError(f"the frozen encoder changed while it was probed: {before} to {after}")
    return replace(judged, frozen={"sha256_before": before, "sha256_after": after})


def judge_probabilities(
    probabilities: Tensor, test: Examples, fitted: Tensor, setting: Setting
) -> Judged:
    """Predictions (V, L) about the test part."""
    numbers = judge_classes(probabilities, test, num_classes=setting.num_classes)
    right = (probabilities.argmax(1) == test.labels).double()
    return Judged(numbers, right, test, fitted, probabilities)


def chance(protocol: str, row: Judged, setting: Setting) -> dict[str, float]:
    """What is scored on the videos of this row without looking."""
    test = row.test.labels
    if protocol == "retrieval":
        return {f"R@{k}": chance_of_hit(test, row.fitted, k) for k in RECALLS}
    return chance_of_classes(row.fitted, test, setting.num_classes)


def _linear(parts: Parts, setting: Setting) -> Judged:
    answered = linear_probe(
        parts.train,
        parts.validation,
        parts.test,
        num_classes=setting.num_classes,
        seed=setting.seed,
    )
    return _judge_chosen(*answered, parts, setting)


def _attentive(parts: Parts, setting: Setting) -> Judged:
    answered = attentive_probe(
        parts.train,
        parts.validation,
        parts.test,
        num_classes=setting.num_classes,
        seed=setting.seed,
        device=setting.device,
    )
    return _judge_chosen(*answered, parts, setting)


def _judge_chosen(probabilities: Tensor, chosen: Chosen, parts: Parts, setting: Setting) -> Judged:
    judged = judge_probabilities(probabilities, parts.test, parts.fitted.labels, setting)
    judged.numbers["chosen"] = asdict(chosen)
    return judged


def _knn(parts: Parts, setting: Setting) -> Judged:
    fitted = parts.fitted
    similarity = similarities(parts.test.per_video, fitted.per_video)
    probabilities = votes(similarity, fitted.labels, num_classes=setting.num_classes)
    return judge_probabilities(probabilities, parts.test, fitted.labels, setting)


def _retrieval(parts: Parts, setting: Setting) -> Judged:
    gallery = parts.fitted
    similarity = similarities(parts.test.per_video, gallery.per_video)
    found = {k: hits(similarity, parts.test.labels, gallery.labels, k) for k in RECALLS}
    numbers: dict[str, Any] = {f"R@{k}": float(values.mean()) for k, values in found.items()}
    numbers |= {"num_queries": len(parts.test), "num_gallery": len(gallery)}
    return Judged(numbers, found[RECALLS[0]], parts.test, gallery.labels)


def _few_shot(parts: Parts, setting: Setting) -> Judged:
    fitted, test = parts.fitted, parts.test
    numbers: dict[str, Any] = {}
    shown: Tensor | None = None
    for shots in SHOTS:
        answered = [
            few_shot(fitted, test, shots, num_classes=setting.num_classes, seed=setting.seed + seed)
            for seed in range(NUM_SEEDS)
        ]
        known = [probabilities for probabilities in answered if probabilities is not None]
        if not known:
            numbers[f"{shots}-shot"] = None  # a class has fewer videos than that
            continue
        scores = [float((p.argmax(1) == test.labels).double().mean()) for p in known]
        numbers[f"{shots}-shot"] = {
            "mean": float(np.mean(scores)),
            "std": float(np.std(scores, ddof=1)),
            "seeds": scores,
        }
        shown = torch.stack(known).mean(0)  # of the most shots there are, for the pictures
        right = torch.stack([(p.argmax(1) == test.labels).double() for p in known]).mean(0)
    assert shown is not None  # one video a class is there, or the split would have been refused
    judged = judge_classes(shown, test, num_classes=setting.num_classes)
    numbers |= {"num_videos": len(test), "confusion": judged["confusion"]}
    return Judged(numbers, right, test, fitted.labels, shown)


_FROZEN: dict[str, Callable[[Parts, Setting], Judged]] = {
    "linear": _linear,
    "attentive": _attentive,
    "knn": _knn,
    "retrieval": _retrieval,
    "fewshot": _few_shot,
}


UNTRAINED, SUPERVISED = "untrained", "supervised from scratch"
FINETUNED = "fine-tuned"

LoadUntrained = Callable[[int], VideoEncoder]  # of a seed


def frozen_rows(
    protocol: str,
    name: str,
    encoder: VideoEncoder,
    untrained: LoadUntrained,
    setting: Setting,
    *,
    untrained_seeds: int,
    recipe: Recipe | None,
) -> dict[str, Judged]:
    """{row: Judged} of a protocol that learns from frozen features, first of `encoder`, called `name`.

    Without a recipe there is no supervised row.

    The supervised row is what the labels of the train and validation parts give when the whole network learns from them: its
    own answers, or for retrieval its features. Under few-shot it has seen all labels, and is named so.
    """
    rows = {name: judge_frozen(protocol, encoder, setting, why=name)}
    for seed in range(untrained_seeds):
        fresh = f"{UNTRAINED}, seed {seed}"
        rows[fresh] = judge_frozen(protocol, untrained(seed), setting, why=fresh)
    if recipe is None:
        return rows
    model = _train(untrained(recipe.seed), setting, recipe, why=SUPERVISED)
    if protocol == "retrieval":
        rows[SUPERVISED] = judge_frozen(protocol, model.encoder, setting, why=SUPERVISED)
    else:
        learned = f"{SUPERVISED}, all labels" if protocol == "fewshot" else SUPERVISED
        rows[learned] = _answers_of(model, setting, why=SUPERVISED)
    return rows


def finetuned_rows(
    encoder: VideoEncoder, untrained: LoadUntrained, setting: Setting, recipe: Recipe
) -> dict[str, Judged]:
    """{row: Judged} of the whole network trained with labels, from the checkpoint and, by the same recipe, from scratch."""
    starts = {FINETUNED: encoder, SUPERVISED: untrained(recipe.seed)}
    return {
        name: _answers_of(_train(start, setting, recipe, why=name), setting, why=name)
        for name, start in starts.items()
    }


def _train(encoder: VideoEncoder, setting: Setting, recipe: Recipe, *, why: str) -> Classifier:
    return train_with_labels(
        encoder,
        setting.manifest,
        setting.split,
        recipe=recipe,
        device=setting.device,
        cache=setting.cache,
        why=why,
    )


def _answers_of(model: Classifier, setting: Setting, *, why: str) -> Judged:
    """The network's own answers about the test part: the softmax of a video's clips, averaged."""
    split = setting.split
    features = features_of(model.encoder, setting, split.test.tolist(), why=why)
    test = examples_of(split.test, split, features, "test")
    with torch.no_grad():
        probabilities = model.classify.cpu()(test.features).softmax(-1).mean(1)
    return judge_probabilities(
        probabilities, test, torch.from_numpy(split.label[split.fitted]), setting
    )
