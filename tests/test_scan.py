import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from videossl.__main__ import main
from videossl.data import scan
from videossl.data.manifest import VideoEntry, source_group
from videossl.data.scan import find_videos, scan_files
from videossl.data.table import read_manifest
from videossl.errors import UserError

BROKEN = VideoEntry(path="/b.mp4", group="b", status="broken", reason="it is empty", bytes=0)


@pytest.fixture
def junk(tmp_path, numbered_video):
    """Two sound videos, four broken ones, two other files, an empty folder and a link that leads back."""
    folder = tmp_path / "junk"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "nothing").mkdir()
    sound = numbered_video("h264").read_bytes()
    (folder / "b.MP4").write_bytes(sound)
    (folder / "deep" / "er" / "clip_s0.webm").write_bytes(numbered_video("vp9").read_bytes())
    (folder / "text.mp4").write_text("this is not a video\n")
    (folder / "empty.avi").touch()
    (folder / "deep" / "cut.mov").write_bytes(sound[: len(sound) // 2])
    os.mkfifo(folder / "pipe.mkv")
    (folder / "notes.txt").write_text("notes")
    (folder / "picture.jpg").write_bytes(b"\xff\xd8")
    (folder / "deep" / "back").symlink_to(folder, target_is_directory=True)
    return folder


def test_scan_of_junk_lists_every_video_in_order(junk, tmp_path, capsys):
    out = tmp_path / "manifest.parquet"
    assert main(["scan", str(junk), "-o", str(out), "--workers", "2"]) == 0
    entries = read_manifest(out)
    names = [str(Path(entry.path).relative_to(junk)) for entry in entries]
    assert names == [
        "b.MP4",
        "deep/cut.mov",
        "deep/er/clip_s0.webm",
        "empty.avi",
        "pipe.mkv",
        "text.mp4",
    ]
    assert [entry.status for entry in entries] == ["ok", "broken", "ok", *["broken"] * 3]
    reasons = [entry.reason for entry in entries if not entry.is_ok]
    assert "damaged or truncated" in reasons[0]
    assert "empty" in reasons[1]
    assert "not a regular file" in reasons[2]
    assert "not a video" in reasons[3]
    assert entries[2].group == "er/clip"
    assert (entries[0].num_frames, entries[0].fps, entries[0].width) == (60, 25.0, 128)
    output = capsys.readouterr()
    assert "2 videos ok" in output.out
    assert "4 broken, 2 other files passed over" in output.out
    assert "codecs: h264 1, vp9 1" in output.out
    assert "scanning: 6/6" in output.err


def test_scan_of_an_empty_folder_fails(tmp_path, capsys):
    assert main(["scan", str(tmp_path), "-o", str(tmp_path / "m.parquet")]) == 2
    error = capsys.readouterr().err
    assert f"no video files in {tmp_path} (0 other files); looked for" in error
    assert ".webm" in error
    assert error.count("\n") == 1


def test_scan_of_a_missing_folder_fails(tmp_path):
    with pytest.raises(UserError, match=r"no such file or folder: .*nowhere"):
        find_videos([tmp_path / "nowhere"])


def test_scan_without_a_sound_video_writes_and_exits_1(tmp_path, caplog):
    (tmp_path / "text.mp4").write_text("this is not a video\n")
    out = tmp_path / "m.parquet"
    assert main(["scan", str(tmp_path), "-o", str(out)]) == 1
    assert [entry.status for entry in read_manifest(out)] == ["broken"]
    assert "not one of the 1 videos can be decoded" in caplog.text


def test_no_workers_fails(tmp_path, capsys):
    assert main(["scan", str(tmp_path), "-o", "m.parquet", "--workers", "0"]) == 2
    assert "--workers must be at least 1, got 0" in capsys.readouterr().err


def test_file_named_itself_is_taken_whatever_its_name(tmp_path, numbered_video):
    path = tmp_path / "video.bin"
    path.write_bytes(numbered_video("h264").read_bytes())
    assert find_videos([path]).videos == [path]


def test_overlapping_folders_list_each_file_once(junk):
    assert find_videos([junk, junk / "deep", junk]).videos == find_videos([junk]).videos


def forbid_reading(monkeypatch, folder):
    """Also for root, who may read everything."""
    scandir = os.scandir

    def refuse(path="."):
        if str(path) == str(folder):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)


def test_folder_without_permission_is_reported(junk, monkeypatch):
    forbid_reading(monkeypatch, junk / "deep")
    found = find_videos([junk])
    assert len(found.videos) == 4
    assert found.unreadable == [f"{junk / 'deep'}: Permission denied"]


def test_only_folder_without_permission_fails(junk, monkeypatch):
    forbid_reading(monkeypatch, junk)
    with pytest.raises(UserError, match=r"no video files .*could not read .*Permission denied"):
        find_videos([junk])


def dies_on_b(path, group_pattern=None):
    if path.name == "b.mp4":
        os._exit(1)
    return replace(BROKEN, path=str(path), reason="read")


def test_file_that_kills_its_worker_costs_one_row(monkeypatch):
    context = multiprocessing.get_context("fork")  # the child must know this module's function
    monkeypatch.setattr(scan, "_pool", lambda n: ProcessPoolExecutor(n, mp_context=context))
    monkeypatch.setattr(scan, "scan_file", dies_on_b)
    paths = [Path(f"/{name}.mp4") for name in "abcdefghijkl"]
    entries = scan_files(paths, num_workers=2)
    assert [entry.path for entry in entries] == [str(path) for path in paths]
    assert [entry.path for entry in entries if "process" in entry.reason] == ["/b.mp4"]


def test_parser_bug_makes_one_broken_row(monkeypatch, tmp_path):
    def explode(path):
        raise KeyError("bug")

    monkeypatch.setattr(scan, "read_index", explode)
    entry = scan.scan_file(tmp_path / "a.mp4")
    assert (entry.status, entry.reason) == ("broken", "KeyError: 'bug'")


def test_scan_does_not_import_torch():
    code = (
        "import sys, videossl.commands.scan, videossl.data.scan; "
        "sys.exit('torch' in sys.modules or 'torchcodec' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- groups ---


@pytest.mark.parametrize(
    ("path", "group"),
    [
        ("/data/town/walk_s0.mp4", "town/walk"),
        ("/data/town/walk_s12.mp4", "town/walk"),
        ("/data/town/walk_part3.avi", "town/walk"),
        ("/data/town/walk-Scene-004.mp4", "town/walk"),
        ("/data/Archery/v_Archery_g01_c02.avi", "Archery/v_Archery_g01"),
        ("/data/town/walk.mp4", "town/walk"),
        ("/data/town/walks0.mp4", "town/walks0"),
    ],
)
def test_parts_of_a_source_share_a_group(path, group):
    assert source_group(path) == group


def test_group_regex_takes_the_first_capture_group_where_it_matches():
    assert source_group("/data/cam3_take7.mp4", r"^(cam\d+)_") == "cam3"
    assert source_group("/data/other_s1.mp4", r"^(cam\d+)_") == "data/other"


@pytest.mark.parametrize(
    ("pattern", "message"), [("(", "not a regular expression"), ("cam", "needs a capture group")]
)
def test_bad_group_regex_fails(pattern, message):
    with pytest.raises(UserError, match=message):
        scan_files([], num_workers=1, group_pattern=pattern)
