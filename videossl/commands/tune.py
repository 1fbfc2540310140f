"""`videossl tune`: searches the settings of label propagation on a train list, and says how to use the best."""

import argparse
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from videossl.commands.protocol_arguments import (
    add_protocol_arguments,
    add_stage_and_device,
    names,
)
from videossl.errors import UserError
from videossl.eval.presets import parse_overrides, preset
from videossl.eval.protocol import Protocol
from videossl.output_lock import locks_folder
from videossl.workers import num_cores

if TYPE_CHECKING:  # torch is not waited for before it is needed
    from concurrent.futures import Executor

    from videossl.commands.tuning_trials import Search
    from videossl.eval.davis import DavisSequence
    from videossl.eval.features import EncoderFeatures
    from videossl.eval.settings_search import Grid, Settings
    from videossl.eval.stored_features import StoredFeatures
    from videossl.eval.tuning import Trial

EXAMPLE = """From the preset on, the values of one setting after the other are tried, each time keeping what is best,
for --passes rounds or until nothing changes; --full tries all combinations instead. Without --grid:
temperature 0.01 to 0.1, top_k 5 to 20, radius 6 to 18, context_frames 3 to 20, of those the ones that the
preset uses. A setting must be better to be kept: what is given by --preset and --set wins ties.

Lists named val or test, and lists with a sequence of one, are refused. The same command goes on after a
stop, if checkpoint, tree, frames, stage, device and versions are the same.

examples:
  videossl tune --checkpoint runs/mine --davis /data/DAVIS --split train --out tuned
  videossl tune --checkpoint runs/mine --davis /data/DAVIS --preset crw --max-frames 30 \\
      --grid temperature=0.02,0.05,0.1 --grid radius=8,12,none --full --out tuned
"""
RESULT, TABLE, JOURNAL, FEATURES = "result.json", "table.txt", "journal.jsonl", "features"
OWNED = (RESULT, TABLE, JOURNAL, FEATURES)
_SHOWN_SETTINGS = 20  # of the table, on screen; all are in table.txt

log = logging.getLogger("videossl")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `videossl tune`."""
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, metavar="RUN", help="run folder or file of it")
    add("--davis", type=Path, required=True, metavar="ROOT", help="root of a DAVIS tree with masks")
    add("--split", default="train", help="list to search on, no val or test (default: train)")
    add("--sequences", type=names, metavar="A,B", help="only these sequences of the split")
    add("--max-frames", type=int, metavar="N", help="only the first N frames of each sequence")
    add_protocol_arguments(parser)
    add(
        "--grid",
        action="append",
        default=[],
        metavar="KEY=V1,V2",
        help="search this setting over these values, and no other but those given so (values with commas: / between them)",
    )
    add("--full", action="store_true", help="all combinations instead of one setting at a time")
    add("--passes", type=int, default=2, metavar="N", help="rounds over the settings (default: 2)")
    add("--workers", type=int, metavar="N", help="sequences side by side on CPUs (default: cores)")
    add_stage_and_device(parser)
    add("-o", "--out", type=Path, required=True, help="folder for tables, result.json, journal")
    parser.epilog = EXAMPLE


@locks_folder
def run(args: argparse.Namespace) -> int:
    """Checks everything, makes the features, searches, reports."""
    from videossl.commands.tuning_trials import Search
    from videossl.eval.output_folder import check_folder
    from videossl.eval.tuning_journal import TuningJournal
    from videossl.whole_file import write_json

    start = parse_overrides(args.overrides)
    grid = _grid(args, start)
    sequences = _sequences(args)
    check_folder(args.out, marker=JOURNAL, owned=OWNED)
    extractor, depends_on = _encoder(args, sequences)
    args.out.mkdir(parents=True, exist_ok=True)
    journal = TuningJournal(args.out / JOURNAL, depends_on)
    record = {"command": "videossl tune", **_given(args, grid), "depends_on": depends_on}
    write_json(args.out / RESULT, {**record, "complete": False})
    protocol = preset(args.preset, start)
    features = _features(args.out / FEATURES, sequences, extractor, protocol, depends_on)
    with _sequence_map(args, sequences, extractor) as side_by_side:
        search = Search(
            preset_name=args.preset,
            sequences=sequences,
            features=features,
            cell_pixels=extractor.stride,
            journal=journal,
            each=side_by_side,
        )
        _walk(args, search, start, grid)
    _report(args, search, record)
    return 0


def _grid(args: argparse.Namespace, start: "Settings") -> "Grid":
    """What is searched, every value of it checked against the start."""
    from videossl.eval.settings_search import check_grid, default_grid, parse_grid

    protocol = preset(args.preset, start)
    if args.passes < 1:
        raise UserError(f"--passes must be >= 1, got {args.passes}")
    grid = parse_grid(args.grid) or default_grid(protocol)
    check_grid(args.preset, start, grid)
    return grid


def _sequences(args: argparse.Namespace) -> "list[DavisSequence]":
    from videossl.eval.davis import read_tree
    from videossl.eval.davis_splits import check_searchable

    if args.max_frames is not None and args.max_frames < 3:
        raise UserError(
            f"--max-frames must be >= 3, got {args.max_frames}: the first and the last are not scored"
        )
    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers must be >= 1, got {args.workers}")
    check_searchable(args.davis, args.split)
    sequences = read_tree(args.davis, split=args.split, only=args.sequences, need_masks=True)
    short = [s.name for s in sequences if len(s.frame_names) < 3]
    if short:
        raise UserError(f"sequence {', '.join(short)} has fewer than 3 frames: none is scored")
    return [sequence.first_frames(args.max_frames) for sequence in sequences]


def _encoder(
    args: argparse.Namespace, sequences: "Sequence[DavisSequence]"
) -> "tuple[EncoderFeatures, dict[str, object]]":
    """The features under test, and what the scores depend on besides the protocol."""
    from videossl.distributed import choose_device
    from videossl.engine.checkpoint import restore_encoder
    from videossl.eval.digests import file_digest, tree_digest
    from videossl.eval.features import EncoderFeatures
    from videossl.eval.scoring import versions
    from videossl.models.encoder_sources import find_checkpoint

    device = choose_device(args.device)
    path = find_checkpoint(args.checkpoint)
    extractor = EncoderFeatures(restore_encoder(path), stage=args.stage, device=device)
    return extractor, {
        "checkpoint": file_digest(path),
        "stage": extractor.stage,
        "tree": tree_digest(sequences),
        "sequences": [sequence.name for sequence in sequences],
        "max_frames": args.max_frames,
        "device": device.type,
        "versions": versions(),
    }


def _features(
    folder: Path,
    sequences: "Sequence[DavisSequence]",
    extractor: "EncoderFeatures",
    protocol: Protocol,
    depends_on: Mapping[str, object],
) -> "StoredFeatures":
    """The features of all sequences on disk; those of an earlier run are used if they are the same."""
    import json
    import shutil

    from videossl import progress
    from videossl.eval.settings_search import FEATURE_SETTINGS
    from videossl.eval.stored_features import StoredFeatures
    from videossl.eval.tuning import check_space, store_features
    from videossl.whole_file import write_json

    settings = {name: getattr(protocol, name) for name in FEATURE_SETTINGS}
    key, key_file = json.loads(json.dumps({**depends_on, **settings})), folder / "made_of.json"
    if not key_file.is_file() or json.loads(key_file.read_text()) != key:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(key_file, key)
    for sequence in progress.track(sequences, description="features"):
        store_features(sequence, extractor, protocol, folder)
        if sequence is sequences[0]:
            check_space(sequences, folder)
    return StoredFeatures(folder, extractor.device)


@contextmanager
def _sequence_map(
    args: argparse.Namespace, sequences: "Sequence[DavisSequence]", extractor: "EncoderFeatures"
) -> "Iterator[Callable[[Trial, Sequence[DavisSequence]], Iterator]]":
    """`map` over sequences; side by side in processes on CPUs, since a GPU is one queue."""
    from videossl.eval.tracking import worker_pool

    num_workers = min(args.workers or num_cores(), len(sequences))
    is_alone = num_workers == 1 or extractor.device.type != "cpu"
    pool: Executor | None
    with nullcontext() if is_alone else worker_pool(num_workers) as pool:
        yield map if pool is None else pool.map


def _walk(args: argparse.Namespace, search: "Search", start: "Settings", grid: "Grid") -> None:
    from math import prod

    from videossl.eval.settings_search import all_combinations, search_by_coordinate

    sizes = [len(values) for values in grid.values()]
    most = 1 + (prod(sizes) if args.full else args.passes * sum(sizes))
    frames = sum(len(sequence.frame_names) for sequence in search.sequences)
    log.info(
        "at most %d settings, each on %d sequences, %d frames", most, len(search.sequences), frames
    )
    if not args.full:
        search_by_coordinate(start, grid, search, passes=args.passes)
        return
    for settings in all_combinations(start, grid):
        search(settings)


def _report(args: argparse.Namespace, search: "Search", record: Mapping[str, object]) -> None:
    """Writes and prints all settings, best first, and the line that asks for the best."""
    import shutil

    from videossl.eval.settings_search import changes
    from videossl.whole_file import write_json, write_text

    ranked = search.ranked
    best = ranked[0][0]
    line = " ".join(
        [f"--preset {args.preset}"]
        + [f"--set {key}={value}" for key, value in changes(best, args.preset).items()]
    )
    lines = search.table()
    note = f"Best of {len(ranked)} on the {len(search.sequences)} sequences searched; what it is worth, others must say:"
    write_text(args.out / TABLE, "\n".join([*lines, "", note, line]) + "\n")
    settings = [
        {
            "changed": changes(protocol, args.preset),
            "protocol": protocol.as_dict(),
            **scores.as_dict(),
            "sequences_won": scores.sequences_won(search.start),
        }
        for protocol, scores in ranked
    ]
    write_json(args.out / RESULT, {**record, "complete": True, "use": line, "settings": settings})
    shutil.rmtree(args.out / FEATURES)  # large, and soon made again
    print("\n".join([*lines[: 1 + _SHOWN_SETTINGS], "", note, line]))
    print(f"written to {args.out}")


def _given(args: argparse.Namespace, grid: "Grid") -> dict[str, object]:
    """What was asked for."""
    return {
        "checkpoint": str(args.checkpoint),
        "davis": str(args.davis),
        "split": args.split,
        "preset": args.preset,
        "set": parse_overrides(args.overrides),
        "grid": {key: list(values) for key, values in grid.items()},
        "search": "all combinations" if args.full else f"by coordinate, {args.passes} passes",
    }
