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

from videossl.engine.build import lr_at, parameter_groups
from videossl.errors import UserError
from videossl.io.progress import track
from videossl.probe.labelled_split import Examples
from videossl.rng import fold, generator

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


ATTENTIVE_LEARNING_RATES = (3e-4, 1e-3, 3e-3)  # of AdamW; chosen
ATTENTIVE_WEIGHT_DECAYS = (0.01, 0.1, 1.0)
ATTENTIVE_NUM_STEPS = 300
ATTENTIVE_BATCH_SIZE = 64  # clips
NUM_HEADS = 4


class AttentiveHead(nn.Module):
    """(N, P, C) standardised tokens to (N, num_classes) scores."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        heads = NUM_HEADS if channels % NUM_HEADS == 0 else 1
        self.query = nn.Parameter(torch.randn(1, 1, channels) * 0.02)
        self.norm_tokens = nn.LayerNorm(channels)
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )
        self.classify = nn.Linear(channels, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """See class."""
        tokens = self.norm_tokens(tokens)
        query = self.query.expand(len(tokens), -1, -1)
        seen = query + self.attention(query, tokens, tokens, need_weights=False)[0]
        scores: Tensor = self.classify((seen + self.mlp(self.norm(seen)))[:, 0])
        return scores


def attentive_probe(
    train: Examples,
    validation: Examples,
    test: Examples,
    *,
    num_classes: int,
    seed: int,
    device: torch.device,
    num_steps: int = ATTENTIVE_NUM_STEPS,
) -> tuple[Tensor, Chosen]:
    """(V, L) probabilities of the test part; examples hold tokens (V, K, P, C)."""
    settings = list(product(ATTENTIVE_LEARNING_RATES, ATTENTIVE_WEIGHT_DECAYS))
    answered = []
    for lr, decay in track(settings, description="attentive probe: settings tried"):
        head = _fit(
            train, lr, decay, num_classes=num_classes, seed=seed, device=device, num_steps=num_steps
        )
        answered.append(_attentive_probabilities(head, validation, device))
    best, chosen = choose(torch.stack(answered), validation.labels, settings)
    head = _fit(
        join(train, validation),
        *settings[best],
        num_classes=num_classes,
        seed=seed,
        device=device,
        num_steps=num_steps,
    )
    return _attentive_probabilities(head, test, device), chosen


def _fit(
    examples: Examples,
    lr: float,
    weight_decay: float,
    *,
    num_classes: int,
    seed: int,
    device: torch.device,
    num_steps: int,
) -> nn.Module:
    tokens, labels = examples.per_clip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fold(seed, "attentive probe"))
        head = nn.Sequential(
            Standardize(examples.features), AttentiveHead(tokens.shape[-1], num_classes)
        )
    head = head.to(device).train()
    optimizer = torch.optim.AdamW(parameter_groups(head, weight_decay), lr=lr)
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(
                step, peak=lr, warmup_steps=num_steps // 20, total_steps=num_steps, final_share=0
            )
        random = generator(seed, "attentive probe", step)
        drawn = torch.randint(
            len(tokens), (min(ATTENTIVE_BATCH_SIZE, len(tokens)),), generator=random
        )
        loss = F.cross_entropy(head(tokens[drawn].to(device)), labels[drawn].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head.eval()


@torch.no_grad()
def _attentive_probabilities(head: nn.Module, examples: Examples, device: torch.device) -> Tensor:
    videos = [
        head(clips.to(device)).softmax(-1).mean(0).cpu() for clips in examples.features
    ]  # (K, P, C) each
    return torch.stack(videos)


NUM_NEIGHBOURS, TEMPERATURE = 20, 0.07  # Wu et al., CVPR 2018, section 3.4
RECALLS = (1, 5, 10, 20, 50)


@dataclass(frozen=True)
class KnnScore:
    """Top-1 accuracy over `count` videos of `num_classes` classes; `chance` is the share of the most frequent one."""

    accuracy: float
    chance: float
    count: int
    num_classes: int


def similarities(queries: Tensor, gallery: Tensor) -> Tensor:
    """(Q, G) float64 cosines of (Q, C) and (G, C)."""
    return F.normalize(queries.double(), dim=1) @ F.normalize(gallery.double(), dim=1).T


def votes(
    similarity: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    neighbours: int = NUM_NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """(Q, L) shares of the votes of the nearest of G videos, each weighted by exp(s / temperature); -inf never votes.

    Wu et al., CVPR 2018, section 3.4. `similarity` (Q, G), `labels` (G,).
    """
    nearest, index = similarity.topk(min(neighbours, similarity.shape[1]), dim=1)
    weights = ((nearest - nearest[:, :1]) / temperature).exp()  # the same shares, and no overflow
    found = torch.zeros(len(similarity), num_classes, dtype=similarity.dtype)
    found.scatter_add_(1, labels[index], weights)
    return found / found.sum(1, keepdim=True)


def knn_score(
    features: Tensor,
    labels: Sequence[str],
    groups: Sequence[str],
    *,
    neighbours: int = NUM_NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> KnnScore:
    """Classifies each video by the videos of all other groups.

    `features` (N, C); `labels` and `groups` one per row. Raises UserError if there is but one class, or one group.
    """
    names, label = np.unique(np.asarray(labels), return_inverse=True)
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2 or group.max() < 1:
        raise UserError(
            f"kNN needs two classes and two source groups at least, got {len(names)} and {group.max() + 1}"
        )
    target, source = torch.from_numpy(label), torch.from_numpy(group)
    similarity = similarities(features.cpu(), features.cpu())
    similarity.masked_fill_(source[:, None] == source, -torch.inf)  # itself among them
    found = votes(
        similarity, target, num_classes=len(names), neighbours=neighbours, temperature=temperature
    )
    right = found.argmax(1) == target
    chance = np.bincount(label).max() / len(label)
    return KnnScore(float(right.double().mean()), float(chance), len(label), len(names))


def hits(similarity: Tensor, queries: Tensor, gallery: Tensor, k: int) -> Tensor:
    """(Q,) 1 where any of the k most similar gallery videos has the query's class, else 0.

    Büchler et al., ECCV 2018, section 4.2. `similarity` (Q, G), class numbers `queries` (Q,) and `gallery` (G,).
    """
    from torchmetrics.functional.retrieval import (
        retrieval_hit_rate,
    )  # slow to import, and `train` does not ask

    return torch.stack(
        [
            retrieval_hit_rate(cosines, gallery == query, top_k=min(k, len(gallery)))
            for cosines, query in zip(similarity, queries, strict=True)
        ]
    ).double()


def chance_of_hit(queries: Tensor, gallery: Tensor, k: int) -> float:
    """What `hits` has on average where the gallery is in random order (hypergeometric)."""
    from scipy.stats import hypergeom  # scipy.stats takes a second to load

    counts = np.bincount(gallery.numpy(), minlength=int(queries.max()) + 1)
    drawn = min(k, len(gallery))
    missed = hypergeom.pmf(0, len(gallery), counts[queries.numpy()], drawn)
    return float((1 - missed).mean())


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
