"""Attentive probe: a learned query looks at all cells of a frozen map, and a linear layer answers.

Bardes et al., V-JEPA, TMLR 2024, section 4.2 (one cross-attention block with an MLP); the cells are means over at most
4 x 4 x 4 parts of the map. Learning rate and weight decay are chosen on the validation part.
"""

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videossl.engine.optim import lr_at, parameter_groups
from videossl.probe.examples import Examples
from videossl.probe.linear import Chosen, Standardize, choose, join
from videossl.progress import track
from videossl.rng import fold, generator

LEARNING_RATES = (3e-4, 1e-3, 3e-3)  # of AdamW; chosen
WEIGHT_DECAYS = (0.01, 0.1, 1.0)
NUM_STEPS = 300
BATCH_SIZE = 64  # clips
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
    num_steps: int = NUM_STEPS,
) -> tuple[Tensor, Chosen]:
    """(V, L) probabilities of the test part; examples hold tokens (V, K, P, C)."""
    settings = list(product(LEARNING_RATES, WEIGHT_DECAYS))
    answered = []
    for lr, decay in track(settings, description="attentive probe: settings tried"):
        head = _fit(
            train, lr, decay, num_classes=num_classes, seed=seed, device=device, num_steps=num_steps
        )
        answered.append(_probabilities(head, validation, device))
    best, chosen = choose(torch.stack(answered), validation.labels, settings)
    head = _fit(
        join(train, validation),
        *settings[best],
        num_classes=num_classes,
        seed=seed,
        device=device,
        num_steps=num_steps,
    )
    return _probabilities(head, test, device), chosen


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
        drawn = torch.randint(len(tokens), (min(BATCH_SIZE, len(tokens)),), generator=random)
        loss = F.cross_entropy(head(tokens[drawn].to(device)), labels[drawn].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head.eval()


@torch.no_grad()
def _probabilities(head: nn.Module, examples: Examples, device: torch.device) -> Tensor:
    videos = [
        head(clips.to(device)).softmax(-1).mean(0).cpu() for clips in examples.features
    ]  # (K, P, C) each
    return torch.stack(videos)
