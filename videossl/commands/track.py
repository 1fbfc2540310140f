"""`videossl track`: first-frame masks carried through DAVIS sequences or a video, scored where masks are known."""

import argparse
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from videossl.engine.checkpoint import load_encoder
from videossl.errors import UserError
from videossl.eval.davis import DavisSequence, read_tree
from videossl.eval.features import LAB_PATCH_TEMPERATURE, EncoderFeatures, LabPatches
from videossl.eval.protocol import PRESETS, Protocol, preset
from videossl.eval.scoring import (
    GLOBAL_COLUMNS,
    ObjectScore,
    format_objects,
    format_table,
    global_scores,
    score_sequence,
    scores_record,
    versions,
    write_json,
    write_tables,
    write_text,
)
from videossl.eval.tracking import (
    Footage,
    Row,
    clear_folder,
    davis_footage,
    track_row,
    video_footage,
    worker_pool,
    write_overlay,
    write_sheet,
)

BASELINES = ("identity", "lab", "untrained")
TRAINED = "trained"
RESULT = "result.json"
TABLE = "table.txt"
OWNED = (RESULT, TABLE, TRAINED, "identity", "lab", "untrained_seed*", "overlay", "*.partial")

logger = logging.getLogger("videossl")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `videossl track`."""
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="run folder or checkpoint file"
    )
    parser.add_argument(
        "--davis", type=Path, metavar="ROOT", help="root of a DAVIS tree, 2016 or 2017"
    )
    parser.add_argument(
        "--split", default="val", help="list in ImageSets/2016 or ImageSets/2017 (default: val)"
    )
    parser.add_argument(
        "--sequences", type=_names, metavar="A,B", help="only these sequences of the split"
    )
    parser.add_argument("--video", type=Path, metavar="FILE", help="track in this video instead")
    parser.add_argument(
        "--mask", type=Path, metavar="FIRST.png", help="mask of its first frame: ids, or 0/255"
    )
    parser.add_argument(
        "--preset", default="videossl", help=f"protocol: {', '.join(PRESETS)} (default: videossl)"
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a protocol setting",
    )
    parser.add_argument(
        "--stage", help="encoder stage to read (default: the one trained to correspond)"
    )
    parser.add_argument(
        "--baselines",
        type=_names,
        nargs="?",
        const=list(BASELINES),
        default=[],
        metavar="A,B",
        help=f"rows to compare with: {','.join(BASELINES)} (all without a value)",
    )
    parser.add_argument(
        "--untrained-seeds", type=int, default=1, metavar="N", help="untrained rows (default: 1)"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="sequences side by side on CPUs (default: cores)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for masks, overlays, tables, result.json"
    )


def run(args: argparse.Namespace) -> int:
    """Tracks, writes, scores, prints; everything the user gave is checked before the first frame is encoded."""
    protocol = preset(args.preset, _overrides(args.overrides))
    rows = _rows(args, protocol)
    sequences = _sequences(args)
    footages = (
        [davis_footage(s) for s in sequences]
        if sequences
        else [video_footage(args.video, args.mask)]
    )
    clear_folder(args.out, marker=RESULT, owned=OWNED)
    record = _record(args)
    write_json(args.out / RESULT, {**record, "complete": False})
    num_workers = min(_workers(args), len(footages))
    with worker_pool(num_workers) if num_workers > 1 else nullcontext() as pool:
        results = {
            row.name: track_row(row, footages, args.out / row.name, pool=pool) for row in rows
        }
    scores = _score(args, sequences, [row.name for row in rows])
    for name, row_scores in scores.items():
        results[name].update(scores_record(row_scores))
    _draw(args.out, footages, sequences, [row.name for row in rows])
    _report(args.out, scores)
    write_json(args.out / RESULT, {**record, "complete": True, "rows": results})
    print(f"written to {args.out}")
    return 0


def _workers(args: argparse.Namespace) -> int:
    """One process per core on CPUs; a GPU is one queue, which processes would only share."""
    if _device(args.device).type != "cpu":
        return 1
    return args.workers or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else [0])


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _overrides(settings: Sequence[str]) -> dict[str, str]:
    pairs = [setting.partition("=") for setting in settings]
    for key, equals, _ in pairs:
        if not equals:
            raise UserError(f"--set takes KEY=VALUE, got {key!r}")
    return {key.strip(): value.strip() for key, _, value in pairs}


def _rows(args: argparse.Namespace, protocol: Protocol) -> list[Row]:
    unknown = [name for name in args.baselines if name not in BASELINES]
    if unknown:
        raise UserError(
            f"baseline {', '.join(unknown)} is unknown; allowed: {', '.join(BASELINES)}"
        )
    if args.untrained_seeds < 1:
        raise UserError(f"--untrained-seeds must be >= 1, got {args.untrained_seeds}")
    device = _device(args.device)
    trained = EncoderFeatures(load_encoder(args.checkpoint), stage=args.stage, device=device)
    rows = []
    if "identity" in args.baselines:
        rows.append(Row("identity", protocol, None))
    if "lab" in args.baselines:
        lab_protocol = replace(protocol, temperature=LAB_PATCH_TEMPERATURE, normalize=True)
        rows.append(Row("lab", lab_protocol, partial(LabPatches, device)))
    if "untrained" in args.baselines:
        for seed in range(args.untrained_seeds):
            make = partial(_untrained, args.checkpoint, seed, trained.stage, device)
            rows.append(Row(f"untrained_seed{seed}", protocol, make))
    rows.append(Row(TRAINED, protocol, partial(_given, trained)))
    return rows


def _given(extractor: EncoderFeatures) -> EncoderFeatures:
    """A function by name: what a worker process is handed must be importable there."""
    return extractor


def _untrained(checkpoint: Path, seed: int, stage: str, device: torch.device) -> EncoderFeatures:
    return EncoderFeatures(
        load_encoder(checkpoint, untrained_seed=seed), stage=stage, device=device
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise UserError(f"--device {name!r} is unknown; allowed: auto, cpu, cuda, cuda:N")
    if name != "cpu" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: no GPU can be used here; take auto or cpu")
    return torch.device(name)


def _sequences(args: argparse.Namespace) -> list[DavisSequence]:
    if (args.davis is None) == (args.video is None):
        raise UserError("give either --davis ROOT or --video FILE with --mask FIRST.png")
    if args.video is None:
        return read_tree(args.davis, split=args.split, only=args.sequences)
    if args.mask is None:
        raise UserError("--video needs --mask FIRST.png, the mask of its first frame")
    if not args.video.is_file():
        raise UserError(f"--video {args.video}: no such file")
    return []


def _score(
    args: argparse.Namespace, sequences: Sequence[DavisSequence], row_names: Sequence[str]
) -> dict[str, list[ObjectScore]]:
    """Scores per row; none if a sequence lacks masks to score against."""
    if not sequences:
        return {}
    bare = [s.name for s in sequences if not s.is_annotated or len(s.frame_names) < 3]
    if bare:
        logger.info("not scored: no masks after the first frame in %s", ", ".join(bare))
        return {}
    scores = {}
    for name in row_names:
        scores[name] = [score for s in sequences for score in score_sequence(args.out / name, s)]
        write_tables(args.out / name, args.split, scores[name])
    return scores


def _draw(
    out: Path,
    footages: Sequence[Footage],
    sequences: Sequence[DavisSequence],
    row_names: Sequence[str],
) -> None:
    truths = {sequence.name: sequence for sequence in sequences}
    for footage in footages:
        write_overlay(
            footage, out / TRAINED / footage.name, out / "overlay" / f"{footage.name}.mp4"
        )
        folders = [out / name for name in row_names]
        write_sheet(
            footage, folders, truths.get(footage.name), out / "overlay" / f"{footage.name}.png"
        )


def _report(out: Path, scores: Mapping[str, Sequence[ObjectScore]]) -> None:
    if not scores:
        return
    table = {name: global_scores(row) for name, row in scores.items()}
    untrained = [values for name, values in table.items() if name.startswith("untrained")]
    if len(untrained) > 1:
        mean = {
            column: float(np.mean([values[column] for values in untrained]))
            for column in GLOBAL_COLUMNS
        }
        trained = table.pop(TRAINED)
        table |= {f"untrained (mean of {len(untrained)})": mean, TRAINED: trained}
    text = f"{format_objects(scores[TRAINED])}\n\n{format_table(table)}"
    write_text(out / TABLE, text + "\n")
    print(text)


def _record(args: argparse.Namespace) -> dict[str, object]:
    """What the numbers depend on besides the protocol of each row."""
    return {
        "command": "videossl track",
        "checkpoint": str(args.checkpoint),
        "davis": None if args.davis is None else str(args.davis),
        "split": args.split if args.davis is not None else None,
        "video": None if args.video is None else str(args.video),
        "preset": args.preset,
        "versions": versions(),
    }
