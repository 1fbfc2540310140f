"""Which videos a run trains on and which it holds out: drawn once, and kept in its folder.

A manifest that changes between a run and its continuation moves no video across.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from videossl.data.entry import parquet_file, parquet_writer
from videossl.data.manifest import MAPPED_ROWS, Manifest
from videossl.errors import UserError
from videossl.rng import fold

log = logging.getLogger("videossl")

NAME = "split.parquet"
NUM_NAMED = 3  # of the videos that came or went
_DIGEST, _NUM_ROWS = b"videossl_manifest_digest", b"videossl_manifest_rows"
_SCHEMA = pa.schema([("video", pa.string()), ("group", pa.string()), ("is_heldout", pa.bool_())])


@dataclass(frozen=True)
class Split:
    """Rows of one manifest to train on and to hold out; whole source groups are on one side."""

    train: np.ndarray
    heldout: np.ndarray

    @classmethod
    def of(cls, is_heldout: np.ndarray) -> "Split":
        """The split of (rows,) bool."""
        return cls(np.flatnonzero(~is_heldout), np.flatnonzero(is_heldout))


def split_by_group(manifest: Manifest, fraction: float, seed: int) -> Split:
    """Holds out the groups that come first in a keyed order until `fraction` of the videos is reached.

    From MAPPED_ROWS rows on, which groups come first is read off a hash of their names, in one pass over the column.
    """
    if len(manifest) >= MAPPED_ROWS:
        key = fold(seed, "holdout")
        return Split.of(manifest.hashed("group", key) < np.uint64(fraction * (2**64 - 1)))
    groups: dict[str, list[int]] = {}
    for row, group in enumerate(manifest.strings("group")):
        groups.setdefault(group, []).append(row)
    train: list[int] = []
    heldout: list[int] = []
    for group in sorted(groups, key=lambda g: fold(seed, "holdout", g)):
        held = len(heldout) + len(groups[group]) <= fraction * len(manifest)
        (heldout if held else train).extend(groups[group])
    return Split(np.array(train, dtype=np.int64), np.array(heldout, dtype=np.int64))


def split_of_run(
    manifest: Manifest, fraction: float, seed: int, *, run: Path | None, may_change: bool
) -> Split:
    """The split by group, or that which a run remembers in its folder.

    Of a manifest that has changed since, sources held out then are held out and all others trained on. Raises UserError
    for such a one unless it `may_change`, naming what was added and removed.
    """
    drawn = split_by_group(manifest, fraction, seed)
    path = None if run is None else run / NAME
    if path is None or not path.exists():
        return drawn
    table, metadata = _read(path)
    num_rows = int(metadata[_NUM_ROWS])
    if metadata[_DIGEST].decode() != manifest.digest():
        return _kept_apart(manifest, table, num_rows, run=str(run), may_change=may_change)
    split = Split.of(table["is_heldout"].to_numpy()[:num_rows])
    # In the order of the draw, which samples depend on.
    return drawn if np.array_equal(split.heldout, np.sort(drawn.heldout)) else split


def remember_split(run: Path, manifest: Manifest, split: Split) -> None:
    """Writes down in the folder of a run what `split_of_run` is to find there, unless it does already.

    What was held out of an earlier manifest stays held out, should it come back. Raises UserError if the disk refuses.
    """
    path, digest, gone = run / NAME, manifest.digest(), None
    if path.exists():
        table, metadata = _read(path)
        if metadata[_DIGEST].decode() == digest:
            return
        gone = table.filter(pc.and_(table["is_heldout"], pc.invert(_is_in(table, manifest))))
    is_heldout = np.zeros(len(manifest), dtype=bool)
    is_heldout[split.heldout] = True
    metadata = {_DIGEST: digest.encode(), _NUM_ROWS: str(len(manifest)).encode()}
    with parquet_writer(path, _SCHEMA.with_metadata(metadata), compression="zstd") as writer:
        start = 0
        for videos, groups in manifest.sources():
            part = pa.array(is_heldout[start : start + len(videos)])
            writer.write_batch(pa.record_batch([videos, groups, part], names=_SCHEMA.names))
            start += len(videos)
        if gone is not None:
            writer.write_table(gone.cast(_SCHEMA))


def _kept_apart(
    manifest: Manifest, table: pa.Table, num_rows: int, *, run: str, may_change: bool
) -> Split:
    """The split of another manifest than that of the rows remembered."""
    videos = [video for part, _ in manifest.sources() for video in part.to_pylist()]
    groups = manifest.strings("group")
    before = table["video"].to_pylist()
    change = _change(before[:num_rows], videos)
    if not may_change:
        raise UserError(
            f"{manifest.path} has changed since the run in {run} began: {change}; bring the manifest of then back, or go "
            "on with this one by --accept-changed-manifest"
        )
    held = table.filter(table["is_heldout"])
    held_videos, held_groups = (set(held[name].to_pylist()) for name in ("video", "group"))
    # Groups may have been merged or renamed since.
    apart = {
        group
        for video, group in zip(videos, groups, strict=True)
        if video in held_videos or group in held_groups
    }
    is_heldout = np.array([group in apart for group in groups], dtype=bool)
    trained = set(before[:num_rows]) - held_videos
    num_crossed = sum(videos[row] in trained for row in np.flatnonzero(is_heldout).tolist())
    log.warning("%s has changed since the run in %s began: %s", manifest.path, run, change)
    if num_crossed:
        log.warning(
            "%d videos that were trained on share a source with held-out ones now", num_crossed
        )
    return Split.of(is_heldout)


def _change(before: Sequence[str], now: Sequence[str]) -> str:
    """What came and went, in words."""
    added, removed = set(now) - set(before), set(before) - set(now)
    if not added and not removed:
        return "its videos are the same, what is known of them is not"
    return ", ".join(
        f"{len(videos)} videos {what}"
        + (
            f" ({', '.join(sorted(videos)[:NUM_NAMED])}{', ...' * (len(videos) > NUM_NAMED)})"
            if videos
            else ""
        )
        for what, videos in (("added", added), ("removed", removed))
    )


def _is_in(table: pa.Table, manifest: Manifest) -> pa.ChunkedArray:
    videos = pa.chunked_array([part for part, _ in manifest.sources()], pa.string())
    return pc.is_in(table["video"], videos.combine_chunks())


def _read(path: Path) -> tuple[pa.Table, dict[bytes, bytes]]:
    """Raises UserError where it is damaged: without it, held-out videos might be trained on."""
    try:
        with parquet_file(path) as file:
            table = file.read()
        metadata = table.schema.metadata
        return table.select(_SCHEMA.names), {key: metadata[key] for key in (_DIGEST, _NUM_ROWS)}
    except (OSError, pa.ArrowInvalid, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({str(error).splitlines()[0]}): it says which videos the run holds out; bring it back, "
            "or name a new folder with out=..."
        ) from None
