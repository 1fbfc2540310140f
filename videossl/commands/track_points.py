"""`videossl track-points`: points and joints carried through videos, judged as BADJA, JHMDB or TAP-Vid does."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from videossl.commands.arguments import (
    add_protocol_arguments,
    add_stage_and_device,
    check_apart,
    names,
)
from videossl.commands.output import add_json_argument, print_result
from videossl.io.output_files import locks_folder

if TYPE_CHECKING:  # torch is not waited for before it is needed
    from videossl.tracking.features import Extractor
    from videossl.tracking.point_sets import Benchmark, PointVideo
    from videossl.tracking.points import Reading, Tracks

EXAMPLE = """--tracks takes <video>.npz with tracks (N, T, 2), x and y in pixels, and occluded (N, T), a row per query.
Pixels are those of a 256x256 frame for TAP-Vid, else of the frames; another frame size can be said by an
array size = (H, W). The centre of the first pixel is (0.5, 0.5). Queries are, for BADJA, the joints visible
in the first annotated frame; for JHMDB all joints in the first frame; for TAP-Vid each point where it is
first visible, or (strided) at every fifth frame.

examples:
  videossl track-points --checkpoint runs/a --badja DAVIS --baselines lab,untrained --out points
  videossl track-points --checkpoint runs/a --jhmdb JHMDB --preset crw --set short_side=320 --out joints
  videossl track-points --checkpoint runs/a --tapvid davis.pkl --query-mode strided --out tapvid
  videossl track-points --tracks others/tracks --tapvid davis.pkl --out scores
"""
BASELINES = ("lab", "untrained")
IDENTITY, TRACKS = "identity", "tracks"
RESULT, TABLE, SHEETS = "result.json", "table.txt", "sheets"
OWNED = (RESULT, TABLE, SHEETS, IDENTITY, TRACKS, *BASELINES)  # besides the encoder's row

Row = Callable[[], tuple[dict[str, "Tracks"], dict[str, object]]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    benchmark = parser.add_mutually_exclusive_group(required=True)
    benchmark.add_argument(
        "--badja", type=Path, metavar="ROOT", help="DAVIS tree with badja_joints/*.json in it"
    )
    benchmark.add_argument(
        "--jhmdb", type=Path, metavar="ROOT", help="Rename_Images, joint_positions and splits"
    )
    benchmark.add_argument(
        "--tapvid", type=Path, metavar="FILE", help="TAP-Vid .pkl, or .npz of the same arrays"
    )
    parser.add_argument("--checkpoint", type=Path, metavar="RUN", help="run folder or file of it")
    parser.add_argument(
        "--tracks", type=Path, metavar="FOLDER", help="judge these tracks of any method instead"
    )
    parser.add_argument(
        "--split-list",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="JHMDB lists (default: ROOT/splits/*_test_split1.txt)",
    )
    parser.add_argument(
        "--query-mode", default="first", help="of TAP-Vid: first or strided (default: first)"
    )
    parser.add_argument("--videos", type=names, metavar="A,B", help="only these videos of the set")
    add_protocol_arguments(parser)
    parser.add_argument(
        "--top-cells",
        type=int,
        default=3,
        metavar="K",
        help="cells whose weighted mean is a place: 3 as CRW (default), 5 as RVM",
    )
    parser.add_argument(
        "--cycle-cells",
        type=float,
        default=4.0,
        metavar="D",
        help="a point is hidden if the way back misses its query by more cells (default: 4)",
    )
    parser.add_argument(
        "--baselines",
        type=names,
        default=[],
        metavar="A,B",
        help=f"rows to compare with, besides identity: {','.join(BASELINES)}",
    )
    add_stage_and_device(parser)
    parser.add_argument(
        "--out", required=True, type=Path, help="folder for points, sheets, tables, result.json"
    )
    add_json_argument(parser)
    parser.epilog = EXAMPLE


@locks_folder
def run(args: argparse.Namespace) -> int:
    """Tracks or reads tracks, judges, writes, prints; what the user gave is checked before an encoder is loaded."""
    from videossl.io.output_files import (
        check_folder,
        clear_folder,
        rows_written,
        write_json,
        write_text,
    )
    from videossl.tracking.point_scoring import (
        format_scores,
        score_points,
        write_point_sheet,
        write_tracks,
    )
    from videossl.tracking.scoring import versions

    benchmark, videos = _read(args)
    owned = (*OWNED, *rows_written(args.out / RESULT))
    check_folder(args.out, marker=RESULT, owned=owned)
    rows = _rows(args, videos)
    clear_folder(args.out, marker=RESULT, owned=owned)
    record = {"command": "videossl track-points", "benchmark": benchmark, **_given(args)}
    record["versions"] = versions()
    begun = {**record, "complete": False, "rows": {name: {} for name in rows}}
    write_json(args.out / RESULT, begun)
    tracks, scores, results = {}, {}, {}
    for name, follow in rows.items():
        tracks[name], results[name] = follow()
        for video in videos:
            write_tracks(args.out / name, video, tracks[name][video.name])
        scores[name] = score_points(benchmark, videos, tracks[name], mode=args.query_mode)
        results[name].update(scores[name].as_dict())
    for video in videos:
        of_rows = {name: found[video.name] for name, found in tracks.items()}
        write_point_sheet(args.out / SHEETS / f"{video.name}.png", video, of_rows)
    table = format_scores(benchmark, scores)
    write_text(args.out / TABLE, table + "\n")
    record |= {"complete": True, "rows": results}
    write_json(args.out / RESULT, record)
    print(f"{table}\n\nwritten to {args.out}")
    print_result(args, record)
    return 0


def check(args: argparse.Namespace) -> None:
    """Refuses options that do not go together, before anything is read."""
    from videossl.errors import UserError

    if (args.checkpoint is None) == (args.tracks is None):
        raise UserError("give either --checkpoint RUN to track with, or --tracks FOLDER to judge")
    if args.tracks is not None and args.baselines:
        raise UserError("--baselines tracks with an encoder: it goes with --checkpoint only")
    if args.split_list and args.jhmdb is None:
        raise UserError("--split-list goes with --jhmdb only")
    if args.query_mode not in ("first", "strided"):
        raise UserError(f"--query-mode {args.query_mode!r} is unknown; allowed: first, strided")
    if args.query_mode == "strided" and args.tapvid is None:
        raise UserError("--query-mode strided goes with --tapvid only: joints have one query each")
    unknown = [name for name in args.baselines if name not in BASELINES]
    if unknown:
        raise UserError(
            f"baseline {', '.join(unknown)} is unknown; allowed: {', '.join(BASELINES)}"
        )
    check_apart(args, ("checkpoint", "tracks", "badja", "jhmdb", "tapvid"))


def _read(args: argparse.Namespace) -> tuple["Benchmark", list["PointVideo"]]:
    """The benchmark asked for and its videos, all checked."""
    from videossl.errors import UserError
    from videossl.tracking.point_sets import read_badja, read_jhmdb, read_tapvid

    benchmark: Benchmark
    if args.badja is not None:
        benchmark, videos = "badja", read_badja(args.badja)
    elif args.jhmdb is not None:
        benchmark, videos = "jhmdb", read_jhmdb(args.jhmdb, args.split_list)
    else:
        benchmark, videos = "tapvid", read_tapvid(args.tapvid, args.query_mode)
    if args.videos is None:
        return benchmark, videos
    names = [video.name for video in videos]
    unknown = [name for name in args.videos if name not in names]
    if unknown:
        raise UserError(f"no video {', '.join(unknown)}; there are: {', '.join(names)}")
    return benchmark, [video for video in videos if video.name in args.videos]


def _rows(args: argparse.Namespace, videos: Sequence["PointVideo"]) -> dict[str, Row]:
    """What makes the tracks of each row, by its name, in the order of the table."""
    from functools import partial

    from videossl.tracking.point_scoring import read_tracks, still_videos

    rows: dict[str, Row] = {IDENTITY: partial(still_videos, videos)}
    if args.tracks is not None:
        found = read_tracks(args.tracks, videos, need_occluded=args.tapvid is not None)
        return {**rows, TRACKS: lambda: (found, {"tracks": str(args.tracks)})}
    return {**rows, **_tracking_rows(args, videos)}


def _tracking_rows(args: argparse.Namespace, videos: Sequence["PointVideo"]) -> dict[str, Row]:
    from dataclasses import replace
    from functools import partial

    from videossl.distributed import choose_device
    from videossl.engine.checkpoint import restore_encoder
    from videossl.models.encoder_sources import encoder_name, name_beside
    from videossl.tracking.features import LAB_PATCH_TEMPERATURE, EncoderFeatures, LabPatches
    from videossl.tracking.point_scoring import track_videos
    from videossl.tracking.points import check_protocol
    from videossl.tracking.protocol import parse_overrides, preset

    protocol = preset(args.preset, parse_overrides(args.overrides))
    check_protocol(protocol)
    reading = _reading(args)
    device = choose_device(args.device)
    trained = EncoderFeatures(restore_encoder(args.checkpoint), stage=args.stage, device=device)
    extractors: dict[str, Extractor] = {}
    if "lab" in args.baselines:
        extractors["lab"] = LabPatches(device)
    if "untrained" in args.baselines:
        fresh = restore_encoder(args.checkpoint, untrained_seed=0)
        extractors["untrained"] = EncoderFeatures(fresh, stage=trained.stage, device=device)
    extractors[name_beside(encoder_name(args.checkpoint), OWNED)] = trained
    lab_protocol = replace(protocol, temperature=LAB_PATCH_TEMPERATURE, normalize=True)
    both_ways = args.query_mode == "strided"
    return {
        name: partial(
            track_videos,
            name,
            videos,
            extractor,
            lab_protocol if name == "lab" else protocol,
            reading=reading,
            both_ways=both_ways,
        )
        for name, extractor in extractors.items()
    }


def _reading(args: argparse.Namespace) -> "Reading":
    from videossl.errors import UserError
    from videossl.tracking.points import Reading

    try:
        return Reading(top_cells=args.top_cells, cycle_cells=args.cycle_cells)
    except ValueError as error:
        raise UserError(f"how points are read: {error}") from None


def _given(args: argparse.Namespace) -> dict[str, object]:
    """What the numbers depend on besides the protocol of each row."""
    paths = ("checkpoint", "tracks", "badja", "jhmdb", "tapvid")
    given: dict[str, object] = {
        name: None if getattr(args, name) is None else str(getattr(args, name)) for name in paths
    }
    given["split_list"] = [str(path) for path in args.split_list or []]
    given["query_mode"] = args.query_mode if args.tapvid is not None else None
    given["preset"] = args.preset if args.tracks is None else None
    return given
