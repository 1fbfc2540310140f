"""P9: the tasks' own heads trained on an encoder that has learned nothing. What they reach is not the encoder's merit."""

import torch

from videossl.audit.subject import Subject
from videossl.engine.build import autocast, build_model, build_optimizer, place
from videossl.engine.multitask import MultiTask
from videossl.engine.trainer import PREPARATION_VIDEOS
from videossl.rng import fold

CALIBRATION_BATCHES = 4  # whose statistics normalise the frozen encoder's features


def with_trained_heads(subject: Subject, num_steps: int) -> MultiTask:
    """A fresh model whose heads have been trained for `num_steps` batches as a run would, its encoder frozen."""
    config, feed = subject.config, subject.feed
    torch.manual_seed(fold(config.seed, "audit random encoder"))
    model = build_model(config)
    place(model, config, subject.world)
    prepared = feed.first_videos(subject.train, PREPARATION_VIDEOS)
    for _, task in model.named_tasks():
        task.prepare(prepared, config.seed)
    model.encoder.requires_grad_(False)
    optimizer = build_optimizer(
        model,
        lr=config.optim.lr,
        weight_decay=config.optim.weight_decay,
        betas=config.optim.betas,
    )
    never = torch.zeros((), dtype=torch.bool, device=feed.device)
    steps = num_steps + CALIBRATION_BATCHES
    for step, raw in enumerate(subject.batches("train", steps, why="heads on a random encoder")):
        rng = feed.rows("audit heads", step, len(raw.video_ids))
        model.train()
        # Normalised by its own statistics, but not learning: features of untrained weights are badly scaled otherwise.
        model.encoder.train(step < CALIBRATION_BATCHES)
        with autocast(config, feed.device):
            loss, _ = model(model.make_views(feed.clips(raw, rng), rng))
        if step < CALIBRATION_BATCHES:
            continue
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        model.after_step(never)
    return model.eval()
