"""Features on disk: one row for each video in Parquet, and a cache that is valid for the same weights and videos only."""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from videossl.data.entry import VideoEntry, parquet_file, parquet_writer
from videossl.data.manifest import Manifest
from videossl.distributed import World
from videossl.errors import StorageFull, UserError
from videossl.export.video_encoder import VideoEncoder
from videossl.io.output_files import is_unfinished, whole_file
from videossl.io.progress import track
from videossl.models.encoder_file import weights_digest
from videossl.probe.embedding import TOKEN_GRID, ClipReader, Form, VideoFeatures, video_features

log = logging.getLogger("videossl")

CHUNK = 64  # videos of a part, which a stop costs at most; chosen: a minute of work on two cores
METADATA_KEY = b"videossl"
_SETTINGS = "settings.json"


@dataclass(frozen=True)
class FeatureTable:
    """The file `out` of features of `encoder` for every row of `reader.manifest`.

    `settings` are plain types that say all that the features depend on; they stand in the file's metadata, and in the folder
    of parts, which a run of other settings does not go on from.
    """

    out: Path
    encoder: VideoEncoder
    reader: ClipReader
    settings: Mapping[str, Any]

    @property
    def parts(self) -> Path:
        """The folder of parts."""
        return self.out.with_name(f"{self.out.name}.parts")

    @property
    def schema(self) -> pa.Schema:
        """path, offset, group, label, feature (fixed-size list of float32, null without one), status, reason."""
        feature = pa.list_(pa.float32(), self.encoder.num_channels)
        fields = [("path", pa.string()), ("offset", pa.int64()), ("group", pa.string())]
        fields += [("label", pa.string()), ("feature", feature)]
        fields += [("status", pa.string()), ("reason", pa.string())]
        return pa.schema(fields, {METADATA_KEY: json.dumps(self.settings, sort_keys=True)})

    def is_finished(self) -> bool:
        """Whether the file is there with these settings. Raises UserError if it, or parts of it, are of other ones.

        For the main rank alone: another one may look while that writes.
        """
        if (self.parts / _SETTINGS).exists():
            _check_same(self.parts, _read_settings(self.parts / _SETTINGS), self.settings)
        elif self.parts.exists() and not all(map(is_unfinished, self.parts.iterdir())):
            raise UserError(f"{self.parts} holds files of something else: name another -o")
        if not self.out.exists():
            return False
        _check_same(self.out, _settings_of(self.out), self.settings)
        return True

    def make(self, world: World, *, num_workers: int) -> None:
        """Embeds what is still missing and writes the file; every rank must call it, each does a share of the parts."""
        starts = range(0, len(self.reader.manifest), CHUNK)
        if world.is_main:
            self._begin()
        _meet(world, "begun")  # no rank writes a part before the settings stand beside it
        missing = [start for start in starts if not self._is_sound(start)]
        _meet(world, "looked")  # no rank writes before all have seen the same parts
        if len(missing) < len(starts):
            log.info("%s: going on, %d of %d parts are left", self.out, len(missing), len(starts))
        self._embed(missing[world.rank :: world.size], world, num_workers)
        _meet(world, "embedded")
        if world.is_main:
            self._join(starts)
            self.drop_parts()
        _meet(world, "joined")

    def drop_parts(self) -> None:
        """Removes the folder of parts, whose settings `is_finished` has seen; nothing where there is none."""
        if not self.parts.exists():
            return
        for path in self.parts.iterdir():
            if path.name != _SETTINGS:  # the last to go: by it a killed removal is known as ours
                path.unlink()
        shutil.rmtree(self.parts)

    def _begin(self) -> None:
        with whole_file(self.parts / _SETTINGS) as partial:
            partial.write_text(json.dumps(self.settings, sort_keys=True, indent=1))

    def _embed(self, starts: Sequence[int], world: World, num_workers: int) -> None:
        rows = [row for start in starts for row in self._rows(start)]
        found: Iterable[VideoFeatures] = video_features(
            self.encoder, self.reader, rows, device=world.device, num_workers=num_workers
        )
        if world.is_main:
            share = "" if world.size == 1 else f" (1/{world.size} of all)"
            found = track(found, description=f"videos{share}", total=len(rows))
        following = iter(found)
        for start in starts:
            self._write(start, [next(following) for _ in self._rows(start)])
        for _ in following:  # there are none: this lets the bar come to its end
            pass

    def _rows(self, start: int) -> range:
        return range(start, min(start + CHUNK, len(self.reader.manifest)))

    def _part(self, start: int) -> Path:
        return self.parts / f"{start:09d}.parquet"

    def _is_sound(self, start: int) -> bool:
        path = self._part(start)
        if not path.exists():
            return False
        try:
            with parquet_file(path) as file:
                return file.metadata.num_rows == len(self._rows(start))
        except (pa.ArrowException, OSError) as error:
            log.warning("%s is damaged (%s): made again", path, error)
            return False

    def _write(self, start: int, found: Sequence[VideoFeatures]) -> None:
        entries = self.reader.manifest[start : start + CHUNK]
        batch = _batch(self.schema, entries, found)
        with parquet_writer(self._part(start), self.schema) as writer:
            writer.write_batch(batch)

    def _join(self, starts: Iterable[int]) -> None:
        lacking = [self._part(start) for start in starts if not self._part(start).exists()]
        if lacking:
            raise UserError(
                f"{lacking[0]} is not there: -o must lie on storage that all hosts share"
            )
        with parquet_writer(self.out, self.schema) as writer:
            for start in starts:
                with parquet_file(self._part(start)) as part:
                    writer.write_table(part.read().cast(self.schema))


def _meet(world: World, point: str) -> None:
    """Waits for all ranks as long as it takes: shares differ by hours, and a barrier of torch gives up after minutes.

    Where one of them dies, torchrun ends the others.
    """
    if world.store is None:
        return
    world.store.set(f"embedding/{point}/{world.rank}", "")
    arrived = [f"embedding/{point}/{rank}" for rank in range(world.size)]
    while not world.store.check(arrived):
        time.sleep(0.1)


def count_status(path: Path) -> dict[str, int]:
    """How many rows of a table have a feature, and how many have a reason instead."""
    with parquet_file(path) as file:
        status = file.read(["status"])["status"].to_pylist()
    return {"ok": status.count("ok"), "broken": len(status) - status.count("ok")}


def _batch(
    schema: pa.Schema, entries: Sequence[VideoEntry], found: Sequence[VideoFeatures]
) -> pa.RecordBatch:
    means, reasons = zip(*(_mean(one) for one in found), strict=True)
    size = schema.field("feature").type.list_size
    values = np.zeros((len(found), size), dtype=np.float32)
    for place, mean in enumerate(means):
        if mean is not None:
            values[place] = mean
    mask = pa.array([mean is None for mean in means])
    columns = {
        "path": [entry.path for entry in entries],
        "offset": [entry.offset for entry in entries],
        "group": [entry.group for entry in entries],
        "label": [entry.label for entry in entries],
        "feature": pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), size, mask=mask),
        "status": ["ok" if mean is not None else "broken" for mean in means],
        "reason": list(reasons),
    }
    arrays = [
        columns[field.name]
        if field.name == "feature"
        else pa.array(columns[field.name], type=field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _mean(found: VideoFeatures) -> tuple[np.ndarray | None, str]:
    """The mean over a video's clips, or None and the reason."""
    if found.clips is None:
        return None, found.reason
    mean = found.clips.mean(0)
    if not torch.isfinite(mean).all():
        return None, "the encoder's features of it are not finite"
    return mean.numpy(), ""


def _read_settings(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}; delete {path.parent}") from error


def _settings_of(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            metadata = pq.read_schema(file).metadata or {}
        return json.loads(metadata[METADATA_KEY])
    except (pa.ArrowException, OSError, KeyError, ValueError):
        raise UserError(f"{path} is no file of features: name another -o, or delete it") from None


def _check_same(place: Path, found: Any, wanted: Mapping[str, Any]) -> None:
    differing = list(_differences(found, json.loads(json.dumps(wanted))))
    if differing:
        raise UserError(
            f"{place} is of other settings ({'; '.join(differing[:3])}): name another -o, or delete it"
        )


def _differences(found: Any, wanted: Any, path: str = "") -> Iterator[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted({*found, *wanted}):
            yield from _differences(found.get(key), wanted.get(key), f"{path}.{key}".lstrip("."))
    elif found != wanted:
        yield f"{path} was {found!r}, is {wanted!r}"


def state_digest(module: nn.Module) -> str:
    """SHA-256 of every parameter and buffer, by name, type, shape and bytes."""
    return weights_digest({name: value.cpu() for name, value in module.state_dict().items()})


def videos_digest(manifest: Manifest, rows: Sequence[int]) -> str:
    """SHA-256 of where these videos lie, their sizes and when they were changed: other files give another one."""
    digest = hashlib.sha256()
    for row in rows:
        entry = manifest[row]
        digest.update(
            f"{entry.path}\0{entry.offset}\0{entry.bytes}\0{entry.modified}\0{entry.status}\n".encode()
        )
    return digest.hexdigest()


def settings_digest(settings: Any) -> str:
    """SHA-256 of plain types."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


# videos; chosen: a minute of work on two cores
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
