"""What a model answers on videos that it never trained on: every task's answers, row by row, with the video of each."""

import contextlib
import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from videossl.config import Config, validate
from videossl.data.dataset import ClipDataset
from videossl.data.manifest import Manifest, read_manifest
from videossl.distributed import World
from videossl.engine.build import autocast, build_model
from videossl.engine.checkpoint import load_checkpoint
from videossl.engine.feed import Feed, Quarantine
from videossl.engine.metrics import Tallies
from videossl.engine.multitask import MultiTask
from videossl.engine.split import split_of_run
from videossl.errors import UserError
from videossl.io.progress import track
from videossl.models.encoder_sources import find_checkpoint
from videossl.types import Answers

log = logging.getLogger("videossl")


@dataclass(frozen=True)
class Run:
    """A trained run: its config, its model in evaluation mode, and the step it has reached."""

    config: Config
    model: MultiTask
    step: int
    folder: Path  # which remembers what it held out


@dataclass(frozen=True)
class HeldOutAnswers:
    """`answers[task]` of all batches, `videos` naming manifest rows; `means[task]` are the task's own tallies; `pictures`
    are drawn of the first batch."""

    answers: dict[str, Answers]
    means: dict[str, dict[str, float]]
    pictures: dict[str, Tensor]
    num_videos: int


def load_run(path: str | Path) -> Run:
    """The run of a folder or checkpoint file; raises UserError if there is none, or it is of another version."""
    found = find_checkpoint(path)
    state = load_checkpoint(found)
    config = validate(Config, state["config"])
    model = build_model(config)
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise UserError(
            f"checkpoint {path} does not fit its own config: {str(error).splitlines()[0]} (another version's?)"
        ) from error
    return Run(config, model.eval(), int(state["step"]), found.parent.parent)


def unseen_videos(run: Run, manifest_path: Path | None) -> tuple[Manifest, np.ndarray]:
    """A manifest and its rows that the run has not trained on: neither the video nor another of its source group.

    Without a path it is the run's own manifest, and the rows are what the run held out. Raises UserError if none is left.
    """
    config = run.config
    own = read_manifest(Path(str(config.data.manifest)))
    split = split_of_run(
        own, config.data.holdout_fraction, config.seed, run=run.folder, may_change=True
    )
    if manifest_path is None or manifest_path == Path(str(config.data.manifest)):
        if not len(split.heldout):
            raise UserError(
                f"the run held no video of {config.data.manifest} out: name another --manifest, or train with "
                "data.holdout_fraction above 0"
            )
        return own, split.heldout
    other = read_manifest(manifest_path)
    for _, task in run.model.named_tasks():
        task.forget_videos()  # they are rows of the run's own manifest
    trained_groups = set(np.asarray(own.strings("group"))[split.train])
    trained_videos = {str(own[row].source) for row in split.train.tolist()}
    seen = np.array(
        [
            group in trained_groups or str(other[row].source) in trained_videos
            for row, group in enumerate(other.strings("group"))
        ],
        dtype=bool,
    )
    if seen.all():
        raise UserError(f"the run has trained on every video of {manifest_path}, or on its source")
    if seen.any():
        log.info(
            "%d of %d videos left out: the run trained on them or their source",
            seen.sum(),
            len(seen),
        )
    return other, np.flatnonzero(~seen)


@torch.no_grad()
def collect_answers(
    config: Config,
    model: MultiTask,
    data: ClipDataset,
    *,
    out: Path,
    clips_per_video: int,
    device: torch.device,
) -> HeldOutAnswers:
    """Asks each video `clips_per_video` times, each time about another clip, and keeps what the tasks answer.

    Clips are those of evaluation: the centre crop, no jitter. Videos that fail go to `out`/quarantine.jsonl.
    """
    world = World(rank=0, size=1, local_rank=0, device=device)
    feed = Feed(config, world, Quarantine(out, rank=0, max_bad_fraction=1.0))
    model.to(device).eval()
    count = clips_per_video * len(data)
    size = config.data.videos_per_step
    steps = -(-count // size)
    tallies, pictures = Tallies(), {}
    parts: dict[str, list[Answers]] = {}
    with contextlib.closing(feed.batches(data, 0, steps)) as batches:
        for step, raw in enumerate(track(batches, description="asking", total=steps)):
            feed.quarantine.record(raw.failures, step=0)
            rng = feed.rows("heldout views", step, len(raw.video_ids))
            with autocast(config, device):
                views = model.make_views(feed.clips(raw, None), rng)
                features = model.encode(views)
                results = {}
                for name, task in model.named_tasks():
                    targets = views[name].targets
                    results[name] = task(features[name], targets)
                    answers = task.answers(features[name], targets)
                    if answers is not None:
                        # Past the last position of the last round the batch is filled up again.
                        asked = min(size, count - step * size)
                        parts.setdefault(name, []).append(_first(answers, asked, raw.video_ids))
                if step == 0:
                    pictures = model.draw(views)
            tallies.add(results)
    joined = {name: _join(of_task) for name, of_task in parts.items()}
    return HeldOutAnswers(joined, tallies.values(), pictures, len(data))


def _first(answers: Answers, num_videos: int, video_ids: Tensor) -> Answers:
    """The answers on the first videos of a batch, with the manifest's rows as videos, on the CPU."""
    if answers.chance is not None:
        answers = _found_or_not(answers)
    keep = answers.videos < num_videos
    weights = (
        torch.ones_like(keep, dtype=torch.float32) if answers.weights is None else answers.weights
    )
    return Answers(
        answers.scores[keep].float().cpu(),
        answers.labels[keep].cpu(),
        video_ids.cpu()[answers.videos[keep].cpu()],
        weights[keep].float().cpu(),
        **{
            name: {key: value[keep].cpu() for key, value in getattr(answers, name).items()}
            for name in ("rivals", "numbers", "subsets")
        },
        chance=None if answers.chance is None else answers.chance[keep].cpu(),
    )


def _found_or_not(answers: Answers) -> Answers:
    """Candidates of a batch as two answers, not found and found: their scores would fill the memory, and say no more."""
    found = (answers.scores.argmax(1) == answers.labels).long()
    rivals = {name: (said == answers.labels).long() for name, said in answers.rivals.items()}
    scores = torch.nn.functional.one_hot(found, 2).float()
    return dataclasses.replace(
        answers, scores=scores, labels=torch.ones_like(answers.labels), rivals=rivals
    )


def _join(parts: list[Answers]) -> Answers:
    def joined(pick: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
        return {key: torch.cat([getattr(part, name)[key] for part in parts]) for key in pick}

    first = parts[0]
    return dataclasses.replace(
        first,
        scores=torch.cat([part.scores for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        videos=torch.cat([part.videos for part in parts]),
        weights=torch.cat([part.weights for part in parts if part.weights is not None]),
        rivals=joined(first.rivals, "rivals"),
        numbers=joined(first.numbers, "numbers"),
        subsets=joined(first.subsets, "subsets"),
        chance=None
        if first.chance is None
        else torch.cat([part.chance for part in parts if part.chance is not None]),
    )
