"""The rows of a probe's table: the checkpoint, the same encoder untrained, and one trained with labels from scratch."""

from collections.abc import Callable

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
