import multiprocessing
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from videossl.data import manifest as manifest_module
from videossl.data.entry import VideoEntry, sound_entry, write_manifest
from videossl.data.manifest import Manifest, read_manifest
from videossl.decode.index import read_index
from videossl.decode.source import VideoSource
from videossl.errors import UserError

ENTRY = VideoEntry(
    path="/videos/a.mp4",
    group="videos/a",
    status="ok",
    reason="",
    bytes=1000,
    container="mov",
    codec="h264",
    width=128,
    height=96,
    rotation=90,
    num_frames=60,
    fps=25.0,
    duration_seconds=2.4,
    begin_seconds=0.5,
    end_seconds=2.9,
    is_constant_rate=True,
    motion=(0.0, 0.5, 0.25),
    key_frames=(0, 32),
    cuts=(1.5,),
    phash=2**64 - 1,
)
BROKEN = VideoEntry(path="/b.mp4", group="b", status="broken", reason="it is empty", bytes=0)


def test_manifest_comes_back_as_written(tmp_path):
    path = tmp_path / "new" / "m.parquet"
    write_manifest([ENTRY, BROKEN], path)
    assert list(read_manifest(path)) == [ENTRY, BROKEN]
    assert [file.name for file in path.parent.iterdir()] == ["m.parquet"]


def test_manifest_without_rows_comes_back_empty(tmp_path):
    write_manifest([], tmp_path / "m.parquet")
    assert len(read_manifest(tmp_path / "m.parquet")) == 0


def test_failed_write_leaves_the_old_manifest(tmp_path, monkeypatch):
    path = tmp_path / "m.parquet"
    write_manifest([ENTRY], path)

    def full_disk(writer, batch):
        Path(writer.where).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_batch", full_disk)
    with pytest.raises(UserError, match=r"m\.parquet cannot be written: No space left"):
        write_manifest([BROKEN], path)
    assert list(read_manifest(path)) == [ENTRY]
    assert [file.name for file in tmp_path.iterdir()] == ["m.parquet"]


def test_missing_manifest_fails(tmp_path):
    with pytest.raises(UserError, match=r"no manifest at .* make one with `videossl scan"):
        read_manifest(tmp_path / "m.parquet")


def test_manifest_that_is_a_folder_fails(tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", [b"", b"path,status\n", b"PAR1 and more"])
def test_manifest_that_is_not_parquet_fails(tmp_path, content):
    path = tmp_path / "m.parquet"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is not a Parquet file"):
        read_manifest(path)


def test_other_parquet_file_fails(tmp_path):
    pq.write_table(pa.table({"path": ["a"]}), tmp_path / "m.parquet")
    with pytest.raises(
        UserError,
        match=r"is no manifest, it lacks \d+ columns, among them offset, bytes, modified",
    ):
        read_manifest(tmp_path / "m.parquet")


def test_manifest_of_another_version_fails(tmp_path):
    path = tmp_path / "m.parquet"
    write_manifest([ENTRY], path)
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"videossl_manifest_version": "99"}), path)
    with pytest.raises(UserError, match="is a manifest of version 99, this is 3"):
        read_manifest(path)


@pytest.mark.parametrize(
    "variant", ["h264", "h264_b_frames", "h264_variable_rate", "h264_mkv", "h264_avi"]
)
def test_a_row_gives_back_the_index_of_the_file(numbered_video, tmp_path, variant):
    path = str(numbered_video(variant))
    index = read_index(path)
    entry = sound_entry(index, VideoSource(path), group="g", label="walk", modified=5)
    write_manifest([entry], tmp_path / "m.parquet")
    (read,) = read_manifest(tmp_path / "m.parquet")
    again = read.index()
    assert read.label == "walk"
    assert np.array_equal(again.pts, index.pts)
    assert np.array_equal(again.is_key, index.is_key)
    assert again.pts_seconds.tolist() == index.pts_seconds.tolist()
    kept = ("time_base", "stream_index", "times_by_order", "num_bytes")
    assert [getattr(again, name) for name in kept] == [getattr(index, name) for name in kept]
    np.testing.assert_allclose(again.info.motion, index.info.motion, rtol=1e-6)  # kept as float32
    assert replace(again.info, motion=()) == replace(index.info, motion=())


@pytest.fixture
def mapped(tmp_path, monkeypatch):
    """A manifest that counts as large, of 300 rows in several parts."""
    monkeypatch.setattr(manifest_module, "MAPPED_ROWS", 100)
    monkeypatch.setattr(manifest_module, "_ROWS_PER_BATCH", 64)
    entries = [
        replace(ENTRY, path=f"/v/{i}.mp4", group=f"g{i % 7}", num_frames=i, cuts=(1.0,) * (i % 2))
        for i in range(299)
    ]
    write_manifest([*entries, BROKEN], tmp_path / "m.parquet")
    return tmp_path / "m.parquet", [*entries, BROKEN]


def test_a_large_manifest_is_mapped_and_reads_alike(mapped):
    path, entries = mapped
    manifest = read_manifest(path)
    assert (path.parent / ".m.parquet.arrow").exists()
    assert list(manifest) == entries
    assert [manifest[i] for i in (0, 63, 64, 299, -1)] == [entries[i] for i in (0, 63, 64, 299, -1)]
    assert manifest[62:66] == entries[62:66]
    with pytest.raises(IndexError, match="no row 300"):
        manifest[300]
    assert pickle.loads(pickle.dumps(manifest))[299] == BROKEN
    assert manifest.is_ok().tolist() == [True] * 299 + [False]
    assert manifest.rows_with_cuts().tolist() == [i for i, e in enumerate(entries) if e.cuts]
    assert manifest.is_usable(2.3, skip_ends=False).tolist() == [True] * 299 + [False]
    assert not manifest.is_usable(2.5, skip_ends=False).any()
    assert not manifest.is_usable(0.0, skip_ends=True).any(), "nothing is left of an empty span"
    assert manifest.forget_pages()[5] == entries[5]


def test_equal_strings_hash_alike_in_every_part(mapped):
    path, entries = mapped
    hashed = read_manifest(path).hashed("group", 3)
    by_group = {entry.group: value for entry, value in zip(entries, hashed.tolist(), strict=True)}
    assert hashed.tolist() == [by_group[entry.group] for entry in entries]
    assert len(set(by_group.values())) == 8
    assert not np.array_equal(hashed, read_manifest(path).hashed("group", 4))


def test_a_changed_manifest_is_mapped_anew(mapped):
    path, _ = mapped
    read_manifest(path)
    write_manifest([replace(ENTRY, path=f"/w/{i}.mp4") for i in range(120)], path)
    assert read_manifest(path)[0].path == "/w/0.mp4"
    before = (path.parent / ".m.parquet.arrow").stat().st_mtime_ns
    assert len(read_manifest(path)) == 120
    assert (path.parent / ".m.parquet.arrow").stat().st_mtime_ns == before, "made once"


def test_a_torn_map_is_made_anew(mapped):
    path, entries = mapped
    read_manifest(path)
    arrow = path.parent / ".m.parquet.arrow"
    arrow.write_bytes(arrow.read_bytes()[:1000])
    assert read_manifest(path)[7] == entries[7]


def test_where_the_folder_cannot_be_written_the_map_goes_to_the_temporary_one(
    mapped, monkeypatch, tmp_path
):
    path, entries = mapped
    write = manifest_module._write_mapped

    def refuse_beside(target, *rest):
        if target.parent == path.parent:
            raise PermissionError(13, "Permission denied")
        return write(target, *rest)

    monkeypatch.setattr(manifest_module, "_write_mapped", refuse_beside)
    monkeypatch.setattr(manifest_module.tempfile, "gettempdir", lambda: str(tmp_path))
    assert read_manifest(path)[7] == entries[7]
    assert (tmp_path / f"videossl-{os.getuid()}").is_dir()


def read_rows(path: str, queue) -> None:
    queue.put([read_manifest(path)[i].path for i in (0, 298)])


def test_processes_that_open_it_at_once_all_read_it(mapped):
    path, _ = mapped
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=read_rows, args=(str(path), queue)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [queue.get(timeout=60) for _ in processes] == [["/v/0.mp4", "/v/298.mp4"]] * 4
    for process in processes:
        process.join()


def test_entries_that_are_not_written_make_a_manifest():
    assert list(Manifest.from_entries([ENTRY, BROKEN])) == [ENTRY, BROKEN]
