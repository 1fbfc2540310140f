"""The parts of a probe against independent references: scikit-learn, slow loops, planted signals."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from videossl.probe.classifiers import (
    attentive_probe,
    choose,
    draw_shots,
    few_shot,
    fit_linear,
    linear_probe,
)
from videossl.probe.labelled_split import Examples
from videossl.probe.protocols import chance_of_classes, difference, judge_classes


def examples(features: torch.Tensor, labels: torch.Tensor) -> Examples:
    """One source group a video."""
    rows = np.arange(len(labels))
    return Examples(features, labels, np.asarray([f"g{row}" for row in rows]), rows)


def clouds(count: int, seed: int, *, classes: int = 3, spread: float = 1.0) -> Examples:
    """(count, 2 clips, 6) points about a centre for each class."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = torch.eye(6)[:classes] * 2
    noise = spread * torch.randn(count, 2, 6, generator=random)
    return examples(centres[labels][:, None] + noise, labels)


def test_a_linear_layer_reaches_the_optimum_that_scikit_learn_finds():
    features, labels = clouds(60, 0).per_clip  # 120 rows: each step sees them all
    decay = 0.05
    weight, bias = fit_linear(
        features, labels, [(0.3, decay)], num_classes=3, seed=0, num_steps=3000
    )
    reference = LogisticRegression(C=1 / (len(features) * decay), max_iter=10_000, tol=1e-8)
    reference.fit(features.numpy(), labels.numpy())
    ours = (features @ weight[0] + bias[0]).softmax(-1).double().numpy()
    np.testing.assert_allclose(ours, reference.predict_proba(features.numpy()), atol=2e-3)


def test_settings_fitted_side_by_side_are_each_fitted_alone():
    features, labels = clouds(400, 1).per_clip  # more than a batch
    settings = [(0.1, 0.0), (0.03, 0.01), (1.0, 0.1)]
    together = fit_linear(features, labels, settings, num_classes=3, seed=0, num_steps=40)
    for index, setting in enumerate(settings):
        alone = fit_linear(features, labels, [setting], num_classes=3, seed=0, num_steps=40)
        torch.testing.assert_close(together[0][index], alone[0][0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(together[1][index], alone[1][0], atol=1e-5, rtol=1e-4)


def test_settings_are_chosen_by_validation_accuracy_and_then_by_sureness():
    labels = torch.tensor([0, 1])
    right = torch.tensor([[0.6, 0.4], [0.4, 0.6]])
    surer = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    wrong = torch.tensor([[0.01, 0.99], [0.01, 0.99]])
    settings = [(0.1, 0.0), (0.2, 0.0), (0.3, 0.0)]
    best, chosen = choose(torch.stack([right, surer, wrong]), labels, settings)
    assert best == 1
    assert (chosen.lr, chosen.validation_accuracy, chosen.at_edge) == (0.2, 1.0, False)
    assert choose(torch.stack([surer, right, wrong]), labels, settings)[1].at_edge


def test_the_linear_probe_answers_well_and_never_looks_at_test_labels():
    train, validation, test = clouds(60, 0), clouds(30, 1), clouds(90, 2)
    probabilities, chosen = linear_probe(train, validation, test, num_classes=3, seed=0)
    accuracy = float((probabilities.argmax(1) == test.labels).double().mean())
    reference = LogisticRegression(max_iter=1000).fit(*map(np.asarray, train.per_clip))
    votes = reference.predict_proba(test.features.flatten(0, 1)).reshape(90, 2, 3).mean(1)
    assert accuracy >= (votes.argmax(1) == test.labels.numpy()).mean() - 0.05
    assert 0 < chosen.validation_accuracy <= 1
    blind = examples(test.features, torch.zeros_like(test.labels))
    assert torch.equal(
        linear_probe(train, validation, blind, num_classes=3, seed=0)[0], probabilities
    )


def test_the_attentive_probe_finds_the_one_cell_that_tells():
    """The class is in one of 8 cells, anywhere; their mean hardly shows it."""

    def hidden(count: int, seed: int) -> Examples:
        random = torch.Generator().manual_seed(seed)
        labels = torch.arange(count) % 2
        tokens = torch.randn(count, 1, 8, 8, generator=random)
        tokens[:, :, :, :3] *= 0.3
        place = torch.randint(8, (count,), generator=random)
        tokens[torch.arange(count), 0, place, 0] = 6.0
        tokens[torch.arange(count), 0, place, 1] = torch.where(labels == 1, 6.0, -6.0)
        return examples(tokens, labels)

    test = hidden(100, 2)
    probabilities, _ = attentive_probe(
        hidden(200, 0),
        hidden(40, 1),
        test,
        num_classes=2,
        seed=0,
        device=torch.device("cpu"),
        num_steps=100,
    )
    assert float((probabilities.argmax(1) == test.labels).double().mean()) > 0.95


def test_shots_are_so_many_of_each_class_and_more_shots_add_to_fewer():
    labels = torch.tensor([0] * 6 + [1] * 9 + [2] * 5)
    one, five = draw_shots(labels, 1, seed=0), draw_shots(labels, 5, seed=0)
    assert np.bincount(labels.numpy()[five]).tolist() == [5, 5, 5]
    assert set(one) < set(five)
    assert draw_shots(labels, 6, seed=0) is None
    assert draw_shots(labels, 5, seed=1).tolist() != five.tolist()


def test_few_shots_give_probabilities_of_all_classes():
    found = few_shot(clouds(30, 0), clouds(90, 1), 5, num_classes=3, seed=0)
    assert found.shape == (90, 3)
    assert float((found.argmax(1) == clouds(90, 1).labels).double().mean()) > 0.7
    assert few_shot(clouds(30, 0), clouds(90, 1), 11, num_classes=3, seed=0) is None


def test_judged_numbers_equal_slow_loops():
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(7, (50,), generator=random)
    probabilities = torch.rand(50, 7, generator=random).softmax(1)
    judged = judge_classes(probabilities, examples(torch.zeros(50, 1, 2), labels), num_classes=7)
    right, top5, confusion = 0, 0, np.zeros((7, 7), dtype=int)
    for row, label in zip(probabilities, labels.tolist(), strict=True):
        order = sorted(range(7), key=lambda c: -float(row[c]))
        right += order[0] == label
        top5 += label in order[:5]
        confusion[label, order[0]] += 1
    assert judged["top1"][0] == pytest.approx(right / 50)
    assert judged["top1"][1] < right / 50 < judged["top1"][2]
    assert judged["top5"] == pytest.approx(top5 / 50)
    assert judged["confusion"] == confusion.tolist()
    recalls = [confusion[c, c] / confusion[c].sum() for c in range(7) if confusion[c].sum()]
    assert judged["balanced_accuracy"] == pytest.approx(np.mean(recalls))


def test_a_difference_on_the_same_videos_is_surer_than_two_intervals():
    first, second = torch.ones(40), torch.ones(40)
    second[::4] = 0
    found = difference(first, second, [f"g{i}" for i in range(40)])
    assert found.estimate == pytest.approx(0.25)
    assert 0 < found.low < 0.25 < found.high
    assert difference(first, first, ["g"] * 40) == (0.0, 0.0, 0.0)


def test_chance_answers_the_class_that_is_most_frequent_in_training():
    fitted, test = torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1, 0])
    assert chance_of_classes(fitted, test, 2) == {"top1": 0.25, "balanced_accuracy": 0.5}


def test_a_class_without_training_videos_has_no_column_but_its_place():
    """Answers are compared by class number: those of other classes must not move up."""
    train = clouds(30, 0)
    train = train.select(np.flatnonzero(train.labels.numpy() != 1))
    found = few_shot(train, clouds(90, 1), 5, num_classes=3, seed=0)
    assert found.shape == (90, 3)
    assert float(found[:, 1].max()) == 0
    last = clouds(90, 1).labels == 2
    assert float((found[last].argmax(1) == 2).double().mean()) > 0.8


def test_a_class_that_cannot_be_decoded_for_training_is_refused():
    from videossl.errors import UserError
    from videossl.probe.embedding import VideoFeatures
    from videossl.probe.labelled_split import LabelledSplit, examples_of

    label, rows = np.array([0, 1, 1]), np.arange(3)
    split = LabelledSplit(rows, rows, rows, label, np.array(list("abc")), ("run", "walk"))
    features = {row: VideoFeatures(row, torch.zeros(1, 2)) for row in (1, 2)}
    features[0] = VideoFeatures(0, None, "cut off")
    with pytest.raises(UserError, match=r"no video of class 'run' is left.*cut off"):
        examples_of(rows, split, features, "train")
    assert len(examples_of(rows, split, features, "test")) == 2
