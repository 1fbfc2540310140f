"""Whether colours that a task hides reach the encoder all the same: what is hidden is changed, and nothing may change.

A channel counts as hidden in a video if the target frame, the last of the view `frames` or `grey`, shows nothing of it. It
must then be hidden in every frame: through kernels in time a coloured reference reaches the features of the target.
"""

import inspect
from dataclasses import replace

import torch
from torch import Tensor

from videossl.audit.colours import copies_colours
from videossl.audit.findings import Check
from videossl.audit.subject import Subject
from videossl.pretext.task import PretextTask
from videossl.rng import generator
from videossl.types import ClipBatch, Views

NAME = "hidden colours"


def hidden_colour_check(subject: Subject, task: PretextTask, batch: ClipBatch) -> Check:
    """Of one task on one batch in the evaluation form."""
    subject.model.eval()
    views = _views(subject, task, batch)
    hidden = _hidden_channels(views)
    if not bool(hidden.any(1).all()):
        share = float((~hidden.any(1)).float().mean())
        says = f"colour leaks: the target shows all its channels in {share:.0%} of the videos"
        return Check("colour", NAME, False, says, {"open": share})
    changed = _repainted(batch, task, hidden, subject.config.seed)
    other = _views(subject, task, changed)
    difference = (_shown(views) - _shown(other)).abs()
    shown = [t for t in range(difference.shape[2]) if float(difference[:, :, t].max()) > 0]
    before, after = (_features(subject, task, v)[:, :, -1] for v in (views, other))
    reaches = not torch.equal(before, after)
    gradient = _gradient(subject, task, batch, hidden)
    numbers = {"frames shown": len(shown), "gradient": gradient}
    if not shown and not reaches and gradient == 0:
        says = "hidden colours reach neither the inputs nor the features, and their gradient is 0"
        return Check("colour", NAME, True, says, numbers)
    ways = []
    if shown:
        ways.append(f"the encoder's input frames {', '.join(map(str, shown))}")
    if (reaches or gradient > 0) and len(_shown(views)[0, 0]) - 1 not in shown:
        ways.append("the encoder's kernels in time, into the features of the target")
    return Check("colour", NAME, False, f"colour leaks through {' and '.join(ways)}", numbers)


def hides_colours(views: Views) -> bool:
    """Whether these are views of a task that hides colours from the encoder."""
    return copies_colours(views) or "grey" in views.inputs


def _shown(views: Views) -> Tensor:
    """(B, 3, T, H, W): what the encoder sees."""
    return views.inputs["grey" if "grey" in views.inputs else "frames"]


def _views(subject: Subject, task: PretextTask, batch: ClipBatch) -> Views:
    with torch.no_grad():
        return task.make_views(batch, subject.feed.rows("audit colours", 0, len(batch)))


def _hidden_channels(views: Views) -> Tensor:
    """(B, 3) bool: channels of which the target frame shows nothing."""
    target = _shown(views)[:, :, -1]
    return target.flatten(2).abs().amax(2) == 0


def _repainted(batch: ClipBatch, task: PretextTask, hidden: Tensor, seed: int) -> ClipBatch:
    """The batch with other colours in the hidden channels of every frame."""
    clips = batch.clips[task.clip_spec]
    noise = torch.randn(clips.shape, generator=generator(seed, "audit colours")).to(clips)
    repainted = clips + noise * hidden[:, None, :, None, None, None]
    return replace(batch, clips={**batch.clips, task.clip_spec: repainted})


def _features(subject: Subject, task: PretextTask, views: Views) -> Tensor:
    with torch.no_grad():
        return subject.model.encoder(_shown(views))[task.stage].data


def _gradient(subject: Subject, task: PretextTask, batch: ClipBatch, hidden: Tensor) -> float:
    """The greatest |derivative| of the target's features by the hidden channels of any frame."""
    clips = batch.clips[task.clip_spec].detach().clone().requires_grad_()
    leaf = replace(batch, clips={**batch.clips, task.clip_spec: clips})
    make_views = inspect.unwrap(type(task).make_views)  # without its no_grad
    views = make_views(task, leaf, subject.feed.rows("audit colours", 0, len(batch)))
    features = subject.model.encoder(_shown(views))[task.stage].data
    (gradient,) = torch.autograd.grad(features[:, :, -1].square().sum(), clips, allow_unused=True)
    if gradient is None:
        return 0.0
    by_channel = gradient.abs().amax(dim=(1, 3, 4, 5))  # (B, 3)
    return float((by_channel * hidden).max())
