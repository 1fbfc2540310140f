"""Runs one row of the table of a point benchmark: features from one extractor, tracks of every video."""

import time
from collections.abc import Sequence

from videossl import progress
from videossl.eval.features import Extractor, input_size, sequence_features
from videossl.eval.point_sets import PointVideo
from videossl.eval.points import Reading, Tracks, standing_still, track_points
from videossl.eval.protocol import Protocol

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
