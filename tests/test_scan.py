import faulthandler
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from numbered_video import Variant, write_numbered_video
from odd_streams import STREAMS
from test_inspect import flip_bytes, scene, write

from videossl.__main__ import main
from videossl.catalog import scanning
from videossl.catalog.listing import FoundVideo, find_videos
from videossl.catalog.scanning import Journal, scan_videos
from videossl.data.entry import source_group
from videossl.data.manifest import read_manifest
from videossl.errors import UserError


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
    assert entries[2].group == "deep/er/clip"
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
    (video,) = find_videos([path]).videos
    assert (video.path, video.bytes) == (str(path), path.stat().st_size)
    assert video.modified == path.stat().st_mtime_ns


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


# --- files that take their process down ---


def rows_of(paths, tmp_path):
    """Scans made-up files, with whatever stands in for `scan_video`."""
    videos = [FoundVideo(str(path), bytes=1) for path in paths]
    journal = Journal(tmp_path / "m.parquet")
    assert scan_videos(videos, journal, num_workers=2) == len(videos)
    return {Path(video.path).stem: journal.entry(video.path).reason for video in videos}


def harm(monkeypatch, do):
    """The file named b does that, all others are merely read."""

    def read(video, **options):
        if video.path == "/b.mp4":
            do()
        return scanning.broken_entry(video, "read")

    monkeypatch.setattr(scanning, "scan_video", read)


def hang():
    while True:
        pass


def eat_memory():
    hoard = [bytearray(2**24) for _ in range(2**10)]
    raise AssertionError(len(hoard))


@pytest.mark.parametrize(
    ("do", "reason"),
    [
        (lambda: os._exit(1), "it crashes the decoder (the process exited with code 1)"),
        (
            lambda: (faulthandler.disable(), os.kill(os.getpid(), signal.SIGSEGV)),
            "it crashes the decoder (the process died of SIGSEGV)",
        ),
        (hang, "it hangs the decoder (no answer for 3 s)"),
        (eat_memory, "it needs more than 0.25 GiB of memory (MemoryError)"),
    ],
)
def test_file_that_takes_its_process_down_costs_one_row(monkeypatch, tmp_path, do, reason):
    harm(monkeypatch, do)
    # Time enough for all else on a busy machine: what is judged is the fault, not the pace.
    monkeypatch.setattr(scanning, "FAST_SECONDS", 3 if do is hang else 60)
    monkeypatch.setattr(scanning, "FAST_BYTES_PER_SECOND", 1e30)
    monkeypatch.setattr(scanning, "MEMORY_BYTES", 2**28)
    reasons = rows_of([f"/{name}.mp4" for name in "abcdefghijkl"], tmp_path)
    assert reasons.pop("b") == reason
    assert set(reasons.values()) == {"read"}


def test_file_that_must_be_decoded_to_count_its_frames_has_the_time_to(monkeypatch, tmp_path):
    """A scan that is not deep gives a file little time, which playing it through may exceed."""
    path, expected = STREAMS["joined_other_clock"](tmp_path)
    sound = scanning.time_limit
    asked = []

    def limit(num_bytes, *, deep):
        asked.append(deep)
        return sound(num_bytes, deep=deep)

    monkeypatch.setattr(scanning, "time_limit", limit)
    out = tmp_path / "m.parquet"
    assert main(["scan", str(path), "-o", str(out), "--workers", "1"]) == 0
    (entry,) = read_manifest(out)
    assert (entry.status, entry.num_frames, entry.is_deep) == ("ok", len(expected), False)
    assert asked == [False, True]
    assert sound(10**8, deep=True) > 10 * sound(10**8, deep=False)


def test_large_files_have_more_time_and_do_not_share_a_task():
    assert scanning.time_limit(10**6, deep=False) < 11
    assert scanning.time_limit(10**9, deep=False) == 60
    assert scanning.time_limit(10**8, deep=True) > 1000
    sizes = [2**20] * 20 + [2**22] * 3 + [2**30]
    batches = list(scanning._batches([FoundVideo(str(n), size) for n, size in enumerate(sizes)]))
    assert [len(batch) for batch in batches] == [8, 8, 5, 2, 1]
    assert [video for batch in batches for video in batch] == [
        FoundVideo(str(n), size) for n, size in enumerate(sizes)
    ]


def test_parser_bug_makes_one_broken_row(monkeypatch):
    def explode(*_, **__):
        raise KeyError("bug")

    monkeypatch.setattr(scanning, "read_index", explode)
    entry = scanning.scan_video(FoundVideo("/a.mp4", bytes=3))
    assert (entry.status, entry.reason, entry.bytes) == ("broken", "KeyError: 'bug'", 3)


def test_scan_does_not_import_torch(tmp_path, numbered_video):
    """Its own process and, as forks of it, its workers."""
    (tmp_path / "a.mp4").write_bytes(numbered_video("h264").read_bytes())
    code = (
        "import sys; from videossl.__main__ import main; "
        f"code = main(['scan', {str(tmp_path)!r}, '-o', {str(tmp_path / 'm.parquet')!r}, '--deep']); "
        "sys.exit(code or 'torch' in sys.modules or 'torchcodec' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- going on ---


@pytest.fixture
def clips(tmp_path):
    """A folder of eight clips."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for number in range(8):
        variant = Variant(width=64, height=48, num_frames=10 + number)
        write_numbered_video(folder / f"{number}.mp4", variant)
    return folder


def scan_to(out, folder, *options):
    assert main(["scan", str(folder), "-o", str(out), "--workers", "1", *options]) == 0
    return list(read_manifest(out))


def forbid_scanning(monkeypatch, *names):
    """Only files of these names may be read from here on."""
    scan_video = scanning.scan_video

    def read(video, **options):
        assert Path(video.path).name in names, f"{video.path} is read again"
        return scan_video(video, **options)

    monkeypatch.setattr(scanning, "scan_video", read)


def test_second_scan_reads_what_is_new_or_changed(clips, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", logger="videossl")
    out = tmp_path / "m.parquet"
    first = scan_to(out, clips)
    write_numbered_video(clips / "3.mp4", Variant(width=64, height=48, num_frames=30))
    write_numbered_video(clips / "9.mp4", Variant(width=64, height=48, num_frames=9))
    (clips / "5.mp4").unlink()
    forbid_scanning(monkeypatch, "3.mp4", "9.mp4")
    second = scan_to(out, clips)
    assert "6 videos are as an earlier scan found them" in caplog.text
    assert [e.num_frames for e in second] == [10, 11, 12, 30, 14, 16, 17, 9]
    same = [e for e in first if Path(e.path).stem not in "35"]
    assert [e for e in second if Path(e.path).stem not in "39"] == same
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips", "m.parquet"]


def test_fresh_scan_reads_all_again(clips, tmp_path, monkeypatch):
    out = tmp_path / "m.parquet"
    scan_to(out, clips)
    monkeypatch.setattr(
        scanning, "scan_video", lambda v, **_: scanning.broken_entry(v, "read again")
    )
    assert main(["scan", str(clips), "-o", str(out), "--fresh"]) == 1
    assert {entry.reason for entry in read_manifest(out)} == {"read again"}


def test_other_groups_need_no_reading(clips, tmp_path, monkeypatch):
    out = tmp_path / "m.parquet"
    scan_to(out, clips)
    forbid_scanning(monkeypatch)
    entries = scan_to(out, clips, "--group-regex", "^(.)")
    assert [entry.group for entry in entries] == list("01234567")


def test_interrupted_scan_keeps_what_it_read(clips, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", logger="videossl")
    reference = scan_to(tmp_path / "reference.parquet", clips)
    out = tmp_path / "m.parquet"

    def interrupt(items, **_):
        for number, item in enumerate(items):
            yield item
            if number == 2:
                raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(scanning, "track", interrupt)
        assert main(["scan", str(clips), "-o", str(out), "--workers", "1"]) == 130
    assert "3 of 8 videos are read and kept" in caplog.text
    assert not out.exists()
    forbid_scanning(monkeypatch, *[f"{n}.mp4" for n in range(3, 8)])
    assert scan_to(out, clips) == reference


def test_killed_scan_goes_on_to_the_same_manifest(clips, tmp_path):
    reference = scan_to(tmp_path / "reference.parquet", clips)
    out, journal = tmp_path / "m.parquet", tmp_path / ".m.parquet.journal"
    code = (
        "import sys, time; from videossl.__main__ import main; from videossl.catalog import scanning\n"
        "read = scanning.scan_video\n"
        "def slow(video, **options): time.sleep(0.1); return read(video, **options)\n"
        "scanning.scan_video, scanning.BATCH_FILES = slow, 1\n"
        f"main(['scan', {str(clips)!r}, '-o', {str(out)!r}, '--workers', '1'])"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if journal.exists() and journal.read_bytes().count(b"\n") >= 3:
                break
            time.sleep(0.01)
        process.kill()
    assert not out.exists()
    kept = journal.read_bytes()
    assert kept.count(b"\n") >= 3
    journal.write_bytes(kept + b'{"path": "/torn')
    assert scan_to(out, clips) == reference
    assert not journal.exists()


def test_journal_of_another_version_is_not_believed(clips, tmp_path):
    (tmp_path / ".m.parquet.journal").write_text('{"manifest_version": 1}\n{"path": "x"}\n')
    assert len(scan_to(tmp_path / "m.parquet", clips)) == 8


def test_a_file_that_is_no_manifest_is_not_written_over(clips, tmp_path, capsys):
    """Such as a video, by a slip of the hand."""
    out = tmp_path / "a.mp4"
    out.write_text("something else")
    assert main(["scan", str(clips), "-o", str(out)]) == 2
    assert "a.mp4 is there and no manifest: name another file" in capsys.readouterr().err
    assert out.read_text() == "something else"


def test_a_damaged_manifest_is_written_anew(clips, tmp_path, caplog):
    caplog.set_level("INFO", logger="videossl")
    out = tmp_path / "m.parquet"
    out.write_bytes(b"PAR1 and what a failing disk has left")
    assert len(scan_to(out, clips)) == 8
    assert "is not a Parquet file" in caplog.text


def test_full_disk_ends_the_scan_with_one_line(clips, tmp_path, capsys):
    out = tmp_path / "file" / "m.parquet"
    (tmp_path / "file").write_text("no folder")
    assert main(["scan", str(clips), "-o", str(out)]) == 2
    assert "cannot write" in capsys.readouterr().err


# --- deep ---


def test_deep_scan_fills_the_columns_and_finds_damage(tmp_path, capsys):
    folder = tmp_path / "videos"
    folder.mkdir()
    cut = [*scene(1, 25), *scene(2, 25)]
    sound = write(folder / "a_cut.mp4", cut)
    write(folder / "copy.mp4", cut, size=(96, 72), crf=30)
    write(folder / "other.mp4", scene(7, 50, speed=3))
    flip_bytes(sound, folder / "damaged.mp4", 5)
    entries = scan_to(tmp_path / "m.parquet", folder, "--deep")
    a, copy, damaged, other = entries
    assert a.cuts == pytest.approx((1.0,))
    assert a.is_deep
    assert a.motion_score > 1
    assert (len(a.motion), len(a.bars)) == (32, 4)
    assert damaged.reason.startswith("damaged: ")
    assert damaged.status == "broken"
    assert a.group == copy.group != other.group
    output = capsys.readouterr().out
    assert "decoded: 2 cuts, 0 videos with black bars, 2 with a near-duplicate" in output


def test_deep_scan_after_a_fast_one_reads_again_and_not_the_other_way(clips, tmp_path, monkeypatch):
    out = tmp_path / "m.parquet"
    assert not any(entry.is_deep for entry in scan_to(out, clips))
    deep = scan_to(out, clips, "--deep")
    assert all(entry.is_deep for entry in deep)
    forbid_scanning(monkeypatch)
    assert [entry.motion for entry in scan_to(out, clips)] == [entry.motion for entry in deep]


# --- labels ---


@pytest.fixture
def classes(tmp_path):
    """Files that need not be videos: they are only listed."""
    root = tmp_path / "classes"
    for name in ("run/a.mp4", "run/deeper/b.mp4", "sit/c.mp4", "d.mp4"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def listed(root, found):
    return [(v.path.removeprefix(f"{root}/"), v.label, v.group) for v in found.videos]


def test_first_folder_is_the_label(classes):
    assert listed(classes, find_videos([classes], labels="folder")) == [
        ("d.mp4", "", "d"),
        ("run/a.mp4", "run", "run/a"),
        ("run/deeper/b.mp4", "run", "run/deeper/b"),
        ("sit/c.mp4", "sit", "sit/c"),
    ]
    assert {v.label for v in find_videos([classes]).videos} == {""}
    with pytest.raises(UserError, match="no video lies in a folder below"):
        find_videos([classes / "sit"], labels="folder")


def test_labels_and_groups_come_from_a_csv(classes):
    table = classes / "labels.csv"
    table.write_text("label,path,group\nrunning,run/a.mp4,g1\nsitting,sit/c.mp4,\nno,gone.mp4,\n")
    found = find_videos([classes], labels=str(table))
    assert listed(classes, found) == [
        ("d.mp4", "", "d"),
        ("run/a.mp4", "running", "g1"),
        ("run/deeper/b.mp4", "", "run/deeper/b"),
        ("sit/c.mp4", "sitting", "sit/c"),
    ]
    assert "names 1 files not found" in found.notes[0]
    assert "gives 2 of the 4 videos no label" in found.notes[1]


def test_list_is_a_source_relative_to_its_folder(classes, monkeypatch):
    monkeypatch.chdir("/")
    (classes / "list.csv").write_text("path,label\nrun/a.mp4,r\n./sit/../sit/c.mp4,s\ngone.mp4,\n")
    (classes / "list.txt").write_text(f"# a comment\n\nd.mp4\n{classes}/run/a.mp4\n")
    assert listed(classes, find_videos([classes / "list.csv"])) == [
        ("gone.mp4", "", "gone"),
        ("run/a.mp4", "r", "run/a"),
        ("sit/c.mp4", "s", "sit/c"),
    ]
    names = [name for name, _, _ in listed(classes, find_videos([classes / "list.txt"]))]
    assert names == ["d.mp4", "run/a.mp4"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("title,label\nrun/a.mp4,r\n", "needs the columns path and label .*it has title, label"),
        ("path,group\nrun/a.mp4,r\n", "needs the columns path and label"),
        ("path,label\nother.mp4,r\n", "names none of the 4 videos found"),
        ("path,label\n,r\n", "line 2: the column path is empty"),
        ("", "it has none"),
    ],
)
def test_bad_labels_fail(classes, content, message):
    (classes / "l.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        find_videos([classes], labels=str(classes / "l.csv"))


def test_bad_lists_fail(classes, tmp_path):
    (tmp_path / "l.txt").write_text("nowhere/a.mp4\n")
    with pytest.raises(UserError, match="not one of its 1 files is there, the first would be"):
        find_videos([tmp_path / "l.txt"])
    with pytest.raises(UserError, match=r"no such list: .*gone\.csv"):
        find_videos([tmp_path / "gone.csv"])
    with pytest.raises(UserError, match=r"must be 'folder' or a \.csv file"):
        find_videos([classes], labels="folders")


# --- groups ---


@pytest.mark.parametrize(
    ("path", "group"),
    [
        ("town/walk_s0.mp4", "town/walk"),
        ("town/walk_s12.mp4", "town/walk"),
        ("town/walk_part3.avi", "town/walk"),
        ("town/walk-Scene-004.mp4", "town/walk"),
        ("Archery/v_Archery_g01_c02.avi", "Archery/v_Archery_g01"),
        ("town/walk.mp4", "town/walk"),
        ("town/walks0.mp4", "town/walks0"),
    ],
)
def test_parts_of_a_source_share_a_group(path, group):
    assert source_group(path) == group


def test_group_regex_takes_the_first_capture_group_where_it_matches():
    assert source_group("cam3_take7.mp4", r"^(cam\d+)_") == "cam3"
    assert source_group("data/other_s1.mp4", r"^(cam\d+)_") == "data/other"


@pytest.mark.parametrize(
    ("pattern", "message"), [("(", "not a regular expression"), ("cam", "needs a capture group")]
)
def test_bad_group_regex_fails(pattern, message):
    with pytest.raises(UserError, match=message):
        find_videos([], group_pattern=pattern)
