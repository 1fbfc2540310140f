"""Provides what is audited: a config's tasks on both sides of its split, and clips in all forms that may hide a shortcut."""

import contextlib
import functools
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
from videossl.engine.build import autocast, build_datasets, build_model, build_optimizer, place
from videossl.engine.feed import Feed, Quarantine
from videossl.engine.multitask import MultiTask
from videossl.engine.trainer import PREPARATION_VIDEOS
from videossl.errors import UserError
from videossl.io.progress import track
from videossl.rng import fold, generator
from videossl.types import ClipBatch, Views

# "evaluation", "training", one of STILL_FORMS, or a way in which files were coded anew, shown as in evaluation.
Form = str
STILL_FORMS = ("static", "flicker")
Side = Literal["train", "heldout"]
# Of normalised L, 12 L units: enough that tasks which leave out what does not change ask.
FLICKER = 0.5
# Batches whose statistics normalise a random encoder's features before its heads are trained.
CALIBRATION_BATCHES = 4


@dataclass(frozen=True)
class Seen:
    """One task's views of one batch in one form."""

    side: Side
    form: Form
    views: Views
    videos: np.ndarray  # (B,) rows of the manifest
    positions: np.ndarray  # (B,) of the dataset


class Subject:
    """The model, datasets and feed of a config, as a run of it would have them; with the weights of `state`, if given.

    `run` is the folder of that checkpoint's run, whose held-out videos are judged on. Raises UserError for a config without
    held-out videos and for a checkpoint of other tasks.
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
                "data.val_fraction is 0: shortcut baselines are judged on held-out videos; set it above 0"
            )
        self.heldout = heldout
        bad = config.data.max_bad_fraction
        self.feed = Feed(config, world, Quarantine(Path(config.out), rank=0, max_bad_fraction=bad))
        place(self.model, config, world)
        self.is_trained = state is not None
        if state is not None:
            _load(self.model, state)
        else:
            self._prepare(self.model)

    def heads_on_random_encoder(self, num_steps: int) -> MultiTask:
        """P9: a fresh model, its encoder frozen, whose heads have been trained for `num_steps` batches as a run would.

        What such heads reach is not the merit of the encoder.
        """
        config, feed = self.config, self.feed
        torch.manual_seed(fold(config.seed, "audit random encoder"))
        model = build_model(config)
        place(model, config, self.world)
        self._prepare(model)
        model.encoder.requires_grad_(False)
        section = config.optim
        optimizer = build_optimizer(
            model, lr=section.lr, weight_decay=section.weight_decay, betas=section.betas
        )
        never = torch.zeros((), dtype=torch.bool, device=feed.device)
        raws = self.batches(
            self.train, num_steps + CALIBRATION_BATCHES, why="heads on a random encoder"
        )
        for step, raw in enumerate(raws):
            rng = feed.rows("audit heads", step, len(raw.video_ids))
            model.train()
            # Its statistics are taken from clips: features of untrained weights are badly scaled otherwise.
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

    @functools.cached_property
    def _first_videos(self) -> ClipBatch:
        return self.feed.first_videos(self.train, PREPARATION_VIDEOS)

    def _prepare(self, model: MultiTask) -> None:
        for _, task in model.named_tasks():
            task.prepare(self._first_videos, self.config.seed)

    def batches(self, data: ClipDataset, count: int, *, why: str) -> Iterator[RawClips]:
        """The first `count` decoded batches of a dataset with the tasks' specs; shows progress."""
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
        # Each side flickers in its own way: a classifier would know again what it has learned.
        random = generator(self.config.seed, "audit flicker", side, index)
        flickering = {spec: _flickering(clip, random) for spec, clip in still.items()}
        yield "flicker", replace(batch, clips=flickering)

    def seen(self, side: Side, batch: ClipBatch, form: Form, index: int) -> dict[str, Seen]:
        """Each task's views of a batch in a form."""
        self.model.train(form == "training")
        # Files coded anew are asked the same questions as those they were made of.
        asked = form if form in ("training", *STILL_FORMS) else "evaluation"
        rng = self.feed.rows(f"audit views {side} {asked}", index, len(batch))
        videos = batch.video_ids.numpy().copy()
        positions = np.arange(len(videos)) + index * len(videos)
        views = self.model.make_views(batch, rng)
        return {name: Seen(side, form, v, videos, positions) for name, v in views.items()}


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
    if path is None and state is None:
        raise UserError("give --config FILE, or --checkpoint RUN to audit a run by its own config")
    if path is not None:
        config = load_config(path, [*overrides, *own])
    else:
        assert state is not None
        config = validate(Config, with_overrides(state["config"], [*overrides, *own]))
    if state is not None:
        _require_split_of(validate(Config, state["config"]), config)
    return config


def _require_split_of(trained: Config, config: Config) -> None:
    """Raises UserError for another split than the run's, on which a checkpoint may have trained on held-out videos."""
    for key, own, given in (
        ("seed", trained.seed, config.seed),
        ("data.val_fraction", trained.data.val_fraction, config.data.val_fraction),
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
