"""`videossl track`: first-frame masks carried through DAVIS sequences or a video, scored where masks are known."""

import argparse
import json
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from videossl.commands.arguments import (
    add_protocol_arguments,
    add_stage_and_device,
    check_apart,
    names,
)
from videossl.commands.output import add_json_argument, print_result
from videossl.errors import UserError
from videossl.io.output_files import rows_written, writing_to_folder
from videossl.models.encoder_sources import TRACK_SMALL, encoder_name, name_beside
from videossl.tracking.protocol import IMAGE_MODEL_PREFIX as PREFIX
from videossl.tracking.protocol import parse_overrides, preset
from videossl.workers.pool import num_cores

if TYPE_CHECKING:  # torch is not waited for before it is needed
    from videossl.tracking.davis import DavisSequence
    from videossl.tracking.scoring import ObjectScore
    from videossl.tracking.sequence import Footage
    from videossl.tracking.youtube_vos import YoutubeVosSequence

USAGE = """videossl track [--checkpoint RUN | --features SPEC] [-o OUT] [options]
                      (--davis ROOT | --youtube-vos ROOT | --video FILE --mask FIRST.png)"""
EXAMPLE = """Baselines: identity (the first mask repeated), flow (masks warped by dense optical flow; needs
OpenCV), lab (4x4 patches of Lab), untrained (the same encoder with fresh weights),
torchvision:MODEL[@LAYER][:random] (weights of torch's hub folder, or of --weights; none are downloaded).

examples (open index.html in the folder of results for all of it on one page):
  videossl track --checkpoint runs/a --davis DAVIS --baselines --untrained-seeds 3 -o results
  videossl track --checkpoint runs/a --davis DAVIS --baselines flow,torchvision:resnet18@layer3 -o more
  videossl track --features mine:encode --davis DAVIS --preset dino --baselines lab -o theirs
  videossl track --video mine.mp4 --mask first.png    # into mine_tracked; nothing to train
"""
log = logging.getLogger("videossl")

RESULT, TABLE, PAGE = "result.json", "table.txt", "index.html"
BASELINES = ("identity", "flow", "lab", "untrained")
# What is written besides a folder of masks for the encoder under test, which is named after it.
FIXED = (RESULT, TABLE, PAGE, "overlay", "comparison", "attention", "identity", "flow", "lab")
OWNED = (*FIXED, "untrained_seed*", "torchvision_*")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `videossl track`."""
    parser.usage = USAGE
    _add_encoder_arguments(parser.add_argument_group("what is tested"))
    _add_footage_arguments(parser.add_argument_group("on what"))
    _add_baseline_arguments(parser.add_argument_group("beside what"))
    how = parser.add_argument_group("how")
    add_protocol_arguments(how)
    how.add_argument(
        "--adapt",
        type=int,
        metavar="STEPS",
        help="first go on learning, without labels, on the frames of each video",
    )
    how.add_argument(
        "--workers", type=int, metavar="N", help="sequences side by side (default: cores)"
    )
    add_stage_and_device(how)
    how.add_argument(
        "--max-mib",
        type=int,
        metavar="N",
        help="memory of similarities at a time (default: what is quickest)",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        help="folder for results (default for --video mine.mp4: mine_tracked)",
    )
    add_json_argument(parser)
    parser.epilog = EXAMPLE


def _add_encoder_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--checkpoint", type=Path, metavar="RUN", help="run or file (default: track-small, ours)"
    )
    group.add_argument(
        "--features", metavar="SPEC", help="instead: module:function, or a folder of .npy"
    )


def _add_footage_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--davis", type=Path, metavar="ROOT", help="root of a DAVIS tree, 2016 or 2017"
    )
    group.add_argument(
        "--split", default="val", help="list in ImageSets/2016 or ImageSets/2017 (default: val)"
    )
    group.add_argument(
        "--sequences", type=names, metavar="A,B", help="only these sequences of the split"
    )
    group.add_argument(
        "--youtube-vos",
        type=Path,
        metavar="ROOT",
        help="JPEGImages/<video> and Annotations/<video>; objects may appear later",
    )
    group.add_argument(
        "--unseen",
        type=Path,
        metavar="FILE",
        help="its unseen categories, one a line, scored apart",
    )
    group.add_argument("--video", type=Path, metavar="FILE", help="any video")
    group.add_argument(
        "--mask",
        type=Path,
        metavar="FIRST.png",
        help="mask of its first frame: ids, 0/255 or colours",
    )


def _add_baseline_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--baselines",
        type=names,
        nargs="?",
        const=["identity", "lab", "untrained"],
        default=[],
        metavar="A,B",
        help="see below (identity,lab,untrained without a value)",
    )
    group.add_argument(
        "--untrained-seeds", type=int, default=1, metavar="N", help="untrained rows (default: 1)"
    )
    group.add_argument(
        "--weights", type=Path, metavar="FILE", help="weights of the torchvision baseline"
    )


def check(args: argparse.Namespace) -> None:
    """Raises UserError for options that are wrong or do not go together."""
    preset(args.preset, parse_overrides(args.overrides))
    args.out = args.out or _default_out(args.video)
    if args.checkpoint is not None and args.features is not None:
        raise UserError("give either --checkpoint RUN or --features SPEC, the encoder under test")
    _check_baselines(args)
    if args.features is not None and args.stage is not None:
        raise UserError("--stage is one of a checkpoint's encoder: it goes with --checkpoint")
    if args.adapt is not None and args.features is not None:
        raise UserError("--adapt goes on training an encoder: it goes with --checkpoint")
    if args.adapt is not None and args.adapt < 1:
        raise UserError(f"--adapt takes a number of steps >= 1, got {args.adapt}")
    for name in ("untrained_seeds", "max_mib", "workers"):
        if (given := getattr(args, name)) is not None and given < 1:
            raise UserError(f"--{name.replace('_', '-')} must be >= 1, got {given}")
    named = ("checkpoint", "features", "davis", "youtube_vos", "video", "mask", "weights", "unseen")
    check_apart(args, named)
    if [args.davis, args.youtube_vos, args.video].count(None) != 2:
        raise UserError(
            "give either --davis ROOT or --video FILE with --mask FIRST.png, or --youtube-vos ROOT"
        )
    if args.unseen is not None and args.youtube_vos is None:
        raise UserError("--unseen goes with --youtube-vos only")
    if args.video is not None and args.mask is None:
        raise UserError("--video needs --mask FIRST.png, the mask of its first frame")


def _check_baselines(args: argparse.Namespace) -> None:
    unknown = [
        name for name in args.baselines if name not in BASELINES and not name.startswith(PREFIX)
    ]
    if unknown:
        raise UserError(
            f"baseline {', '.join(unknown)} is unknown; allowed: {', '.join(BASELINES)}, "
            f"{PREFIX}MODEL[@LAYER][:random]"
        )
    if args.features is not None and "untrained" in args.baselines:
        raise UserError(
            "baseline untrained needs the architecture of a --checkpoint: --features gives none to be drawn anew; "
            "take --baselines identity,lab"
        )
    if "flow" in args.baselines and find_spec("cv2") is None:
        raise UserError(
            "optical flow needs OpenCV: pip install 'videossl[stabilization]' (opencv-python-headless)"
        )


def run(args: argparse.Namespace) -> int:
    """Tracks, writes, scores, prints; the tree and all arguments are checked before an encoder is loaded."""
    args.out = args.out or _default_out(args.video)
    with writing_to_folder(args.out):
        return _track(args)


def _track(args: argparse.Namespace) -> int:
    from videossl.commands.track_rows import check_rows, foreseen_time, make_rows, score_videos
    from videossl.io.output_files import check_folder, clear_folder, write_json
    from videossl.tracking.page import write_page
    from videossl.tracking.results import draw_footages, score_rows
    from videossl.tracking.tracking import track_row, worker_pool

    protocol = preset(args.preset, parse_overrides(args.overrides))
    if args.checkpoint is None and args.features is None:
        log.info("tracking with %s, the encoder that comes with videossl", TRACK_SMALL)
        args.checkpoint = Path(TRACK_SMALL)
    device = check_rows(args)
    sequences, videos, footages = _read(args)
    owned = (*OWNED, *rows_written(args.out / RESULT))
    check_folder(args.out, marker=RESULT, owned=owned)
    rows = make_rows(args, _encoder_name(args), protocol, device)
    rows[-1] = replace(rows[-1], attention=args.out / "attention")
    main_row = rows[-1].name
    record = _record(args, main_row)
    begun = {
        **record,
        "complete": False,
        "rows": {row.name: row.record() for row in rows},
        "inputs": _inputs(args, sequences, videos),
    }
    if not _goes_on(args.out / RESULT, begun):
        clear_folder(args.out, marker=RESULT, owned=owned)
    write_json(args.out / RESULT, begun)
    num_workers = min(args.workers or num_cores(), len(footages))
    # A GPU is one queue, which processes would only share.
    is_shared = device.type == "cpu"
    if line := foreseen_time(rows, footages, num_workers=num_workers if is_shared else 1):
        log.info(line)
    with worker_pool(num_workers) if num_workers > 1 else nullcontext() as pool:
        tracking_pool = pool if is_shared else None
        results = {
            row.name: track_row(row, footages, args.out / row.name, pool=tracking_pool)
            for row in rows
        }
        if videos:
            scores = score_videos(args.out, videos, results, pool=pool)
        else:
            scores = score_rows(args.out, args.split, sequences, list(results), pool=pool)
        draw_footages(args.out, footages, sequences, list(results), main_row, pool=pool)
    if scores:
        record |= _judge(args, main_row, results, scores, videos)
    record |= {"complete": True, "rows": results}
    write_json(args.out / RESULT, record)
    write_page(args.out, record)
    print(f"written to {args.out}, to be seen in {args.out / PAGE}")
    print_result(args, record)
    return 0


def _default_out(video: Path | None) -> Path:
    """In the folder where the command is given, named after the video."""
    if video is None:
        raise UserError("-o/--out names the folder for results: only --video FILE goes without")
    return Path(f"{video.stem}_tracked")


def _encoder_name(args: argparse.Namespace) -> str:
    """What the encoder under test is called in the table, and its folder of masks; no name of anything else here."""
    if args.features is None:
        name = encoder_name(args.checkpoint)
    elif Path(args.features).is_dir():
        name = Path(args.features).resolve().name
    else:
        name = args.features.replace(":", ".")
    return name_beside(name, FIXED)


def _judge(
    args: argparse.Namespace,
    main_row: str,
    results: dict[str, dict[str, object]],
    scores: Mapping[str, Sequence["ObjectScore"]],
    videos: Sequence["YoutubeVosSequence"],
) -> dict[str, object]:
    """Prints and writes the table, adds to the rows what was measured of them, and returns what is measured between them."""
    from videossl.commands.track_rows import category_groups
    from videossl.tracking.results import write_report
    from videossl.tracking.scoring import scores_record

    statistics = write_report(args.out / TABLE, scores, main_row)
    for name, row_scores in scores.items():
        results[name].update(scores_record(row_scores))
        if name in statistics.intervals:
            results[name]["intervals"] = statistics.intervals[name]
    if args.unseen is not None:
        for name, groups in category_groups(scores, videos, args.unseen).items():
            results[name]["groups"] = groups
    return statistics.record()


def _inputs(
    args: argparse.Namespace,
    sequences: Sequence["DavisSequence"],
    videos: Sequence["YoutubeVosSequence"],
) -> str:
    """A digest of all that is read: names, sizes and times of change, so that nothing old passes for new."""
    from videossl.io.input_files import files_digest, is_system_leftover

    paths = [path for s in sequences for path in (*s.frame_paths, *s.mask_paths[:1])]
    for video in videos:
        paths += [*video.frame_paths, *video.mask_paths.values()]
    paths += [path for path in (args.video, args.mask, args.weights) if path is not None]
    if args.features is not None and Path(args.features).is_dir():
        stored = sorted(Path(args.features).rglob("*.npy"))
        paths += [path for path in stored if not is_system_leftover(path.name)]
    if args.features is not None and not Path(args.features).is_dir():
        # Code changes in ways that no file tells: such a run begins anew.
        return os.urandom(32).hex()
    return files_digest(paths)


def _goes_on(result: Path, begun: Mapping[str, object]) -> bool:
    """Whether a run of exactly these settings and inputs was stopped here: what it finished is then kept."""
    try:
        found = json.loads(result.read_text())
    except (OSError, ValueError):
        return False
    is_same: bool = found == json.loads(json.dumps(begun))
    if is_same:
        log.info("%s holds a run of these settings that was stopped: going on", result.parent)
    return is_same


def _read(
    args: argparse.Namespace,
) -> tuple[list["DavisSequence"], list["YoutubeVosSequence"], list["Footage"]]:
    """What is tracked, and what is known of it: nothing for a user's own video."""
    from videossl.commands.track_rows import read_videos
    from videossl.tracking.davis import read_tree
    from videossl.tracking.sequence import davis_footage, video_footage
    from videossl.tracking.youtube_vos import youtube_footage

    if args.davis is not None:
        sequences = read_tree(args.davis, split=args.split, only=args.sequences)
        return sequences, [], [davis_footage(sequence) for sequence in sequences]
    if args.youtube_vos is not None:
        videos = read_videos(args.youtube_vos, args.sequences, args.unseen)
        return [], videos, [youtube_footage(video) for video in videos]
    return [], [], [video_footage(args.video, args.mask)]


def _record(args: argparse.Namespace, main_row: str) -> dict[str, object]:
    """What the numbers depend on besides the protocol of each row."""
    from videossl.io.input_files import file_digest
    from videossl.models.encoder_sources import find_checkpoint
    from videossl.tracking.baselines import describe_flow
    from videossl.tracking.scoring import versions

    return {
        "command": "videossl track",
        "main_row": main_row,
        "checkpoint": None if args.checkpoint is None else str(args.checkpoint),
        "checkpoint_sha256": None
        if args.checkpoint is None
        else file_digest(find_checkpoint(args.checkpoint)),
        "stage": args.stage,
        "features": args.features,
        "davis": None if args.davis is None else str(args.davis),
        "split": args.split if args.davis is not None else None,
        "youtube_vos": None if args.youtube_vos is None else str(args.youtube_vos),
        "unseen": None if args.unseen is None else str(args.unseen),
        "video": None if args.video is None else str(args.video),
        "preset": args.preset,
        **({} if args.adapt is None else {"adapt_steps": args.adapt}),
        **({"flow": describe_flow()} if "flow" in args.baselines else {}),
        "versions": versions(),
    }
