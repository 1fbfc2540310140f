"""The rows of `videossl track`: the encoder under test, and what it is compared with."""

import argparse
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from videossl.distributed import choose_device
from videossl.engine.checkpoint import restore_encoder
from videossl.errors import UserError
from videossl.io.index_masks import IndexMask
from videossl.tracking.baselines import (
    ImageFeatures,
    ImageModelSpec,
    find_weights,
    flow_masks,
    parse_image_model,
)
from videossl.tracking.features import (
    LAB_PATCH_TEMPERATURE,
    EncoderFeatures,
    Extractor,
    LabPatches,
    input_size,
)
from videossl.tracking.protocol import IMAGE_MODEL_PREFIX as PREFIX
from videossl.tracking.protocol import Protocol
from videossl.tracking.results import answers_of
from videossl.tracking.scoring import ObjectScore, write_tables
from videossl.tracking.sequence import Footage
from videossl.tracking.tracking import Row, measure_pace
from videossl.tracking.youtube_vos import (
    YoutubeVosSequence,
    check_categories,
    group_scores,
    read_unseen_categories,
    read_youtube_vos,
    score_youtube_sequence,
)

if TYPE_CHECKING:
    from videossl.engine.adaptation import Tracker


log = logging.getLogger("videossl")

FORESEEN_FRAMES = 400  # below which measuring, about 20 frames' work, is not worth it: chosen


def check_rows(args: argparse.Namespace) -> torch.device:
    """The device asked for; weights of baselines are there."""
    models = _image_models(args)
    if args.weights is not None and sum(not spec.is_random for spec in models) != 1:
        raise UserError("--weights goes with exactly one torchvision baseline that is not random")
    for spec in models:
        find_weights(spec, args.weights)
    return choose_device(args.device)


def _restore_tracker(checkpoint: Path) -> "Tracker":
    from videossl.engine.adaptation import restore_tracker  # and all that trains with it

    return restore_tracker(checkpoint)


def _image_models(args: argparse.Namespace) -> list[ImageModelSpec]:
    names = dict.fromkeys(name for name in args.baselines if name.startswith(PREFIX))
    return [parse_image_model(name) for name in names]


def make_rows(
    args: argparse.Namespace, name: str, protocol: Protocol, device: torch.device
) -> list[Row]:
    """The baselines in the order of the table, then the row under test, which is called `name`.

    Raises UserError if what is under test cannot be loaded.
    """
    if args.features is None:
        tracker = None if args.adapt is None else _restore_tracker(args.checkpoint)
        encoder = restore_encoder(args.checkpoint) if tracker is None else tracker.encoder
        trained = EncoderFeatures(encoder, stage=args.stage, device=device)
        main = Row(name, protocol, partial(_given, trained))
        if tracker is not None:
            main = replace(
                main, name=f"{name}_adapted", adapt=partial(_adapted, tracker, args.adapt, protocol)
            )
    else:
        from videossl.tracking.given_features import load_features

        main = Row(name, protocol, load_features(args.features, device))
    rows = []
    if "identity" in args.baselines:
        rows.append(Row("identity", protocol, None))
    if "flow" in args.baselines:
        rows.append(Row("flow", protocol, None, make_masks=_flow_masks))
    if "lab" in args.baselines:
        lab_protocol = replace(protocol, temperature=LAB_PATCH_TEMPERATURE, normalize=True)
        rows.append(Row("lab", lab_protocol, partial(LabPatches, device)))
    for spec in _image_models(args):
        make_image = partial(ImageFeatures, spec, find_weights(spec, args.weights), device=device)
        make_image()  # a layer that does not exist is refused before the first row is tracked
        rows.append(Row(spec.row_name, protocol, make_image))
    if "untrained" in args.baselines:
        for seed in range(args.untrained_seeds):
            make = partial(_untrained, args.checkpoint, seed, trained.stage, device)
            rows.append(Row(f"untrained_seed{seed}", protocol, make))
    if args.adapt is not None and args.video is None:  # where there is a gain to be measured
        rows.append(replace(main, name=name, adapt=None))
    if args.max_mib is None:
        return [*rows, main]
    return [replace(row, max_bytes=args.max_mib * 2**20) for row in [*rows, main]]


def foreseen_time(
    rows: Sequence[Row],
    footages: Sequence[Footage],
    *,
    num_workers: int,
    at_least_frames: int = FORESEEN_FRAMES,
) -> str | None:
    """A line that says about how long the rows with features take, measured on the last; None for a short run."""
    num_frames = sum(len(footage.frame_names) for footage in footages)
    if num_frames < at_least_frames:
        return None
    pace = measure_pace(rows[-1], footages[0], num_threads=1 if num_workers > 1 else None)
    num_rows = sum(row.make_extractor is not None for row in rows)
    minutes = num_rows * pace.seconds(num_frames, num_workers) / 60
    rows_text = "1 row" if num_rows == 1 else f"{num_rows} rows"
    return (
        f"about {minutes:.0f} min for {rows_text} of {num_frames} frames: {pace.encode_seconds:.3f} s to encode one, "
        f"{pace.propagate_seconds:.3f} s to propagate, {num_workers} at a time"
    )


def _flow_masks(footage: Footage) -> Iterator[IndexMask]:
    return flow_masks(
        footage.source,
        footage.first_mask,
        object_ids=footage.object_ids,
        later_masks=footage.later_masks,
    )


def _given(extractor: Extractor) -> Extractor:
    """A function by name: what a worker process is handed must be importable there."""
    return extractor


def _adapted(
    tracker: "Tracker", steps: int, protocol: Protocol, extractor: Extractor, footage: Footage
) -> Extractor:
    """The features of an encoder that went on learning on the frames of this footage, at the size they are tracked at."""
    from videossl.engine.adaptation import adapt, stretches_of

    assert isinstance(extractor, EncoderFeatures)
    size = input_size(footage.source.native_size, protocol, extractor.stride)
    stretches = [
        footage.source.read(part, size) for part in stretches_of(footage.source.num_frames)
    ]
    rate = footage.frames_per_second
    encoder = adapt(
        tracker, stretches, steps=steps, frames_per_second=rate, device=extractor.device
    )
    return EncoderFeatures(encoder, stage=extractor.stage, device=extractor.device)


def _untrained(checkpoint: Path, seed: int, stage: str, device: torch.device) -> Extractor:
    encoder = restore_encoder(checkpoint, untrained_seed=seed)
    return EncoderFeatures(encoder, stage=stage, device=device)


SET_NAME = "youtube-vos"


def read_videos(
    root: Path, only: Sequence[str] | None, unseen: Path | None
) -> list[YoutubeVosSequence]:
    """The videos, after it was checked that a list of unseen categories, if there is one, tells their objects apart."""
    videos = read_youtube_vos(root, only)
    if unseen is not None:
        check_categories(videos, read_unseen_categories(unseen))
    return videos


def score_videos(
    out: Path,
    videos: Sequence[YoutubeVosSequence],
    row_names: Iterable[str],
    *,
    pool: Executor | None,
) -> dict[str, list[ObjectScore]]:
    """Scores per row, and their tables; none if a video has no masks to score against (the valid and test splits)."""
    bare = [video.name for video in videos if not video.is_annotated]
    if bare:
        shown = ", ".join(bare[:5]) + (", ..." if len(bare) > 5 else "")
        log.info("not scored: no masks but the first of each object in %s", shown)
        return {}
    scores = {}
    for name in row_names:
        score = partial(score_youtube_sequence, out / name)
        answers = answers_of(score, videos, f"score {name}", pool)
        scores[name] = [score for answer in answers for score in answer]
        write_tables(out / name, SET_NAME, scores[name])
    return scores


def category_groups(
    scores: Mapping[str, Sequence[ObjectScore]], videos: Sequence[YoutubeVosSequence], unseen: Path
) -> dict[str, dict[str, float]]:
    """J and F of seen and unseen categories per row, printed and returned."""
    categories = read_unseen_categories(unseen)
    groups = {name: group_scores(row, videos, categories) for name, row in scores.items()}
    for name, values in groups.items():
        cells = (f"{column} {100 * value:.1f}" for column, value in values.items())
        print(f"{name}: {'  '.join(cells)}")
    return groups
