"""Lists of videos in the forms that people and data sets write them, as sources and as labels."""

import codecs
import json
import os
import zipfile
from pathlib import Path

import pytest

from videossl.catalog.listing import find_videos
from videossl.errors import UserError

NAMES = ("run/a.mp4", "run/b c 7.mp4", "sit/d.webm", "sit/x,y;z.avi", "e.mp4")


@pytest.fixture
def folder(tmp_path):
    """Files that need not be videos: they are only listed."""
    return with_files(tmp_path / "data", *NAMES)


def with_files(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def labels_of(found) -> dict[str, str]:
    return {Path(video.path).name: video.label for video in found.videos}


def written(folder: Path, name: str, content: str | bytes) -> str:
    data = content if isinstance(content, bytes) else content.encode()
    (folder / name).write_bytes(data)
    return str(folder / name)


@pytest.mark.parametrize("as_labels", [False, True], ids=["source", "labels"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.csv", "path,label\nrun/a.mp4,run\nrun/b c 7.mp4,walk fast\n"),
        ("l.csv", " Path , LABEL \n run/a.mp4 , run \n run/b c 7.mp4,  walk fast\n\n , \n"),
        ("l.csv", 'path, label\nrun/a.mp4, "run"\n"run/b c 7.mp4", "walk fast "\n'),
        ("l.csv", "path;label\nrun/a.mp4;run\nrun/b c 7.mp4;walk fast\n"),
        ("l.csv", "sep=;\r\npath;label\r\nrun/a.mp4;run\r\nrun/b c 7.mp4;walk fast\r\n"),
        ("l.csv", "path\tlabel\nrun/a.mp4\trun\nrun/b c 7.mp4\twalk fast\n"),
        ("l.tsv", "label\tpath\nrun\trun/a.mp4\nwalk fast\trun/b c 7.mp4\n"),
        ("l.csv", "label,path,group\nrun,run/a.mp4,\nwalk fast,./run/../run/b c 7.mp4,\n"),
        ("l.csv", "run/a.mp4,run\nrun/b c 7.mp4,walk fast\n"),
        ("l.csv", "run/a.mp4;run\nrun/b c 7.mp4;walk fast\n"),
        ("l.csv", 'run/a.mp4,"run"\n"run/b c 7.mp4","walk fast"\n'),
        ("l.csv", "path,label\r\nrun\\a.mp4,run\r\nrun\\b c 7.mp4,walk fast\r\n"),  # of Windows
        ("l.txt", "run/a.mp4 run\nrun/b c 7.mp4 walk fast\n"),
        ("l.txt", "run/a.mp4\trun\nrun/b c 7.mp4\twalk fast\n"),
        ("l.txt", "run/a.mp4, run\n# no video\n\nrun/b c 7.mp4, walk fast\n"),
        ("l.txt", "path,label\nrun/a.mp4,run\nrun/b c 7.mp4,walk fast\n"),
        ("l.csv", "run/a.mp4 run\nrun/b c 7.mp4 walk fast\n"),
        ("l.csv", codecs.BOM_UTF8 + b"path,label\nrun/a.mp4,run\nrun/b c 7.mp4,walk fast\n"),
        ("l.txt", codecs.BOM_UTF8 + b"run/a.mp4 run\nrun/b c 7.mp4 walk fast\n"),
        ("l.csv", "path;label\r\nrun/a.mp4;run\r\nrun/b c 7.mp4;walk fast\r\n".encode("utf-16")),
        ("l.txt", "run/a.mp4\trun\r\nrun/b c 7.mp4\twalk fast\r\n".encode("utf-16")),
        ("l.csv", "path,label\rrun/a.mp4,run\rrun/b c 7.mp4,walk fast\r"),
        (
            "l.json",
            '[{"path": "run/a.mp4", "label": "run"},\n {"path": "run/b c 7.mp4", "label": "walk fast"}]',
        ),
        ("l.CSV", "path,label\nrun/a.mp4,run\nrun/b c 7.mp4,walk fast\n"),
    ],
)
def test_usual_forms_of_a_list_say_the_same(folder, name, content, as_labels):
    path = written(folder, name, content)
    found = find_videos([folder], labels=path) if as_labels else find_videos([path])
    labels = {name: label for name, label in labels_of(found).items() if label}
    assert labels == {"a.mp4": "run", "b c 7.mp4": "walk fast"}
    assert len(found.videos) == (len(NAMES) if as_labels else 2)


@pytest.mark.parametrize(
    ("lines", "labels"),
    [
        # SlowFast, VideoMAE, TimeSformer
        (["run/a.mp4 3", "run/b c 7.mp4 0"], {"a.mp4": "3", "b c 7.mp4": "0"}),
        # MMAction: path, number of frames, label
        (["run/a.mp4 120 3", "run/b c 7.mp4 99 0"], {"a.mp4": "3", "b c 7.mp4": "0"}),
        (["run/a.mp4 120 run", "run/b c 7.mp4 99 sit"], {"a.mp4": "run", "b c 7.mp4": "sit"}),
        # a path that ends in a number without an ending, and one without a label
        (["run/take 2 1", "run/take 3"], {"take 2": "1", "take 3": ""}),
        (["run/a.mp4", "run/b c 7.mp4"], {"a.mp4": "", "b c 7.mp4": ""}),
        (["sit/x,y;z.avi,sit", "run/a.mp4,run"], {"x,y;z.avi": "sit", "a.mp4": "run"}),
        (['"sit/x,y;z.avi" 4', "run/a.mp4 5"], {"x,y;z.avi": "4", "a.mp4": "5"}),
        (["#1 goal.mp4 2", "# a comment.mp4 1", "#a.mp4 3"], {"#1 goal.mp4": "2"}),
        (["trail.mp4 ", "trail.mp4"], {"trail.mp4 ": "", "trail.mp4": ""}),
    ],
)
def test_lines_of_text_are_parted_where_the_path_ends(folder, lines, labels):
    with_files(folder, "run/take 2", "run/take 3", "#1 goal.mp4", "trail.mp4 ", "trail.mp4")
    assert labels_of(find_videos([written(folder, "l.txt", "\n".join(lines))])) == labels


@pytest.mark.parametrize("as_labels", [False, True])
def test_splits_of_ucf101_name_the_classes(tmp_path, as_labels):
    train = ["ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi", "YoYo/v_YoYo_g09_c02.avi"]
    test = ["HandstandPushups/v_HandStandPushups_g01_c01.avi"]  # spelt so in the official lists
    root = with_files(tmp_path / "UCF-101", *train, *test)
    lists = root if not as_labels else tmp_path / "ucfTrainTestlist"
    lists.mkdir(exist_ok=True)
    (lists / "classInd.txt").write_text("1 ApplyEyeMakeup\n101 YoYo\n")
    written(lists, "trainlist01.txt", f"{train[0]} 1\r\n{train[1]} 101\r\n")
    written(lists, "testlist01.txt", f"{test[0]}\r\n")

    def found(name):
        path = str(lists / name)
        videos = find_videos([root], labels=path) if as_labels else find_videos([path])
        return [video.label for video in videos.videos if video.label]

    assert found("trainlist01.txt") == ["ApplyEyeMakeup", "YoYo"]
    assert found("testlist01.txt") == ["HandstandPushups"]


def test_numbers_are_named_by_the_class_index_beside_the_list(folder):
    written(folder, "classInd.txt", "1 Run\n2 Sit Down\n")
    path = written(folder, "l.txt", "run/a.mp4 1\nsit/d.webm 2\ne.mp4 3\n")
    assert labels_of(find_videos([path])) == {"a.mp4": "Run", "d.webm": "Sit Down", "e.mp4": "3"}


@pytest.mark.parametrize("as_labels", [False, True])
def test_splits_of_hmdb51_take_the_class_from_the_name_of_the_list(tmp_path, as_labels):
    root = with_files(tmp_path / "hmdb51", *(f"brush_hair/{n}.avi" for n in ("#20_a", "b", "c")))
    lists = tmp_path / "splits" if as_labels else root
    lists.mkdir(exist_ok=True)
    content = "#20_a.avi 1 \nb.avi 2 \nc.avi 0 \n"  # train, test, unused
    path = written(lists, "brush_hair_test_split1.txt", content)
    found = find_videos([root], labels=path) if as_labels else find_videos([path])
    wanted = {"#20_a.avi": "brush_hair", "b.avi": "brush_hair"}
    assert labels_of(found) == (wanted | {"c.avi": ""} if as_labels else wanted)


@pytest.mark.parametrize("ending", [".webm", ".mp4"])
@pytest.mark.parametrize("as_labels", [False, True])
def test_json_of_something_something_v2_is_read(tmp_path, ending, as_labels):
    items = [
        {"id": "78687", "label": "holding potato", "template": "Holding [something]"},
        {"id": "42326", "label": "putting it", "template": "Putting [something] into [something]"},
    ]
    root = with_files(tmp_path / "videos", f"78687{ending}", f"42326{ending}", f"1{ending}")
    path = written(tmp_path if as_labels else root, "train.json", json.dumps(items))
    found = find_videos([root], labels=path) if as_labels else find_videos([path])
    labels = {name: label for name, label in labels_of(found).items() if label}
    assert labels == {
        f"78687{ending}": "Holding something",
        f"42326{ending}": "Putting something into something",
    }


def test_paths_of_labels_are_relative_to_the_list_or_to_a_source(folder, tmp_path):
    path = written(tmp_path, "l.csv", "path,label\nrun/a.mp4,run\ndata/e.mp4,no\n")
    found = find_videos([folder], labels=path)
    assert {n for n, label in labels_of(found).items() if label} == {"a.mp4", "e.mp4"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "l.csv",
            "path,label\nrun/a.mp4,run\ne.mp4,x\nrun/a.mp4,sit\n",
            r"l\.csv, line 4: run/a\.mp4 .*line 2",
        ),
        (
            "l.csv",
            "path,label\nrun/a.mp4,run\n./run/a.mp4,sit\n",
            r"l\.csv, line 3: .*'sit'.*'run' in line 2",
        ),
        ("l.txt", "run/a.mp4 1\nrun/a.mp4 2\n", r"l\.txt, line 2: .*a video has one label"),
        (
            "l.csv",
            "path,label\nrun/a.mp4,run,fast,very\n",
            r"l\.csv, line 2: 4 values for 2 columns",
        ),
        ("l.csv", "path,label\n\n,run\n", r"l\.csv, line 3: the column path is empty"),
        (
            "l.csv",
            b"path,label\nrun/a.mp4,run\ne.mp4,caf\xe9\n",
            r"l\.csv, line 3: the label .* is not UTF-8",
        ),
        ("l.csv", "path,label\nrun/a.mp4,run\n".encode("utf-16-le"), r"l\.csv is not a text"),
        ("l.json", '[{"path": "run/a.mp4"},\n {"path":}]', r"l\.json, line 2: not JSON"),
        (
            "l.json",
            '[{"path": "run/a.mp4", "label": "r"},\n\n {"name": "x"}]',
            r"l\.json, line 3: an item needs",
        ),
        ("l.json", '{"run/a.mp4": "run"}', r"l\.json is no list"),
        ("l.csv", 'path,label\nrun/a.mp4,"run\ne.mp4,x\n', r"l\.csv, line 3: the label goes over"),
        ("l.csv", "title,label\nrun/b.xyz,run\n", r"needs the columns path .*it has title, label"),
    ],
)
@pytest.mark.parametrize("as_labels", [False, True])
def test_lists_that_cannot_be_understood_name_file_and_line(
    folder, name, content, message, as_labels
):
    path = written(folder, name, content)
    with pytest.raises(UserError, match=message) as caught:
        find_videos([folder], labels=path) if as_labels else find_videos([path])
    assert "\n" not in str(caught.value)


def test_two_lists_with_two_labels_for_one_video_fail(folder):
    one = written(folder, "one.csv", "path,label\nrun/a.mp4,run\n")
    other = written(folder, "other.csv", "path,label\nrun/a.mp4,walk\n")
    with pytest.raises(UserError, match="a video has one label"):
        find_videos([one, other])


def test_same_label_twice_is_no_contradiction(folder):
    path = written(folder, "l.csv", "path,label\nrun/a.mp4,run\nrun/a.mp4,run\nrun/a.mp4,\n")
    assert labels_of(find_videos([path])) == {"a.mp4": "run"}


def test_label_list_without_labels_fails(folder):
    with pytest.raises(UserError, match="it gives no label"):
        find_videos([folder], labels=written(folder, "l.txt", "run/a.mp4\n"))


def test_name_that_may_be_one_of_several_fails(tmp_path):
    for root in ("one", "two"):
        with_files(tmp_path / root, "run/a.mp4")
    path = written(tmp_path, "l.csv", "path,label\nrun/a.mp4,run\n")
    with pytest.raises(UserError, match=r"line 2: run/a\.mp4 may be any of 2 videos"):
        find_videos([tmp_path / "one", tmp_path / "two"], labels=path)


def test_list_holds_names_that_are_not_utf8(tmp_path):
    name = os.fsencode(str(tmp_path)) + b"/caf\xe9.mp4"
    Path(os.fsdecode(name)).write_bytes(b"xy")
    path = written(tmp_path, "l.txt", b"caf\xe9.mp4 1\n")
    (video,) = find_videos([path]).videos
    assert (video.bytes, video.label) == (2, "1")


def test_a_member_of_an_archive_may_have_blanks_in_its_name(tmp_path):
    archive = tmp_path / "v.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for name in ("a.mp4", "d e.avi", "f, g.mp4"):
            out.writestr(name, b"x")
    urls = [f"zip://{name}::file://{archive}" for name in ("a.mp4", "d e.avi", "f, g.mp4")]
    plain = find_videos([written(tmp_path, "plain.txt", "\n".join(urls))])
    assert [(video.path, video.label) for video in plain.videos] == [(url, "") for url in urls]
    labelled = find_videos([written(tmp_path, "labelled.txt", "".join(f"{u} 3\n" for u in urls))])
    assert [(video.path, video.label) for video in labelled.videos] == [(url, "3") for url in urls]


# --- other names of columns, Kinetics and the answers of Something-Something v2 ---


@pytest.mark.parametrize("as_labels", [False, True], ids=["source", "labels"])
@pytest.mark.parametrize(
    "column", ["file", "filename", "file_name", "video_path", "video", "Video", "name"]
)
def test_usual_names_of_the_column_of_paths_are_known(folder, column, as_labels):
    content = f"{column},label\nrun/a.mp4,run\nrun/b c 7.mp4,walk fast\n"
    path = written(folder, "l.csv", content)
    found = find_videos([folder], labels=path) if as_labels else find_videos([path])
    labels = {name: label for name, label in labels_of(found).items() if label}
    assert labels == {"a.mp4": "run", "b c 7.mp4": "walk fast"}


def test_a_path_is_preferred_to_other_names(folder):
    path = written(folder, "l.csv", "name,path,label\nRun A,run/a.mp4,run\n")
    assert labels_of(find_videos([path])) == {"a.mp4": "run"}


KINETICS = (
    "label,youtube_id,time_start,time_end,split,is_cc\n"
    "playing guitar,abcDEF12345,10,20,train,0\n"
    "yoga,-xyz_456789,5,15,train,0\n"
    "yoga,_gone______,1,11,train,0\n"
)


def test_list_of_kinetics_labels_clips_in_any_folder(tmp_path):
    root = with_files(
        tmp_path / "clips",
        "train/playing guitar/abcDEF12345_000010_000020.mp4",
        "-xyz_456789.mkv",
        "abcDEF12345_000030_000040.mp4",
    )
    path = written(tmp_path, "train.csv", KINETICS)
    found = find_videos([root], labels=path)
    assert labels_of(found) == {
        "abcDEF12345_000010_000020.mp4": "playing guitar",
        "-xyz_456789.mkv": "yoga",
        "abcDEF12345_000030_000040.mp4": "",
    }
    assert any("names 1 files not found" in note for note in found.notes)


def test_list_of_kinetics_is_a_source_beside_its_clips(tmp_path):
    root = with_files(tmp_path, "abcDEF12345_000010_000020.mp4", "-xyz_456789_000005_000015.mp4")
    labels = labels_of(find_videos([written(root, "train.csv", KINETICS)]))
    assert labels["abcDEF12345_000010_000020.mp4"] == "playing guitar"
    assert labels["-xyz_456789_000005_000015.mp4"] == "yoga"


def test_answers_of_something_something_v2_are_a_list_of_labels(tmp_path):
    root = with_files(tmp_path / "20bn", "78687.webm", "part/42326.mp4")
    content = "78687;Holding something; and more\n42326;Showing [something]\n"
    path = written(tmp_path, "test-answers.csv", content)
    assert labels_of(find_videos([root], labels=path)) == {
        "78687.webm": "Holding something; and more",
        "42326.mp4": "Showing something",
    }


def test_numbers_that_are_names_of_files_are_no_answers(tmp_path):
    root = with_files(tmp_path, "78687", "42326")
    path = written(root, "l.csv", "78687;run\n42326;sit\n")
    assert labels_of(find_videos([path])) == {"78687": "run", "42326": "sit"}
