"""The rows of a probe's table: the checkpoint, the same encoder untrained, and one trained with labels from scratch."""

from collections.abc import Callable, Sequence

import torch

from videossl.export.video_encoder import VideoEncoder
from videossl.probe.examples import examples_of
from videossl.probe.protocols import (
    Judged,
    Setting,
    features_of,
    judge_frozen,
    judge_probabilities,
)
from videossl.probe.supervised import Classifier, Recipe, train_with_labels

TRAINED, UNTRAINED, SUPERVISED = "trained", "untrained", "supervised from scratch"
FINETUNED = "fine-tuned"

LoadUntrained = Callable[[int], VideoEncoder]  # of a seed


def frozen_rows(
    protocol: str,
    encoder: VideoEncoder,
    untrained: LoadUntrained,
    setting: Setting,
    *,
    untrained_seeds: int,
    recipe: Recipe | None,
) -> dict[str, Judged]:
    """{row: Judged} of a protocol that learns from frozen features; without a recipe no supervised row.

    The supervised row is what the same protocol makes of the features of an encoder that was trained with the labels of
    the train and validation parts; its own linear layer's top-1 stands beside.
    """
    rows = {TRAINED: judge_frozen(protocol, encoder, setting, why=TRAINED)}
    for seed in range(untrained_seeds):
        name = f"{UNTRAINED}, seed {seed}"
        rows[name] = judge_frozen(protocol, untrained(seed), setting, why=name)
    if recipe is not None:
        model = _train(untrained(recipe.seed), setting, recipe, why=SUPERVISED)
        judged = judge_frozen(protocol, model.encoder, setting, why=SUPERVISED)
        own = _answers_of(model, setting, setting.split.rows, why=SUPERVISED)
        judged.numbers["own_layer_top1"] = own.numbers["top1"]
        rows[SUPERVISED] = judged
    return rows


def finetuned_rows(
    encoder: VideoEncoder, untrained: LoadUntrained, setting: Setting, recipe: Recipe
) -> dict[str, Judged]:
    """{row: Judged} of the whole network trained with labels, from the checkpoint and, by the same recipe, from scratch."""
    starts = {FINETUNED: encoder, SUPERVISED: untrained(recipe.seed)}
    rows = setting.split.test.tolist()
    return {
        name: _answers_of(_train(start, setting, recipe, why=name), setting, rows, why=name)
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


def _answers_of(model: Classifier, setting: Setting, rows: Sequence[int], *, why: str) -> Judged:
    """The network's own answers about the test part: the softmax of a video's clips, averaged."""
    features = features_of(model.encoder, setting, rows, why=why)
    test = examples_of(setting.split.test, setting.split, features, "test")
    with torch.no_grad():
        probabilities = model.classify.cpu()(test.features).softmax(-1).mean(1)
    return judge_probabilities(probabilities, test, setting)
