"""Tracks of all videos of a benchmark: written, read from any method's files, and judged as the benchmark does."""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from videossl.errors import UserError
from videossl.eval.point_metrics import (
    PCK_ALPHAS,
    QueryMode,
    badja_pck,
    joint_errors,
    mean_pck,
    tapvid_scores,
)
from videossl.eval.point_sets import Benchmark, PointVideo, read_all
from videossl.eval.points import Tracks
from videossl.whole_file import whole_file

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
