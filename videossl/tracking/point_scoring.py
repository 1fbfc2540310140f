"""Tracks of all videos of a benchmark: written, read from any method's files, and judged as the benchmark does."""

import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from videossl.errors import UserError
from videossl.io import progress
from videossl.io.drawing import Rgb
from videossl.io.output_files import whole_file
from videossl.tracking.features import Extractor, input_size, sequence_features
from videossl.tracking.overlay import COLOURS, write_contact_sheet
from videossl.tracking.point_sets import Benchmark, PointVideo, read_all
from videossl.tracking.points import (
    PCK_ALPHAS,
    Flags,
    Places,
    QueryMode,
    Reading,
    Tracks,
    badja_pck,
    joint_errors,
    mean_pck,
    standing_still,
    tapvid_scores,
    track_points,
)
from videossl.tracking.protocol import Protocol

COLUMNS: dict[Benchmark, tuple[str, ...]] = {
    "badja": ("PCK@0.2",),
    "jhmdb": tuple(f"PCK@{alpha}" for alpha in PCK_ALPHAS),
    "tapvid": ("AJ", "delta_avg", "OA"),
}
Values = dict[str, float]


@dataclass(frozen=True)
class PointScores:
    """What a benchmark says of one row, in [0, 1]: of the whole set, and of each video."""

    whole: Values
    per_video: dict[str, Values]

    def as_dict(self) -> dict[str, object]:
        """Plain types for JSON, which has no nan: what is undefined is null."""
        return {
            "global": _without_nan(self.whole),
            "per_video": {name: _without_nan(values) for name, values in self.per_video.items()},
        }


def score_points(
    benchmark: Benchmark,
    videos: Sequence[PointVideo],
    tracks: Mapping[str, Tracks],
    *,
    mode: QueryMode = "first",
) -> PointScores:
    """Judges the tracks of each video, by its name.

    BADJA and TAP-Vid average over videos, without those where a value is undefined; JHMDB pools the frames of all videos
    per joint and averages over joints.
    """
    if benchmark == "jhmdb":
        return _score_jhmdb(videos, tracks)
    if benchmark == "badja":
        per_video = {video.name: _score_badja(video, tracks[video.name]) for video in videos}
    else:
        per_video = {video.name: _score_tapvid(video, tracks[video.name], mode) for video in videos}
    names = next(iter(per_video.values()))
    whole = {name: _mean([values[name] for values in per_video.values()]) for name in names}
    return PointScores(whole, per_video)


def _score_badja(video: PointVideo, tracks: Tracks) -> Values:
    assert video.mask_areas is not None
    is_judged = video.is_visible & (np.arange(video.truth.shape[1]) != video.query_frames[:, None])
    return {"PCK@0.2": badja_pck(tracks.places, video.truth, is_judged, video.mask_areas)}


def _score_tapvid(video: PointVideo, tracks: Tracks, mode: QueryMode) -> Values:
    return tapvid_scores(
        tracks.places,
        tracks.occluded,
        truth=video.truth,
        truth_occluded=~video.is_visible,
        query_frames=video.query_frames,
        mode=mode,
    )


def _score_jhmdb(videos: Sequence[PointVideo], tracks: Mapping[str, Tracks]) -> PointScores:
    errors = {v.name: joint_errors(tracks[v.name].places, v.truth, v.is_visible) for v in videos}
    per_video = {
        name: {f"PCK@{alpha}": mean_pck([found], alpha) for alpha in PCK_ALPHAS}
        for name, found in errors.items()
    }
    whole = {f"PCK@{alpha}": mean_pck(list(errors.values()), alpha) for alpha in PCK_ALPHAS}
    return PointScores(whole, per_video)


def _without_nan(values: Values) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else value for name, value in values.items()}


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def write_tracks(folder: Path, video: PointVideo, tracks: Tracks) -> None:
    """Writes `folder/<name>.npz`: tracks (N, T, 2) x and y, occluded (N, T), and the frame size (H, W) of their pixels."""
    with whole_file(folder / f"{video.name}.npz") as partial, partial.open("wb") as file:
        np.savez_compressed(
            file,
            tracks=tracks.places.astype(np.float32),
            occluded=tracks.occluded,
            query_frames=video.query_frames,
            size=np.array(video.size),
        )


def read_tracks(
    folder: Path, videos: Sequence[PointVideo], *, need_occluded: bool
) -> dict[str, Tracks]:
    """The tracks of any method from `folder/<name>.npz`: `tracks` (N, T, 2) in pixels, `occluded` (N, T) bool.

    Points are in the order of the queries. `size` (H, W), where given, says of which frame size the pixels are; else they
    are those of `video.size`. Raises UserError that lists all problems.
    """
    if not folder.is_dir():
        raise UserError(f"--tracks {folder} is not a folder: give the one that holds <video>.npz")
    found: dict[str, Tracks] = {}

    def read(video: PointVideo) -> PointVideo:
        found[video.name] = _read_tracks_of(video, folder / f"{video.name}.npz", need_occluded)
        return video

    read_all(folder, videos, read)
    return found


def _read_tracks_of(video: PointVideo, path: Path, need_occluded: bool) -> Tracks:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {key: arrays[key] for key in arrays.files}
    except FileNotFoundError:
        raise UserError(f"{video.name}: no {path.name}") from None
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{video.name}: {path.name} is not a sound .npz ({error})") from None
    points = video.truth.shape[:2]
    places, occluded = found.get("tracks"), found.get("occluded")
    if places is None or places.shape != (*points, 2) or places.dtype.kind not in "fiu":
        got = "none" if places is None else f"{places.shape} {places.dtype}"
        raise UserError(
            f"{video.name}: tracks must be (N, T, 2) = {(*points, 2)} numbers, a row per query, got {got}"
        )
    if occluded is None and not need_occluded:
        occluded = np.zeros(points, bool)
    if occluded is None or occluded.shape != points or occluded.dtype != bool:
        got = "none" if occluded is None else f"{occluded.shape} {occluded.dtype}"
        raise UserError(f"{video.name}: occluded must be (N, T) = {points} bool, got {got}")
    size = np.asarray(found.get("size", video.size))
    if size.shape != (2,) or size.dtype.kind not in "fiu" or not (size > 0).all():
        raise UserError(f"{video.name}: size must be the two numbers H, W, got {size}")
    scale = np.array(video.size[::-1]) / size[::-1]
    return Tracks(places.astype(np.float64) * scale, occluded)


def format_scores(benchmark: Benchmark, rows: Mapping[str, PointScores]) -> str:
    """A line per row with the values of the whole set; for sets averaged over videos also a line per video. In percent."""
    columns = COLUMNS[benchmark]
    text = _format({name: [row.whole[c] for c in columns] for name, row in rows.items()}, columns)
    if benchmark == "jhmdb":
        return text
    main = columns[0]
    per_video = {
        video: [row.per_video[video][main] for row in rows.values()]
        for video in next(iter(rows.values())).per_video
    }
    return f"{_format(per_video, tuple(rows), corner=main)}\n\n{text}"


def _format(
    lines: Mapping[str, Sequence[float]], columns: Sequence[str], *, corner: str = "row"
) -> str:
    first = max(len(name) for name in (corner, *lines))
    widths = [max(9, len(column)) for column in columns]
    head = [f"{column:>{width}}" for column, width in zip(columns, widths, strict=True)]
    text = ["  ".join([f"{corner:<{first}}", *head])]
    for name, values in lines.items():
        cells = [f"{100 * value:{width}.1f}" for value, width in zip(values, widths, strict=True)]
        text.append("  ".join([f"{name:<{first}}", *cells]))
    return "\n".join(text)


Record = dict[str, object]


def track_videos(
    name: str,
    videos: Sequence[PointVideo],
    extractor: Extractor,
    protocol: Protocol,
    *,
    reading: Reading,
    both_ways: bool,
) -> tuple[dict[str, Tracks], Record]:
    """Tracks by video name, and what they were made with: features, protocol, input sizes, time."""
    begin = time.perf_counter()
    tracks, sizes, num_frames = {}, {}, 0
    for video in progress.track(videos, description=name):
        tracks[video.name] = track_points(
            sequence_features(video.source, extractor, protocol),
            video.queries,
            protocol,
            size=video.size,
            both_ways=both_ways,
            reading=reading,
        )
        num_frames += video.source.num_frames
        sizes[video.name] = list(input_size(video.source.native_size, protocol, extractor.stride))
    record: Record = {
        "protocol": protocol.as_dict(),
        "reading": reading.as_dict(),
        "features": extractor.describe(),
        "input_size_hw": sizes,
        "seconds_per_frame": (time.perf_counter() - begin) / num_frames,
    }
    return tracks, record


def still_videos(videos: Sequence[PointVideo]) -> tuple[dict[str, Tracks], Record]:
    """The baseline that leaves every point at its query."""
    tracks = {v.name: standing_still(v.queries, v.source.num_frames) for v in videos}
    return tracks, {"features": "none: points stay at their queries"}


SHEET_FRAMES = 6
SHEET_POINTS = 40  # more would hide the frames: evenly taken
_HEIGHT = 200  # pixels of a picture on the sheet
_RADIUS = 3.0  # pixels on the sheet


def draw_points(rgb: Rgb, places: Places, occluded: Flags, *, radius: float) -> Rgb:
    """The frame (H, W, 3) with points (N, 2) in its pixels; places of nan are left out."""
    image = Image.fromarray(rgb)
    draw = ImageDraw.Draw(image)
    line = max(1, round(radius / 3))
    for number, ((x, y), is_hidden) in enumerate(zip(places, occluded, strict=True)):
        if np.isnan(x) or np.isnan(y):
            continue
        colour = tuple(int(value) for value in COLOURS[number % len(COLOURS)])
        box = (x - radius, y - radius, x + radius, y + radius)
        if is_hidden:
            draw.ellipse(box, outline=colour, width=line)
        else:
            draw.ellipse(box, fill=colour, outline="white", width=line)
    return np.asarray(image)


def write_point_sheet(path: Path, video: PointVideo, rows: Mapping[str, Tracks]) -> None:
    """A contact sheet: a few frames with the true points, and under them those of each row."""
    known = np.flatnonzero(video.is_visible.any(0))
    shown = known[np.linspace(0, len(known) - 1, min(SHEET_FRAMES, len(known))).round().astype(int)]
    count = len(video.truth)
    points = np.linspace(0, count - 1, min(SHEET_POINTS, count)).round().astype(int)
    frames = video.source.read([int(index) for index in shown], video.size)
    radius = _RADIUS * video.size[0] / _HEIGHT
    # What is not in view is not drawn as true at all: BADJA and TAP-Vid hold no place for it.
    seen_truth = np.where(video.is_visible[..., None], video.truth, np.nan)
    drawn = {"truth": Tracks(seen_truth, np.zeros_like(video.is_visible)), **rows}
    strips = []
    for name, tracks in drawn.items():
        pictures = [
            draw_points(
                np.ascontiguousarray(frame.permute(1, 2, 0).numpy()),
                tracks.places[points, index],
                tracks.occluded[points, index],
                radius=radius,
            )
            for frame, index in zip(frames, shown, strict=True)
        ]
        strips.append((f"{video.name}: {name}", pictures))
    write_contact_sheet(path, strips, height=_HEIGHT)
