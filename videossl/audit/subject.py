"""What is audited: a config's tasks on its two sets of videos, and clips in the forms that a cheat may hide in."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from videossl.config import Config, load_config, validate, with_overrides
from videossl.data.dataset import ClipDataset, RawClips
from videossl.distributed import World
from videossl.engine.build import build_datasets, build_model, place
from videossl.engine.feed import Feed, Quarantine
from videossl.engine.multitask import MultiTask
from videossl.engine.trainer import PREPARATION_VIDEOS
from videossl.errors import UserError
from videossl.io.progress import track
from videossl.rng import fold, generator
from videossl.types import ClipBatch, Views

# evaluation, training, static, flicker; or a way in which files were coded anew, shown as in evaluation
Form = str
FORMS: tuple[Form, ...] = ("evaluation", "training", "static", "flicker")
Side = Literal["train", "heldout"]
FLICKER = (
    0.5  # of normalised L, 12 L units: enough that tasks which leave out what does not change ask
)


@dataclass(frozen=True)
class Seen:
    """One task's views of one batch in one form."""

    side: Side
    form: Form
    views: Views
    videos: np.ndarray  # (B,) rows of the manifest
    positions: np.ndarray  # (B,) of the dataset


class Subject:
    """The config's model, datasets and feed, as a run of it would have them; `is_trained` with a checkpoint's state.
    `run` is the folder of that, whose held-out videos are judged on.

    Raises UserError for a config without held-out videos and for a checkpoint of other tasks.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        state: dict[str, Any] | None = None,
        *,
        run: Path | None = None,
    ) -> None:
        self.config, self.world = config, world
        torch.manual_seed(fold(config.seed, "weights"))
        self.model: MultiTask = build_model(config)
        self.train, heldout, _ = build_datasets(config, self.model, world, run=run, may_change=True)
        if heldout is None:
            raise UserError(
                "data.holdout_fraction is 0: cheats are judged on held-out videos; set it above 0"
            )
        self.heldout = heldout
        quarantine = Quarantine(
            Path(config.out), rank=0, max_bad_fraction=config.data.max_bad_fraction
        )
        self.feed = Feed(config, world, quarantine)
        place(self.model, config, world)
        self.is_trained = state is not None
        if state is not None:
            _load(self.model, state)
            return
        batch = self.feed.first_videos(self.train, PREPARATION_VIDEOS)
        for _, task in self.model.named_tasks():
            task.prepare(batch, config.seed)

    def data(self, side: Side) -> ClipDataset:
        """The dataset of one side of the split."""
        return self.train if side == "train" else self.heldout

    def batches(self, side: Side, count: int, *, why: str) -> Iterator[RawClips]:
        """The first `count` decoded batches, with progress."""
        return self.batches_of(self.data(side), count, why=why)

    def batches_of(self, data: ClipDataset, count: int, *, why: str) -> Iterator[RawClips]:
        """The same of any dataset of the same specs."""
        batches = self.feed.batches(data, 0, count)
        with contextlib.closing(batches):
            for raw in track(batches, description=why, total=count):
                self.feed.quarantine.record(raw.failures, step=0)
                yield raw

    def forms(self, side: Side, raw: RawClips, index: int) -> Iterator[tuple[Form, ClipBatch]]:
        """Batch `index` of a side as evaluation and training have it, and of videos in which nothing happens.

        `static` repeats one frame, `flicker` besides brightens each by a number of its own: whatever the order, speed or
        direction in which such frames are shown, they are equally likely.
        """
        batch = self.feed.clips(raw, None)
        yield "evaluation", batch
        rng = self.feed.rows(f"audit crops {side}", index, len(raw.video_ids))
        yield "training", self.feed.clips(raw, rng)
        still = {spec: _stilled(clip) for spec, clip in batch.clips.items()}
        yield "static", replace(batch, clips=still)
        # Another one on each side: a cheater would know again what it has learned.
        random = generator(self.config.seed, "audit flicker", side, index)
        flickering = {spec: _flickering(clip, random) for spec, clip in still.items()}
        yield "flicker", replace(batch, clips=flickering)

    def seen(self, side: Side, batch: ClipBatch, form: Form, index: int) -> dict[str, Seen]:
        """Each task's views of a batch in a form."""
        self.model.train(form == "training")
        # Files coded anew are asked the same questions as those they were made of.
        asked = form if form in FORMS else "evaluation"
        rng = self.feed.rows(f"audit views {side} {asked}", index, len(batch))
        videos = batch.video_ids.numpy().copy()
        positions = np.arange(len(videos)) + index * len(videos)
        return {
            name: Seen(side, form, views, videos, positions)
            for name, views in self.model.make_views(batch, rng).items()
        }


def audited_config(
    path: str | None,
    overrides: Sequence[str],
    *,
    state: Mapping[str, Any] | None,
    manifest: Path | None,
    out: Path,
) -> Config:
    """The config of the file, or of the checkpoint's state, with overrides, and with this manifest and folder.

    Raises UserError where neither is given, and where a checkpoint would be judged on another split than its run's.
    """
    own = [f"out={out}", *([f"data.manifest={manifest}"] if manifest is not None else [])]
    if state is None:
        if path is None:
            raise UserError(
                "give --config FILE, or --checkpoint RUN to audit a run by its own config"
            )
        return load_config(path, [*overrides, *own])
    if path is not None:
        config = load_config(path, [*overrides, *own])
    else:
        config = validate(Config, with_overrides(state["config"], [*overrides, *own]))
    _require_split_of(validate(Config, state["config"]), config)
    return config


def _require_split_of(trained: Config, config: Config) -> None:
    """Held-out videos of another split are videos that the checkpoint has trained on."""
    for key, own, given in (
        ("seed", trained.seed, config.seed),
        ("data.holdout_fraction", trained.data.holdout_fraction, config.data.holdout_fraction),
    ):
        if own != given:
            raise UserError(
                f"{key} is {given}, but the checkpoint's run had {own} and would be judged on videos it trained on: "
                f"set {key}={own}"
            )
    own_manifest, manifest = Path(str(trained.data.manifest)), Path(str(config.data.manifest))
    if own_manifest.resolve() != manifest.resolve():
        raise UserError(
            f"the checkpoint's run trained on {own_manifest}, of which {manifest} may hold videos: leave --manifest out, "
            "or judge the run on other videos by `videossl pretext-eval --manifest`"
        )


def _load(model: MultiTask, state: dict[str, Any]) -> None:
    try:
        model.load_state_dict(state["model"])
    except (KeyError, RuntimeError) as error:
        cause = str(error).splitlines()[-1].strip()
        raise UserError(
            f"the checkpoint does not fit the config ({cause}): give the config that the run was trained with"
        ) from error


def _stilled(clip: Tensor) -> Tensor:
    """(B, K, 3, T, H, W): the first frame of the first clip everywhere."""
    return clip[:, :1, :, :1].expand_as(clip).contiguous()


def _flickering(clip: Tensor, random: torch.Generator) -> Tensor:
    num_videos, num_clips, _, num_frames = clip.shape[:4]
    steps = FLICKER * torch.randn(num_videos, num_clips, num_frames, generator=random)
    brighter = clip.clone()
    brighter[:, :, 0] += steps[..., None, None].to(clip.device)
    return brighter
