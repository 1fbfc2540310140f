"""What a run holds out stays held out, whatever becomes of its manifest."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from videossl.data import manifest as manifest_module
from videossl.data.entry import VideoEntry, write_manifest
from videossl.data.manifest import Manifest, read_manifest
from videossl.engine.split import remember_split, split_of_run
from videossl.errors import UserError

NAMES = [f"/v/{number}.mp4" for number in range(20)]


def entry(path: str, group: str = "", size: int = 1, **facts) -> VideoEntry:
    return VideoEntry(path, group or Path(path).stem, "ok", "", size, **facts)


def written(folder: Path, entries: list[VideoEntry]) -> Manifest:
    write_manifest(entries, folder / "m.parquet")
    return read_manifest(folder / "m.parquet")


def begun(folder: Path, entries: list[VideoEntry]) -> set[str]:
    """Draws a split, as a new run does, and gives the held-out videos."""
    return names(resumed(folder, entries))["heldout"]


def resumed(folder: Path, entries: list[VideoEntry], *, may_change: bool = False):
    manifest = written(folder, entries)
    split = split_of_run(manifest, 0.3, 0, run=folder, may_change=may_change)
    remember_split(folder, manifest, split)
    return manifest, split


def names(of: tuple) -> dict[str, set[str]]:
    manifest, split = of
    return {
        side: {str(manifest[row].source) for row in getattr(split, side).tolist()}
        for side in ("train", "heldout")
    }


@pytest.mark.parametrize("mapped_rows", [manifest_module.MAPPED_ROWS, 1])
def test_an_unchanged_manifest_gives_the_split_that_was_drawn(mapped_rows, tmp_path, monkeypatch):
    for module in ("data.manifest", "engine.split"):
        monkeypatch.setattr(f"videossl.{module}.MAPPED_ROWS", mapped_rows)
    manifest, first = resumed(tmp_path, [entry(name) for name in NAMES])
    again = split_of_run(manifest, 0.3, 0, run=tmp_path, may_change=False)
    without = split_of_run(manifest, 0.3, 0, run=None, may_change=False)
    for other in (again, without):
        assert np.array_equal(first.train, other.train)
        assert np.array_equal(first.heldout, other.heldout)


def test_what_was_added_and_removed_is_named_and_refused(tmp_path):
    held = begun(tmp_path, [entry(name) for name in NAMES])
    member = entry("/v/shard.tar", "new", 7, offset=512)
    changed = [member, *(entry(name) for name in NAMES[3:])]
    with pytest.raises(UserError, match="accept-changed-manifest") as refused:
        resumed(tmp_path, changed)
    said = str(refused.value)
    assert "1 videos added (/v/shard.tar[512:519]), 3 videos removed (/v/0.mp4, /v/1" in said
    sides = names(resumed(tmp_path, changed, may_change=True))
    assert sides["heldout"] == held & set(NAMES[3:])
    assert str(member.source) in sides["train"]
    assert names(resumed(tmp_path, changed)) == sides  # it is the run's own now


def test_facts_that_changed_are_refused_too(tmp_path):
    begun(tmp_path, [entry(name) for name in NAMES])
    with pytest.raises(UserError, match="its videos are the same, what is known of them is not"):
        resumed(tmp_path, [entry(name, num_frames=8) for name in NAMES])


@pytest.mark.parametrize("change", ["moved", "regrouped", "many added", "gone and back"])
def test_no_video_moves_from_heldout_to_training(change, tmp_path, caplog):
    entries = [entry(name) for name in NAMES]
    held = begun(tmp_path, entries)
    assert held
    if change == "moved":
        entries = [entry(e.path.replace("/v/", "/w/"), e.group) for e in entries]
        held = {name.replace("/v/", "/w/") for name in held}
    elif change == "regrouped":
        entries = [entry(e.path, f"pair {number // 2}") for number, e in enumerate(entries)]
    elif change == "many added":
        entries = [entry(f"/a/{number}.mp4") for number in range(100, 180)] + entries
    else:
        rest = [e for e in entries if e.path not in held]
        assert not names(resumed(tmp_path, rest, may_change=True))["heldout"]
    sides = names(resumed(tmp_path, entries, may_change=True))
    assert held <= sides["heldout"]
    assert not held & sides["train"]
    if change == "regrouped":
        num_crossed = len(sides["heldout"] - held)
        assert num_crossed
        assert f"{num_crossed} videos that were trained on share a source" in caplog.text


def test_a_damaged_memory_is_refused(tmp_path):
    entries = [entry(name) for name in NAMES]
    begun(tmp_path, entries)
    (tmp_path / "split.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(
        UserError, match=r"split\.parquet cannot be read .* which videos the run holds out"
    ):
        resumed(tmp_path, entries)
    pq.write_table(pq.read_table(tmp_path / "m.parquet"), tmp_path / "split.parquet")
    with pytest.raises(UserError, match=r"split\.parquet cannot be read"):
        resumed(tmp_path, entries)
