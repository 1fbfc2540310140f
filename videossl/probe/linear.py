"""Linear probe: one layer on frozen features, its learning rate and weight decay chosen on the validation part.

Zhang et al., ECCV 2016, section 3.2, with the sweep of later work (Caron et al., ICCV 2021, appendix): features are
standardised by the training part, a video's answer is the mean of its clips' softmax. The test part is seen once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videossl.engine.optim import lr_at
from videossl.probe.examples import Examples
from videossl.rng import generator

LEARNING_RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # of SGD with momentum; chosen
WEIGHT_DECAYS = (0.0, 1e-4, 1e-3, 1e-2, 1e-1)
MOMENTUM = 0.9
NUM_STEPS = 500
BATCH_SIZE = 256  # clips


@dataclass(frozen=True)
class Chosen:
    """The settings that answered the validation part best, and how well; `at_edge`: a wider sweep might do better."""

    lr: float
    weight_decay: float
    validation_accuracy: float
    at_edge: bool


class Standardize(nn.Module):
    """Features less the mean and over the deviation of those it was made of, per channel."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        flat = features.flatten(0, -2)
        self.register_buffer("mean", flat.mean(0))
        self.register_buffer("deviation", flat.std(0, correction=0).clamp_min(1e-6))

    def forward(self, features: Tensor) -> Tensor:
        """Same shape."""
        return (features - self.mean) / self.deviation


def fit_linear(
    features: Tensor,
    labels: Tensor,
    settings: Sequence[tuple[float, float]],
    *,
    num_classes: int,
    seed: int,
    num_steps: int = NUM_STEPS,
) -> tuple[Tensor, Tensor]:
    """A linear layer per (lr, weight decay): weights (S, C, L) and biases (S, L), all fitted side by side.

    `features` (N, C), `labels` (N,). Cross-entropy, SGD with momentum, cosine; weights start at zero and decay, biases do
    not. Batches are drawn from (seed, step).
    """
    count, channels = features.shape
    num_settings = len(settings)
    # Side by side: one product for all layers, and the gradient of softmax regression as it is written in books.
    weight = torch.zeros(channels, num_settings * num_classes)
    bias = torch.zeros(num_settings * num_classes)
    rates = _of_each(num_classes, [lr for lr, _ in settings])
    decays = _of_each(num_classes, [decay for _, decay in settings])
    speed = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for step in range(num_steps):
        scale = lr_at(step, peak=1, warmup_steps=0, total_steps=num_steps, final_share=0)
        x, y = features, labels
        if count > BATCH_SIZE:
            random = generator(seed, "linear probe", step)
            drawn = torch.randint(count, (BATCH_SIZE,), generator=random)
            x, y = features[drawn], labels[drawn]
        scores = torch.addmm(bias, x, weight).view(len(x), num_settings, num_classes)
        surplus = scores.softmax(2) - F.one_hot(y, num_classes)[:, None]
        surplus = surplus.flatten(1) / len(x)
        speed[0] = MOMENTUM * speed[0] + x.T @ surplus + decays * weight
        speed[1] = MOMENTUM * speed[1] + surplus.sum(0)
        weight -= scale * rates * speed[0]
        bias -= scale * rates * speed[1]
    layers = weight.view(channels, num_settings, num_classes).transpose(0, 1)
    return layers, bias.view(num_settings, num_classes)


def _of_each(num_classes: int, values: Sequence[float]) -> Tensor:
    """(S * L,): the value of each setting, for each of its classes."""
    return torch.tensor(values).repeat_interleave(num_classes)


def linear_probe(
    train: Examples, validation: Examples, test: Examples, *, num_classes: int, seed: int
) -> tuple[Tensor, Chosen]:
    """(V, L) probabilities of the test part, by a layer fitted to train and validation with the settings chosen."""
    settings = list(product(LEARNING_RATES, WEIGHT_DECAYS))
    standardize = Standardize(train.features)
    features, labels = train.per_clip
    layers = fit_linear(standardize(features), labels, settings, num_classes=num_classes, seed=seed)
    answered = torch.stack(
        [
            _probabilities(standardize, weight, bias, validation)
            for weight, bias in zip(*layers, strict=True)
        ]
    )
    best, chosen = choose(answered, validation.labels, settings)
    both = join(train, validation)
    standardize = Standardize(both.features)
    features, labels = both.per_clip
    ((weight,), (bias,)) = fit_linear(
        standardize(features), labels, [settings[best]], num_classes=num_classes, seed=seed
    )
    return _probabilities(standardize, weight, bias, test), chosen


def choose(
    answered: Tensor, labels: Tensor, settings: Sequence[tuple[float, float]]
) -> tuple[int, Chosen]:
    """Which of S settings answers best: `answered` (S, V, L) probabilities. Of equally accurate ones the surest."""
    accuracy = (answered.argmax(2) == labels).double().mean(1)
    truth = answered.gather(2, labels.expand(len(answered), -1)[..., None])
    surprise = -truth.clamp_min(1e-12).log().double().mean((1, 2))
    order = sorted(range(len(settings)), key=lambda i: (-float(accuracy[i]), float(surprise[i])))
    best = order[0]
    lr, decay = settings[best]
    rates, decays = [pair[0] for pair in settings], [pair[1] for pair in settings]
    # No decay at all is a natural end, not an edge.
    at_edge = lr in (min(rates), max(rates)) or (decay == max(decays) and max(decays) > 0)
    return best, Chosen(lr, decay, float(accuracy[best]), at_edge)


def join(first: Examples, second: Examples) -> Examples:
    """Both parts as one."""
    return Examples(
        torch.cat([first.features, second.features]),
        torch.cat([first.labels, second.labels]),
        np.concatenate([first.groups, second.groups]),
        np.concatenate([first.rows, second.rows]),
    )


def _probabilities(
    standardize: Standardize, weight: Tensor, bias: Tensor, examples: Examples
) -> Tensor:
    return (standardize(examples.features) @ weight + bias).softmax(-1).mean(1)
