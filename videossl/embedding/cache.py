"""Features on disk, computed once: under a name made of the weights, the videos and how they were shown.

A folder per name, a file per CHUNK videos, each written whole: what a stopped command has done is there for the next one.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from videossl.embedding.clip_reader import ClipReader
from videossl.embedding.digests import settings_digest, state_digest, videos_digest
from videossl.embedding.features import TOKEN_GRID, Form, VideoFeatures, video_features
from videossl.errors import StorageFull, UserError
from videossl.export.video_encoder import VideoEncoder
from videossl.progress import track
from videossl.whole_file import whole_file

log = logging.getLogger("videossl")

CHUNK = 64  # videos; chosen: a minute of work on two cores
FORMAT = 2
LARGE_BYTES = 8 * 2**30  # of features, on disk and in memory, that are worth a word; chosen


def cached_features(
    encoder: VideoEncoder,
    reader: ClipReader,
    rows: Sequence[int],
    *,
    cache: Path,
    device: torch.device,
    form: Form = "pooled",
    why: str = "features",
    num_workers: int | None = None,
) -> dict[int, VideoFeatures]:
    """Each row's features, from the cache where they are there, else computed and put there.

    Raises UserError where the folder cannot be written.
    """
    folder = cache / "features" / _name(encoder, reader, rows, form)
    chunks = [list(rows[start : start + CHUNK]) for start in range(0, len(rows), CHUNK)]
    found = {index: _read(folder, index, chunk) for index, chunk in enumerate(chunks)}
    missing = {index: chunks[index] for index, features in found.items() if features is None}
    if not missing:
        log.info("%s: %d videos from the cache, %s", why, len(rows), folder)
    else:
        _make(folder)  # before the work, not after it
        wanted = [row for chunk in missing.values() for row in chunk]
        computed = video_features(
            encoder, reader, wanted, device=device, form=form, num_workers=num_workers
        )
        following = track(computed, description=why, total=len(wanted))
        for index, chunk in missing.items():
            features = _take(following, len(chunk))
            _write(folder, index, features)
            if not any(found.values()):
                _warn_of_size(features, len(rows), why)
            found[index] = features
    return {one.row: one for features in found.values() for one in features or []}


def _name(encoder: VideoEncoder, reader: ClipReader, rows: Sequence[int], form: Form) -> str:
    described = {
        "format": FORMAT,
        "weights": state_digest(encoder),
        "encoder": encoder.describe(),
        "shown": asdict(reader.clip),
        "clips": reader.num_clips,
        "videos": videos_digest(reader.manifest, rows),
        "form": [form, TOKEN_GRID if form == "tokens" else ()],
    }
    return settings_digest(described)[:32]


def _take(features: Iterator[VideoFeatures], count: int) -> list[VideoFeatures]:
    return [next(features) for _ in range(count)]


def _warn_of_size(features: Sequence[VideoFeatures], num_rows: int, why: str) -> None:
    sizes = [one.clips.nbytes for one in features if one.clips is not None]
    if sizes and (total := max(sizes) * num_rows) > LARGE_BYTES:
        log.warning(
            "%s: the features of %d videos will take %.0f GiB of memory and of the cache; fewer --clips-per-video take less",
            *(why, num_rows, total / 2**30),
        )


def _write(folder: Path, index: int, features: Iterable[VideoFeatures]) -> None:
    """Named by the place in the chunk: the folder's name says which videos these are, wherever a manifest lists them."""
    places = list(enumerate(features))
    tensors = {str(place): one.clips for place, one in places if one.clips is not None}
    reasons = {str(place): one.reason for place, one in places if one.clips is None}
    try:
        with whole_file(folder / f"{index}.safetensors") as partial:
            save_file(tensors, partial, {"reasons": json.dumps(reasons)})
    except StorageFull as full:
        raise UserError(f"{full}, or name another --cache") from full
    except (UserError, SafetensorError) as error:
        raise _refused(folder, error) from error


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(folder, error) from error


def _refused(folder: Path, error: Exception) -> UserError:
    return UserError(
        f"features cannot be cached in {folder}: {error}; free space, or name another --cache"
    )


def _read(folder: Path, index: int, rows: Sequence[int]) -> list[VideoFeatures] | None:
    """The features of a chunk's file; None where there is none or it is damaged."""
    path = folder / f"{index}.safetensors"
    try:
        with safe_open(path, "pt") as file:
            reasons = json.loads(file.metadata()["reasons"])
            return [
                VideoFeatures(row, None, reasons[str(place)])
                if str(place) in reasons
                else VideoFeatures(row, file.get_tensor(str(place)))
                for place, row in enumerate(rows)
            ]
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        log.warning("%s is damaged (%s): computed again", path, error)
        return None
