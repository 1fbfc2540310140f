import numpy as np
import pytest

from videossl.data.entry import VideoEntry
from videossl.data.manifest import Manifest
from videossl.errors import UserError
from videossl.probe.labelled_split import split_labelled


def manifest(videos: list[tuple[str, str]], broken: tuple[int, ...] = ()) -> Manifest:
    """One (label, group) per video."""
    return Manifest.from_entries(
        [
            VideoEntry(f"/data/{label}/{group}_{row}.mp4", group, status, "", 1, label=label)
            for row, (label, group) in enumerate(videos)
            for status in ["broken" if row in broken else "ok"]
        ]
    )


MANY = [(label, f"{label}{group}") for label in "abc" for group in range(8) for _ in range(3)]


def test_no_source_group_stands_on_two_sides_and_every_class_on_all():
    videos = manifest([*MANY, ("", "unlabelled"), ("a", "a0")], broken=(len(MANY) + 1,))
    split = split_labelled(videos, seed=3)
    parts = [split.train, split.validation, split.test]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(MANY)))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not set(split.group[parts[one]]) & set(split.group[parts[other]])
    assert all(set(split.label[part]) == {0, 1, 2} for part in parts)
    assert len(split.test) == pytest.approx(len(MANY) / 4, abs=3)
    assert split.classes == ("a", "b", "c")
    assert split.notes == ()


def test_a_split_is_a_function_of_its_seed():
    first, again, other = (split_labelled(manifest(MANY), seed=seed) for seed in (1, 1, 2))
    assert first.test.tolist() == again.test.tolist() != other.test.tolist()


def test_a_class_of_one_training_source_shares_it_with_validation_and_says_so(tmp_path):
    videos = [("a", "a0")] * 4 + [("b", "b0")] * 4 + [("a", "a1"), ("b", "b1")]
    path = tmp_path / "split.csv"
    names = [f"{label}/{group}_{row}.mp4" for row, (label, group) in enumerate(videos)]
    parts = ["train"] * 8 + ["test"] * 2
    path.write_text("file,split\n" + "\n".join(map(",".join, zip(names, parts, strict=True))))
    split = split_labelled(manifest(videos), seed=0, split_file=path)
    assert split.test.tolist() == [8, 9]
    assert set(split.group[split.validation]) <= set(split.group[split.train])
    assert "single source group" in split.notes[0]


def write(path, text: str):
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("path,split\na/a0_0.mp4,train\na/a0_1.mp4,test\n", "source groups on both sides.*'a0'"),
        ("path,split\nx.mp4,train\ny.mp4,test\n", "0 training and 0 test videos"),
        ("path,split\na/a0_0.mp4,often\n", "line 2: needs the columns"),
        ("name,part\na,b\n", "line 2: needs the columns"),
        ("path,split\na/a0_0.mp4,train\na/a0_0.mp4,test\n", "was train before, is test"),
    ],
)
def test_a_split_file_that_cannot_be_used_fails(tmp_path, text, says):
    path = write(tmp_path / "s.csv", text)
    with pytest.raises(UserError, match=says):
        split_labelled(manifest(MANY), seed=0, split_file=path)


def test_a_name_that_may_be_two_videos_fails(tmp_path):
    entries = [
        VideoEntry(f"/data/{label}/x.mp4", f"{label}g", "ok", "", 1, label=label) for label in "ab"
    ]
    path = write(tmp_path / "s.csv", "path,split\nx.mp4,train\n")
    with pytest.raises(UserError, match=r"x\.mp4 may be /data/a/x\.mp4 or /data/b/x\.mp4"):
        split_labelled(Manifest.from_entries(entries), seed=0, split_file=path)


def test_a_split_file_of_a_spreadsheet_is_read(tmp_path):
    parts = ["train" if int(group[1]) < 6 else "test" for _, group in MANY]
    names = [f"{label}/{group}_{row}.mp4" for row, (label, group) in enumerate(MANY)]
    text = "path,split\n" + "\n".join(map(",".join, zip(names, parts, strict=True)))
    (tmp_path / "s.csv").write_text(text, encoding="utf-8-sig")
    split = split_labelled(manifest(MANY), seed=0, split_file=tmp_path / "s.csv")
    assert len(split.test) == parts.count("test")


def test_a_split_file_that_is_not_there_fails(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        split_labelled(manifest(MANY), seed=0, split_file=tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("videos", "says"),
    [
        ([("a", "x"), ("a", "y")], "1 classes among 2 sound labelled videos"),
        ([("a", "x"), ("b", "x")], "all 2 labelled videos are of one source group"),
        ([("a", "x"), ("a", "y"), ("a", "z"), ("b", "w"), ("b", "w")], "class '[ab]' has no video"),
    ],
)
def test_videos_that_cannot_be_split_fail(videos, says):
    with pytest.raises(UserError, match=says):
        split_labelled(manifest(videos), seed=0)
