"""An encoder trained with labels, from its weights or from scratch by the same recipe: fine-tuning, and its yardstick.

Clips are augmented as pretext training does by default. What is done is kept after every epoch, and the same command goes on
from there; a finished one is kept under a name made of weights, videos and recipe, and is not trained again.
"""

import copy
import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videossl.config import Augmentation, SamplingRules
from videossl.data.dataset import ClipDataset, RawClips
from videossl.data.loader import StepPositions, frame_batches, to_clip_batch
from videossl.data.manifest import Manifest
from videossl.engine.build import build_optimizer, lr_at
from videossl.engine.checkpoint import load_newest, save_checkpoint
from videossl.errors import UserError
from videossl.export.video_encoder import VideoEncoder
from videossl.io.progress import track
from videossl.models.encoder import pooled
from videossl.probe.feature_store import settings_digest, state_digest, videos_digest
from videossl.probe.labelled_split import LabelledSplit
from videossl.rng import fold, row_random
from videossl.types import ClipSpec
from videossl.workers.pool import num_cores

log = logging.getLogger("videossl")

# Labels do not depend on what a codec marks, and no moment of a clip may be missing.
RULES = SamplingRules(
    skip_ends=False, avoid_key_frames=False, avoid_cuts=False, weight_motion=False
)


@dataclass(frozen=True)
class Recipe:
    """How an encoder and a linear layer on its pooled features are trained with labels; one clip a video and epoch."""

    epochs: int = 30
    batch_size: int = 16  # videos
    lr: float = 1e-3  # AdamW, peak of a cosine
    weight_decay: float = 0.01
    dropout: float = 0.5  # of the pooled features
    seed: int = 0


class Classifier(nn.Module):
    """A VideoEncoder with a linear layer on the features of its stage."""

    def __init__(self, encoder: VideoEncoder, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(encoder.num_channels, num_classes)

    def forward(self, clips: Tensor) -> Tensor:
        """(N, 3, T, S, S) normalised input of the encoder to (N, num_classes) scores."""
        features = pooled(self.encoder.encoder(clips)[self.encoder.stage])
        scores: Tensor = self.classify(self.dropout(features))
        return scores


def train_with_labels(
    encoder: VideoEncoder,
    manifest: Manifest,
    split: LabelledSplit,
    *,
    recipe: Recipe,
    device: torch.device,
    cache: Path,
    why: str,
) -> Classifier:
    """The encoder (a copy of it) and a linear layer, trained on the train and validation parts; in evaluation mode.

    Raises UserError if no video of these parts is as long as a clip, and where the folder cannot be written.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fold(recipe.seed, "supervised"))
        model = Classifier(copy.deepcopy(encoder), len(split.classes), recipe.dropout)
    rows = split.fitted
    described = {
        "weights": state_digest(encoder),
        "encoder": encoder.describe(),
        "videos": videos_digest(manifest, rows.tolist()),
        "labels": split.label[rows].tolist(),
        "recipe": asdict(recipe),
    }
    folder = cache / "supervised" / settings_digest(described)[:32]
    data = _dataset(model.encoder, manifest, rows, recipe)
    training = _Training(model.to(device), data, split.label, recipe, device)
    with _alone(folder, why):
        first = training.resume(folder)
        if first == recipe.epochs:
            log.info("%s: trained before, %s", why, folder)
        elif first:
            log.info("%s: going on after epoch %d, %s", why, first, folder)
        epochs = range(first, recipe.epochs)
        said = f"{why}: epochs of {training.steps_per_epoch} steps"
        for epoch in track(epochs, description=said) if epochs else ():
            training.run_epoch(epoch)
            save_checkpoint(folder, training.state(), step=epoch + 1, keep=1)
    return model.eval()


@contextmanager
def _alone(folder: Path, why: str) -> Iterator[None]:
    """Waits while another process trains in this folder: what it has done is then there. Probes side by side ask for one."""
    try:
        import fcntl
    except ImportError:  # Windows has other locks; there two do the same work twice
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("w")
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error}; name another --cache") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("%s: another process is training it: waiting for that", why)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _dataset(
    encoder: VideoEncoder, manifest: Manifest, rows: np.ndarray, recipe: Recipe
) -> ClipDataset:
    clip = encoder.clip
    spec = ClipSpec(1, clip.num_frames, clip.seconds_between_frames, clip.crop_size)
    data = ClipDataset(
        manifest,
        [spec],
        seed=recipe.seed,
        short_side=clip.resize,
        rows=rows,
        rules=RULES,
        crop_letterbox=False,
    )
    if len(data) < len(rows):
        log.info("training with labels on %d of %d videos: %s", len(data), len(rows), data.left_out)
    return data


class _Training:
    """One model on its way through the epochs; a step's randomness is that of (seed, step)."""

    def __init__(
        self,
        model: Classifier,
        data: ClipDataset,
        label: np.ndarray,
        recipe: Recipe,
        device: torch.device,
    ) -> None:
        self.model, self.data, self.label = model, data, label
        self.recipe, self.device = recipe, device
        self.batch_size = min(recipe.batch_size, len(data))
        self.steps_per_epoch = len(data) // self.batch_size
        self.optimizer = build_optimizer(
            model, lr=recipe.lr, weight_decay=recipe.weight_decay, betas=(0.9, 0.999)
        )

    def run_epoch(self, epoch: int) -> None:
        """One clip of each video, in the epoch's own order."""
        steps = StepPositions(
            epoch * self.steps_per_epoch,
            (epoch + 1) * self.steps_per_epoch,
            rank=0,
            world_size=1,
            videos_per_rank=self.batch_size,
        )
        workers = max(1, num_cores() - 1)
        batches = frame_batches(self.data, steps, num_workers=workers, timeout_seconds=60)
        self.model.train()
        with closing(batches):
            for step, raw in zip(steps.steps, batches, strict=True):
                self._step(step, raw)

    def _step(self, step: int, raw: RawClips) -> None:
        recipe = self.recipe
        lr = lr_at(
            step,
            peak=recipe.lr,
            warmup_steps=self.steps_per_epoch,
            total_steps=recipe.epochs * self.steps_per_epoch,
            final_share=0,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        rng = row_random(
            recipe.seed,
            "supervised",
            step,
            rank=0,
            world_size=1,
            num_rows=len(raw.video_ids),
            device=self.device,
        )
        batch = to_clip_batch(raw, self.device, Augmentation(), rng)
        labels = torch.from_numpy(self.label[raw.video_ids.numpy()]).to(self.device)
        with torch.random.fork_rng():
            torch.manual_seed(fold(recipe.seed, "supervised dropout", step))
            loss = F.cross_entropy(self.model(batch.clips[self.data.specs[0]][:, 0]), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def state(self) -> dict[str, Any]:
        """What `resume` goes on from."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def resume(self, folder: Path) -> int:
        """The epochs done in this folder, with what is saved of them loaded."""
        found = load_newest(folder)
        if found is None:
            return 0
        _, state = found
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])
