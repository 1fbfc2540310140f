"""What `train` measures besides the pretext tasks, handed to the trainer: nearest neighbours, and tracking."""

import math
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from videossl.config import Augmentation, Config
from videossl.data.dataset import ClipDataset
from videossl.data.loader import StepPositions, frame_batches, to_clip_batch
from videossl.data.manifest import read_manifest
from videossl.distributed import World, gather_objects
from videossl.engine.evaluation import Evaluation, Measured, Poll
from videossl.engine.multitask import MultiTask
from videossl.errors import UserError
from videossl.io.index_masks import IndexMask
from videossl.models.encoder import pooled
from videossl.probe.classifiers import knn_score
from videossl.stats import too_few
from videossl.tracking.davis import DavisSequence, read_tree
from videossl.tracking.features import EncoderFeatures, input_size, sequence_features
from videossl.tracking.protocol import preset
from videossl.tracking.scoring import ObjectScore, global_scores, score_masks
from videossl.tracking.sequence import davis_footage
from videossl.tracking.tracking import footage_masks
from videossl.types import ClipSpec


def build_monitors(config: Config, world: World) -> list[Evaluation]:
    """Those that `monitor` asks for. Raises UserError for a manifest without labels and a tree that is not DAVIS's."""
    monitors: list[Evaluation] = []
    if config.monitor.knn.manifest is not None:
        monitors.append(OnlineKnn(config, world))
    if config.monitor.tracking.davis is not None:
        monitors.append(OnlineTracking(config, world))
    return monitors


class OnlineKnn:
    """An Evaluation: weighted kNN on pooled features of the deepest stage, one clip of each labelled video."""

    name = "knn"

    def __init__(self, config: Config, world: World) -> None:
        knn = config.monitor.knn
        self.every, self._config, self._world = knn.every, config, world
        manifest = read_manifest(Path(str(knn.manifest)))
        labels = np.asarray(manifest.strings("label"))
        if not (labels != "").any():
            raise UserError(
                f"monitor.knn.manifest: {knn.manifest} has no labels; scan a list with path,label columns"
            )
        self._labels, self._groups = labels, np.asarray(manifest.strings("group"))
        size = config.data.short_side // 16 * 16  # every encoder's cells
        self._spec = ClipSpec(1, knn.num_frames, knn.seconds_between_frames, size)
        self._data = ClipDataset(
            manifest,
            [self._spec],
            seed=config.seed,
            short_side=config.data.short_side,
            rows=np.flatnonzero(labels != ""),
            rules=config.data.sampling,
            backend=config.decode.backend,
            shuffle=False,
        )

    def __call__(self, model: MultiTask, poll: Poll) -> Measured:
        """See Evaluation."""
        data, world, count = self._config.data, self._world, len(self._data)
        videos = max(1, data.videos_per_step // world.size)
        steps = math.ceil(count / (videos * world.size))
        positions = StepPositions(
            0, steps, rank=world.rank, world_size=world.size, videos_per_rank=videos
        )
        batches = frame_batches(
            self._data,
            positions,
            num_workers=data.num_workers,
            timeout_seconds=data.timeout_seconds,
        )
        found: dict[int, torch.Tensor] = {}
        with closing(batches):
            for step_positions, raw in zip(positions, batches, strict=True):
                poll(lambda raw=raw: self._data.source_names(raw.video_ids))  # type: ignore[misc]
                clips = to_clip_batch(raw, world.device, Augmentation(), None).clips[self._spec]
                features = pooled(list(model.encoder(clips[:, 0]).values())[-1]).float().cpu()
                # A replaced video answers for itself; past the last one the dataset begins again.
                for position, row, feature in zip(
                    step_positions, raw.video_ids.tolist(), features, strict=True
                ):
                    if position < count:
                        found[row] = feature
        everything = {row: f for part in gather_objects(found) for row, f in part.items()}
        if not world.is_main:
            return Measured({}, "")
        rows = sorted(everything)
        score = knn_score(
            torch.stack([everything[row] for row in rows]),
            self._labels[rows].tolist(),
            self._groups[rows].tolist(),
            neighbours=self._config.monitor.knn.neighbours,
            temperature=self._config.monitor.knn.temperature,
        )
        few = too_few(score.count)
        line = (
            f"nearest neighbours: accuracy {score.accuracy:.3f} (chance {score.chance:.2f}) on {score.count} videos of "
            f"{score.num_classes} classes; chance is the share of the commonest class{few and f'; {few}'}"
        )
        return Measured(vars(score), line)


class OnlineTracking:
    """An Evaluation: J&F of the preset `videossl` on the first frames of each sequence."""

    name = "tracking"

    def __init__(self, config: Config, world: World) -> None:
        tracking = config.monitor.tracking
        self.every, self._world = tracking.every, world
        sequences = read_tree(
            Path(str(tracking.davis)),
            split=tracking.split,
            only=tracking.sequences,
            need_masks=True,
        )
        self._sequences = [sequence.first_frames(tracking.max_frames) for sequence in sequences]
        self._protocol = preset("videossl", {})

    def __call__(self, model: MultiTask, poll: Poll) -> Measured:
        """See Evaluation."""
        own = self._sequences[self._world.rank :: self._world.size]
        scores: list[ObjectScore] = []
        for index in range(math.ceil(len(self._sequences) / self._world.size)):
            name = own[index].name if index < len(own) else ""
            poll(lambda name=name: name)  # type: ignore[misc]
            if index < len(own):
                masks = self._track(model, own[index])
                scores += score_masks(own[index], masks.__getitem__)
        everything = [score for part in gather_objects(scores) for score in part]
        if not self._world.is_main:
            return Measured({}, "")
        values = global_scores(everything)
        line = (
            f"tracking: J&F {100 * values['J&F-Mean']:.1f} (J {100 * values['J-Mean']:.1f}, F "
            f"{100 * values['F-Mean']:.1f}) on {len(everything)} objects of {len(self._sequences)} sequences"
        )
        return Measured(values, line)

    def _track(self, model: MultiTask, sequence: DavisSequence) -> list[IndexMask]:
        extractor = EncoderFeatures(model.encoder, device=self._world.device)
        footage = davis_footage(sequence)
        features = sequence_features(footage.source, extractor, self._protocol)
        size = input_size(footage.source.native_size, self._protocol, extractor.stride)
        return list(footage_masks(footage, features, self._protocol, input_size=size))
