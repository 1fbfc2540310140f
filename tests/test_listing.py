"""What is found in folders: which files, once each, by which path, of which source."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_list_file import labels_of, with_files, written

from videossl.__main__ import main
from videossl.catalog.listing import find_videos
from videossl.data.manifest import read_manifest
from videossl.decode.backends import open_video
from videossl.decode.source import VideoSource, as_text, local_path, stored_path
from videossl.errors import UserError, VideoDecodeError
from videossl.io.input_files import files_digest


def names_of(found) -> list[str]:
    return [Path(video.path).name for video in found.videos]


def groups_of(found) -> list[str]:
    return [video.group for video in found.videos]


# --- endings ---

CAMERAS = "mts m2ts m2t vob 3g2 asf mxf f4v dv h264 264 h265 265 avc hevc ogv wmv rm rmvb divx mod tod m4v mpg mpeg ts trp"
OTHERS = "y4m nut gif mp4 mov mkv webm avi flv 3gp m2v qt mjpeg ivf obu"


def test_endings_of_cameras_and_recorders_are_taken(tmp_path):
    names = [f"a.{ending}" for ending in f"{CAMERAS} {OTHERS}".split()]
    with_files(tmp_path, *names, *(name.upper().replace("A.", "b.") for name in names))
    assert len(find_videos([tmp_path]).videos) == 2 * len(names)


def test_summary_counts_the_endings_that_were_passed_over(tmp_path, numbered_video, capsys):
    others = [
        f"{n}.{e}" for e, number in (("jpg", 12), ("XYZ", 3), ("txt", 1)) for n in range(number)
    ]
    with_files(tmp_path / "in", *others, "README", "._a.mp4")
    shutil.copy(numbered_video("h264"), tmp_path / "in" / "v.mp4")
    out = str(tmp_path / "m.parquet")
    assert main(["scan", str(tmp_path / "in"), "-o", out, "--workers", "1", "--json"]) == 0
    printed = capsys.readouterr()
    assert "passed over: 12 .jpg, 3 .xyz, 1 (no ending), 1 .txt\n" in printed.err
    record = json.loads(printed.out)
    assert record["passed_over"] == {".jpg": 12, ".xyz": 3, ".txt": 1, "(no ending)": 1}
    assert record["other_files"] == 17


# --- what systems leave behind ---


def test_what_systems_leave_behind_is_not_listed(tmp_path):
    left = [
        *(
            "._a.mp4",
            "__MACOSX/run/a.mp4",
            ".Trash-1000/files/old.mp4",
            "@eaDir/a.mp4/SYNOVIDEO.mp4",
        ),
        *(
            "$RECYCLE.BIN/$R1.mp4",
            "lost+found/1.mp4",
            ".git/lfs/a.mp4",
            "run/.ipynb_checkpoints/a.mp4",
        ),
        *("run/.AppleDouble/a.mp4", "System Volume Information/a.mp4", "run/Thumbs.db"),
    ]
    with_files(tmp_path, "run/a.mp4", ".hidden/b.mp4", *left)
    found = find_videos([tmp_path], labels="folder")
    assert labels_of(found) == {"a.mp4": "run", "b.mp4": ".hidden"}
    assert found.num_others == 0
    # What is named by hand is wanted.
    assert names_of(find_videos([tmp_path / "@eaDir"])) == ["SYNOVIDEO.mp4"]


# --- links ---


def test_file_is_one_row_by_the_path_that_was_given(tmp_path):
    with_files(tmp_path / "disk", "videos/a.mp4", "videos/b.mp4")
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    link = tmp_path / "data" / "videos"
    (tmp_path / "disk" / "videos" / "c.mp4").symlink_to("a.mp4")
    os.link(tmp_path / "disk" / "videos" / "b.mp4", tmp_path / "disk" / "videos" / "d.mp4")
    labels = written(
        tmp_path, "l.csv", f"path,label\n{link}/a.mp4,x\n{tmp_path}/disk/videos/b.mp4,y\n"
    )
    found = find_videos([link], labels=labels)
    assert [(v.path, v.label) for v in found.videos] == [
        (f"{link}/a.mp4", "x"),
        (f"{link}/b.mp4", "y"),
    ]
    for sources in ([link, labels], [labels, link], [link, tmp_path / "disk", labels]):
        found = find_videos(sources)
        assert sorted(labels_of(found).values()) == ["x", "y"]
        assert len(found.videos) == 2


def test_loops_of_links_end(tmp_path):
    with_files(tmp_path, "a/v.mp4")
    (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "self.mp4").symlink_to("self.mp4")
    (tmp_path / "x").symlink_to("y")
    (tmp_path / "y").symlink_to("x")
    assert names_of(find_videos([tmp_path])) == ["v.mp4", "self.mp4"]


def test_dots_behind_a_link_lead_where_the_system_goes(tmp_path):
    with_files(tmp_path, "real/deep/v.mp4", "real/w.mp4", "w.mp4/no.mp4")
    (tmp_path / "link").symlink_to(tmp_path / "real" / "deep")
    (video,) = find_videos([f"{tmp_path}/link/../w.mp4"]).videos
    assert video.bytes == 1


def test_relative_source_is_stored_as_an_absolute_path(tmp_path, monkeypatch):
    with_files(tmp_path, "in/v.mp4")
    monkeypatch.chdir(tmp_path / "in")
    for source in (".", "../in", "./v.mp4"):
        assert [v.path for v in find_videos([source]).videos] == [f"{tmp_path}/in/v.mp4"]


# --- sources ---


def test_files_of_two_folders_are_two_sources(tmp_path):
    names = [f"S{n:02d}/rgb/video{part}.mp4" for n in range(8) for part in ("_s0", "_s1")]
    root = with_files(tmp_path / "in", *names)
    assert groups_of(find_videos([root])) == [f"S{n:02d}/rgb/video" for n in range(8) for _ in "01"]


def test_source_does_not_depend_on_how_a_file_is_named(tmp_path):
    one = with_files(tmp_path / "one", "x/v_s0.mp4", "x/v_s1.mp4")
    two = with_files(tmp_path / "two", "x/v.mp4")
    assert groups_of(find_videos([one, two])) == ["one/x/v", "one/x/v", "two/x/v"]
    files = [one / "x/v_s0.mp4", one / "x/v_s1.mp4", two / "x/v.mp4"]
    assert groups_of(find_videos(files)) == ["one/x/v", "one/x/v", "two/x/v"]
    path = written(tmp_path, "l.txt", "one/x/v_s0.mp4\none/x/v_s1.mp4\n")
    assert groups_of(find_videos([path, two])) == ["one/x/v", "one/x/v", "two/x/v"]


@pytest.mark.parametrize(
    ("pattern", "groups"),
    [
        (r"^(S\d+)/", ["S00", "S00", "S01"]),
        (r"^(.+?)__", ["S00/rgb/walk", "S00/rgb/walk", "S01/rgb/walk"]),
        (r"([^/]+?)__", ["walk", "walk", "walk"]),
        (r"^(walk)__", ["walk", "walk", "walk"]),  # of the file's name alone
        (r"^(no)", ["S00/rgb/walk__1", "S00/rgb/walk__2", "S01/rgb/walk__1"]),
    ],
)
def test_group_regex_sees_the_path_below_the_source(tmp_path, pattern, groups):
    names = ("S00/rgb/walk__1.mp4", "S00/rgb/walk__2.mp4", "S01/rgb/walk__1.mp4")
    root = with_files(tmp_path / "S99", *names)
    assert groups_of(find_videos([root], group_pattern=pattern)) == groups
    for prefix in ("", "./", f"{root}/"):
        path = written(root, "l.txt", "\n".join(prefix + name for name in names))
        assert groups_of(find_videos([path], group_pattern=pattern)) == groups


@pytest.mark.parametrize("direct", [False, True])
def test_group_regex_on_a_flat_folder_sees_the_name(tmp_path, monkeypatch, direct):
    names = ("clips__1.mp4", "clips__2.mp4", "other__1.mp4")
    with_files(tmp_path, *names)
    monkeypatch.chdir(tmp_path)
    found = find_videos(names if direct else [tmp_path], group_pattern="^(.+?)__")
    assert groups_of(found) == ["clips", "clips", "other"]


@pytest.mark.parametrize(
    ("names", "scenes"),
    [
        # arid: class_scene_take
        (["Jump/Jump_11_1.mp4", "Jump/Jump_11_10.mp4", "Jump/Jump_2_1.mp4"], [0, 0, 1]),
        # KTH: a person is in all classes
        (
            [
                "boxing/person01_boxing_d1.avi",
                "running/person01_running_d1.avi",
                "boxing/person02_boxing_d1.avi",
            ],
            [0, 0, 1],
        ),
        # Weizmann
        (
            ["run/daria_run.avi", "walk/daria_walk.avi", "run/lena_run1.avi", "walk/lena_walk.avi"],
            [0, 0, 1, 1],
        ),
        # UCF101, each clip cut once more
        (
            [
                "Biking/v_Biking_g01_c01_s0.avi",
                "Biking/v_Biking_g01_c02_s0.avi",
                "Biking/v_Biking_g02_c01_s0.avi",
            ],
            [0, 0, 1],
        ),
        # HMDB51
        (
            [
                "sit/Film_A_sit_u_nm_np1_ba_goo_0.avi",
                "sit/Film_A_sit_h_cm_np1_fr_med_1.avi",
                "sit/B_sit_u_nm_np1_fr_bad_0.avi",
            ],
            [0, 0, 1],
        ),
        (["a/golf_take1.mp4", "a/golf_take2.mp4", "a/polo_take1.mp4"], [0, 0, 1]),
    ],
)
def test_takes_of_a_scene_are_warned_of_with_the_regex_that_joins_them(tmp_path, names, scenes):
    root = with_files(tmp_path / "in", *names)
    found = find_videos([root], labels="folder")
    (note,) = found.notes
    pattern = re.search(r"--group-regex '(.*)'$", note)[1]
    joined = {
        str(Path(v.path).relative_to(root)): v.group
        for v in find_videos([root], group_pattern=pattern).videos
    }
    groups = [joined[name] for name in names]
    assert [groups.index(group) for group in groups] == [scenes.index(scene) for scene in scenes]
    assert find_videos([root], labels="folder", group_pattern=pattern).notes == []


@pytest.mark.parametrize(
    "names",
    [
        [f"video_{n}.mp4" for n in range(9)],
        [f"run/v_run_g01_c{n:02d}.avi" for n in range(9)],  # one source already
        [f"run/walk_s{n}.mp4" for n in range(9)],
        [f"b_slice/b_slice{n}.mp4" for n in range(9)]
        + [f"b_volley/b_volley{n}.mp4" for n in range(9)],
        [f"S{n:02d}/rgb/video.mp4" for n in range(9)],
        [f"k/{n}abcDEF_{n:06d}_{n + 10:06d}.mp4" for n in range(9)],  # Kinetics: begin and end
        ["walk-scene-001.mp4", "run-scene-001.mp4"],
    ],
)
def test_names_that_say_nothing_of_scenes_are_not_warned_of(tmp_path, names):
    assert find_videos([with_files(tmp_path / "in", *names)], labels=None).notes == []


# --- names that are not UTF-8, and others ---


@pytest.fixture
def odd_names(tmp_path, numbered_video):
    """A folder, itself not UTF-8, with the same video by many names."""
    root = os.fsencode(str(tmp_path)) + b"/caf\xe9s"
    os.mkdir(root)  # noqa: PTH102 (bytes)
    names = [
        b"caf\xe9.mp4",
        b"caf%E9.mp4",
        "café.mp4".encode(),
        b"two\nlines.mp4",
        b"tab\there.mp4",
        b"-dash.mp4",
    ]
    names += [b"50% #1?.mp4", b"[a]{b,c}*.mp4", b"\xff\xfe.mp4", b"%03d.mp4"]
    content = numbered_video("h264").read_bytes()
    for name in names:
        Path(os.fsdecode(root + b"/" + name)).write_bytes(content)
    return os.fsdecode(root), [os.fsdecode(name) for name in names]


def test_stored_paths_lead_back_to_every_name(odd_names):
    root, names = odd_names
    stored = [stored_path(f"{root}/{name}") for name in names]
    assert all(text.encode().decode() == text for text in stored)
    assert len(set(stored)) == len(names)
    assert [local_path(text) for text in stored] == [f"{root}/{name}" for name in names]
    assert stored_path("/data/a.mp4") == "/data/a.mp4"
    assert stored_path(os.fsdecode(b"/d/caf\xe9 %.mp4")) == "file:///d/caf%E9%20%25.mp4"  # RFC 8089


def test_file_url_of_a_user_leads_to_the_file(tmp_path):
    with_files(tmp_path, "a b.mp4", "50%25.mp4")
    for url, name in (("a%20b.mp4", "a b.mp4"), ("a b.mp4", "a b.mp4"), ("50%25.mp4", "50%25.mp4")):
        (video,) = find_videos([f"file://{tmp_path}/{url}"]).videos
        assert video.path == f"{tmp_path}/{name}"
    path = written(tmp_path, "l.txt", f"file://{tmp_path}/a%20b.mp4\n")
    assert [v.path for v in find_videos([path, tmp_path / "a b.mp4"]).videos] == [
        f"{tmp_path}/a b.mp4"
    ]


@pytest.mark.parametrize("backend", ["pyav", "decord", "torchcodec"])
def test_every_backend_reads_a_name_that_is_not_utf8(odd_names, backend):
    root, names = odd_names
    path = stored_path(f"{root}/{names[0]}")
    try:
        with open_video(path, backend=backend) as reader:
            assert len(reader.frames_at([0, 59])) == 2
    except VideoDecodeError as error:  # the backend is not on this machine
        pytest.skip(str(error))


def test_scan_keeps_every_name_through_manifest_journal_and_json(
    odd_names, tmp_path, capsys, caplog
):
    root, names = odd_names
    out = str(tmp_path / "m.parquet")
    arguments = ["scan", root, "-o", out, "--workers", "1", "--json"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["ok"] == len(names)
    entries = list(read_manifest(out))
    assert {local_path(entry.path) for entry in entries} == {f"{root}/{name}" for name in names}
    assert len({entry.group for entry in entries}) == len(names)
    assert {VideoSource(entry.path).size() for entry in entries} == {entries[0].bytes}
    caplog.set_level("INFO", logger="videossl")
    assert main(arguments) == 0
    assert f"{len(names)} videos are as an earlier scan found them" in caplog.text


def test_text_of_a_name_is_printable_and_says_its_bytes():
    assert as_text(os.fsdecode(b"caf\xe9")) == r"caf\xe9"
    assert as_text("café") == "café"


def test_names_that_are_not_utf8_are_packed_and_held_in_a_folder_of_such_a_name(odd_names):
    root, names = odd_names
    out = f"{root}/m.parquet"
    assert main(["scan", root, "-o", out, "--workers", "1"]) == 0
    assert main(["pack", out, "-o", f"{root}/packed", "--short-side", "64", "--workers", "1"]) == 0
    packed = read_manifest(f"{root}/packed/manifest.parquet")
    assert len(packed) == len(names)
    with open_video(packed[0].source) as reader:
        assert len(reader.frames_at([0])) == 1


def test_names_are_printed_whatever_standard_output_takes(odd_names, tmp_path):
    root, names = odd_names
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    command = [
        sys.executable,
        "-m",
        "videossl",
        "scan",
        root,
        "-o",
        f"{root}/m.parquet",
        "--workers",
        "1",
    ]
    done = subprocess.run(command, env=environment, capture_output=True)
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert f"({len(names)} rows)".encode() in done.stdout


def test_file_that_lies_in_the_folders_of_two_classes_fails(tmp_path):
    with_files(tmp_path, "run/a.mp4", "sit/b.mp4")
    (tmp_path / "sit" / "link.mp4").symlink_to(tmp_path / "run" / "a.mp4")
    with pytest.raises(
        UserError, match=r"run/a\.mp4 has the label 'run' by .* and 'sit' by .*link\.mp4"
    ):
        find_videos([tmp_path], labels="folder")
    found = find_videos([tmp_path])
    assert names_of(found) == ["a.mp4", "b.mp4"]
    assert found.notes == ["1 paths lead to files that others lead to: a file is taken once"]


def test_digest_of_files_is_over_the_bytes_of_their_names(odd_names):
    root, names = odd_names
    expected = hashlib.sha256()
    for name in names:
        status = os.stat(f"{root}/{name}")  # noqa: PTH116
        expected.update(os.fsencode(f"{root}/{name}"))
        expected.update(f"\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    assert files_digest([Path(root, name) for name in names]) == expected.hexdigest()


def test_a_manifest_is_not_taken_for_a_video(tmp_path):
    with pytest.raises(UserError, match="a manifest is what scan writes"):
        find_videos([tmp_path / "videos.parquet"])
