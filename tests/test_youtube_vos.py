"""The YouTube-VOS layout: objects that appear later, what the tracker may see of them, and how they are scored."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from videossl.__main__ import main
from videossl.errors import UserError
from videossl.io.index_masks import read_mask, write_mask
from videossl.tracking.features import LabPatches, sequence_features
from videossl.tracking.propagation import propagate
from videossl.tracking.protocol import preset
from videossl.tracking.scoring import ObjectScore, global_scores
from videossl.tracking.sequence import Footage
from videossl.tracking.youtube_vos import (
    YoutubeVosSequence,
    group_scores,
    read_unseen_categories,
    read_youtube_vos,
    score_youtube_sequence,
    youtube_footage,
)

H, W, FRAMES, LATER = 32, 48, 6, 2
NAMES = tuple(f"{5 * index:05d}" for index in range(FRAMES))


def full_mask(index: int) -> NDArray[np.uint8]:
    """Object 1 from the beginning, object 4 from frame LATER on, and a void pixel."""
    mask = np.zeros((H, W), np.uint8)
    mask[4:14, 4 + 2 * index : 16 + 2 * index] = 1
    if index >= LATER:
        mask[18:28, 30 - 2 * index : 42 - 2 * index] = 4
    mask[0, 0] = 255
    return mask


def picture(index: int) -> NDArray[np.uint8]:
    random = np.random.default_rng(0)
    frame = random.integers(60, 100, (H, W, 3)).astype(np.uint8)
    for number, texture in ((1, 200), (4, 20)):
        inside = full_mask(index) == number
        frame[inside] = random.integers(texture, texture + 40, (int(inside.sum()), 3))
    return frame


def write_videos(root: Path, *names: str, only_first: bool = False, with_meta: bool = True) -> Path:
    """A tree like the train split, or with `only_first` like the valid split."""
    for name in names:
        (root / "JPEGImages" / name).mkdir(parents=True)
        for index, stem in enumerate(NAMES):
            Image.fromarray(picture(index)).save(root / f"JPEGImages/{name}/{stem}.jpg", quality=95)
            mask = full_mask(index)
            if not only_first:
                write_mask(mask_path(root, name, index), mask)
            elif index in (0, LATER):
                new = np.where(mask == (1 if index == 0 else 4), mask, 0).astype(np.uint8)
                write_mask(mask_path(root, name, index), new)
    if with_meta:
        objects = {
            "1": {"category": "ape", "frames": list(NAMES)},
            "4": {"category": "zebra", "frames": list(NAMES[LATER:])},
        }
        meta = {"videos": {name: {"objects": objects} for name in names}}
        (root / "meta.json").write_text(json.dumps(meta))
    return root


def mask_path(root: Path, name: str, index: int) -> Path:
    return root / "Annotations" / name / f"{NAMES[index]}.png"


def tracked(footage: Footage) -> NDArray[np.uint8]:
    protocol = preset("videossl", {"short_side": "none", "radius": "4"})
    features = sequence_features(footage.source, LabPatches(), protocol)
    masks = propagate(
        features,
        footage.first_mask,
        protocol,
        object_ids=footage.object_ids,
        later_masks=footage.later_masks,
        frame_at=footage.frame_at,
    )
    return np.stack(list(masks))


@pytest.mark.parametrize("with_meta", [True, False])
@pytest.mark.parametrize("only_first", [True, False])
def test_objects_are_given_where_they_appear(
    tmp_path: Path, with_meta: bool, only_first: bool
) -> None:
    write_videos(tmp_path, "ant", "bee", only_first=only_first, with_meta=with_meta)
    ant, bee = read_youtube_vos(tmp_path)
    assert (ant.name, bee.name) == ("ant", "bee")
    assert ant.frame_names == NAMES
    assert ant.appearances == {1: 0, 4: LATER}
    assert ant.is_annotated is not only_first
    footage = youtube_footage(ant)
    np.testing.assert_array_equal(footage.first_mask, np.where(full_mask(0) == 1, 1, 0))
    assert list(footage.later_masks) == [LATER]
    np.testing.assert_array_equal(footage.later_masks[LATER], np.where(full_mask(LATER) == 4, 4, 0))
    assert footage.object_ids == (1, 4)
    assert footage.frames_per_second == 6.0


@pytest.mark.parametrize("with_meta", [True, False])
@pytest.mark.parametrize("change", ["delete", "alter"])
def test_masks_after_an_objects_first_never_reach_the_tracker(
    tmp_path: Path, with_meta: bool, change: str
) -> None:
    write_videos(tmp_path, "ant", with_meta=with_meta)
    (before,) = read_youtube_vos(tmp_path)
    masks = tracked(youtube_footage(before))
    assert set(np.unique(masks[-1])) == {0, 1, 4}
    random = np.random.default_rng(1)
    for index in range(1, FRAMES):
        path, mask = mask_path(tmp_path, "ant", index), full_mask(index)
        if index == LATER:  # object 1 goes from where object 4 is given
            write_mask(path, np.where(mask == 4, mask, 0).astype(np.uint8))
        elif change == "delete":
            path.unlink()
        else:
            seen = [0, 1] if index < LATER else [0, 1, 4]
            write_mask(path, random.choice(seen, (H, W)).astype(np.uint8))
    (after,) = read_youtube_vos(tmp_path)
    np.testing.assert_array_equal(masks, tracked(youtube_footage(after)))


def test_a_video_may_begin_without_any_object(tmp_path: Path) -> None:
    write_videos(tmp_path, "ant", with_meta=False)
    for index in range(LATER):
        mask_path(tmp_path, "ant", index).unlink()
    (sequence,) = read_youtube_vos(tmp_path)
    masks = tracked(youtube_footage(sequence))
    assert not masks[:LATER].any()
    np.testing.assert_array_equal(masks[LATER], full_mask(LATER) % 255)


def test_frames_named_by_unpadded_numbers_come_in_their_order(tmp_path: Path) -> None:
    write_videos(tmp_path, "ant")
    for path in (*tmp_path.glob("*/ant/*.jpg"), *tmp_path.glob("*/ant/*.png")):
        path.rename(path.with_stem(str(int(path.stem))))
    numbers = [str(int(name)) for name in NAMES]
    objects = {"1": {"frames": numbers}, "4": {"frames": sorted(numbers[1:])}}
    write_mask(tmp_path / "Annotations/ant/5.png", full_mask(LATER))
    (tmp_path / "meta.json").write_text(json.dumps({"videos": {"ant": {"objects": objects}}}))
    (sequence,) = read_youtube_vos(tmp_path)
    assert list(sequence.frame_names) == numbers == ["0", "5", "10", "15", "20", "25"]
    assert list(sequence.mask_paths) == list(range(FRAMES))
    assert sequence.appearances == {1: 0, 4: 1}


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    write_videos(tmp_path, "ant", "bee", "cat", "dog", "elk")
    for path in (tmp_path / "JPEGImages/ant").iterdir():
        path.unlink()
    write_mask(mask_path(tmp_path, "bee", LATER), np.zeros((H, W), np.uint8))
    write_mask(mask_path(tmp_path, "cat", 0), np.ones((H, W + 2), np.uint8))
    write_mask(tmp_path / "Annotations/dog/00003.png", full_mask(0))
    with pytest.raises(UserError) as error:
        read_youtube_vos(tmp_path)
    for part in (
        "4 of 5 videos cannot be read",
        "ant: no frames",
        "bee: object 4 has no mask in the frame where meta.json has it begin",
        "cat: frame 00000 is 48x32 but its mask is 50x32",
        "dog: 1 masks are of no frame (first: 00003.png)",
    ):
        assert part in str(error.value)
    assert [s.name for s in read_youtube_vos(tmp_path, ["elk"])] == ["elk"]


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ('{"videos": ', r"meta.json is not of the form .*JSONDecodeError"),
        ('{"ant": {}}', r"meta.json is not of the form .*KeyError"),
        (
            '{"videos": {"ant": {"objects": {"1": {}}}}}',
            "ant: meta.json has no frames for object 1",
        ),
        (
            '{"videos": {"ant": {"objects": {"1": {"frames": ["00001"]}}}}}',
            "object 1 begins at frame 00001, which is not there",
        ),
        (
            '{"videos": {"ant": {"objects": {"0": {"frames": ["00000"]}}}}}',
            "has object '0'; ids are numbers from 1 to 254",
        ),
        ('{"videos": {"ant": {"objects": null}}}', "ant: meta.json must give objects as"),
        ('{"videos": {"ant": {"objects": [1]}}}', "ant: meta.json must give objects as"),
        ('{"videos": {"ant": {"objects": {"1": null}}}}', r"ant: .* got {'1': None}"),
        ('{"videos": {"ant": {"objects": {"1": ["00000"]}}}}', "ant: meta.json must give objects"),
        ('{"videos": {"ant": {"objects": {"1": {"frames": 3}}}}}', r"ant: .* got {'1': {'frames'"),
        ('{"videos": {"ant": {"objects": {"1": {"frames": [0]}}}}}', "ant: meta.json must give"),
    ],
)
def test_a_strange_meta_file_fails(tmp_path: Path, meta: str, message: str) -> None:
    write_videos(tmp_path, "ant")
    (tmp_path / "meta.json").write_text(meta)
    with pytest.raises(UserError, match=message):
        read_youtube_vos(tmp_path)


@pytest.mark.parametrize("name", ["../../esc", "/tmp/esc", "..", "", "a/b"])
def test_a_video_name_cannot_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    write_videos(tmp_path / "tree", "ant")
    (tmp_path / "tree/meta.json").write_text(
        json.dumps({"videos": {name: {"objects": {"1": {"frames": [NAMES[0]]}}}}})
    )
    with pytest.raises(UserError, match=f"video name '{re.escape(name)}' may not"):
        read_youtube_vos(tmp_path / "tree")


def test_a_folder_of_another_layout_and_unknown_videos_fail(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no JPEGImages: the YouTube-VOS layout is"):
        read_youtube_vos(tmp_path)
    write_videos(tmp_path, "ant")
    with pytest.raises(UserError, match=r"video cow is not in .*; there are: ant"):
        read_youtube_vos(tmp_path, ["cow"])


def write_results(folder: Path, *names: str) -> None:
    for name in names:
        for index, stem in enumerate(NAMES):
            write_mask(folder / name / f"{stem}.png", full_mask(index) % 255)


def scores_of(folder: Path, sequences: list[YoutubeVosSequence]) -> list[ObjectScore]:
    return [score for s in sequences for score in score_youtube_sequence(folder, s)]


def test_objects_are_scored_after_their_first_frame_to_the_last(tmp_path: Path) -> None:
    write_videos(tmp_path / "tree", "ant", "bee")
    write_results(tmp_path / "out", "ant", "bee")
    # Object 4 lost in the last frame, half of object 1 in the one before.
    last = np.where(full_mask(FRAMES - 1) == 1, 1, 0).astype(np.uint8)
    write_mask(tmp_path / f"out/ant/{NAMES[-1]}.png", last)
    half = full_mask(FRAMES - 2) % 255
    half[9:14][half[9:14] == 1] = 0
    write_mask(tmp_path / f"out/ant/{NAMES[-2]}.png", half.astype(np.uint8))
    (tmp_path / f"out/ant/{NAMES[0]}.png").unlink()  # given, so not scored
    scores = scores_of(tmp_path / "out", read_youtube_vos(tmp_path / "tree"))
    assert [s.name for s in scores] == ["ant_1", "ant_4", "bee_1", "bee_4"]
    assert scores[0].j_frames == (1.0, 1.0, 1.0, 0.5, 1.0)
    assert scores[1].j_frames == (1.0, 1.0, 0.0)
    assert scores[1].f_frames == (1.0, 1.0, 0.0)
    assert global_scores(scores)["J-Mean"] == pytest.approx((0.9 + 2 / 3 + 1 + 1) / 4)


def test_seen_and_unseen_categories_are_means_over_objects(tmp_path: Path) -> None:
    sequences = read_youtube_vos(write_videos(tmp_path / "tree", "ant", "bee"))
    write_results(tmp_path / "out", "ant", "bee")
    empty = np.where(full_mask(FRAMES - 1) == 1, 1, 0).astype(np.uint8)
    write_mask(tmp_path / f"out/ant/{NAMES[-1]}.png", empty)
    scores = scores_of(tmp_path / "out", sequences)
    (tmp_path / "unseen.txt").write_text("zebra\nlizard\n")
    groups = group_scores(scores, sequences, read_unseen_categories(tmp_path / "unseen.txt"))
    unseen = (2 / 3 + 1) / 2
    assert groups == {
        "J-seen": 1.0,
        "F-seen": 1.0,
        "J-unseen": pytest.approx(unseen),
        "F-unseen": pytest.approx(unseen),
        "G": pytest.approx((2 + 2 * unseen) / 4),
    }
    with pytest.raises(UserError, match="no object is of unseen categories"):
        group_scores(scores, sequences, {"lizard"})
    with pytest.raises(UserError, match=r"unseen.csv: No such file"):
        read_unseen_categories(tmp_path / "unseen.csv")


def test_groups_without_categories_fail(tmp_path: Path) -> None:
    sequences = read_youtube_vos(write_videos(tmp_path / "tree", "ant", with_meta=False))
    write_results(tmp_path / "out", "ant")
    scores = scores_of(tmp_path / "out", sequences)
    with pytest.raises(UserError, match="has no category for object 1 of ant"):
        group_scores(scores, sequences, {"zebra"})


def test_a_mask_that_is_missing_or_of_another_size_fails(tmp_path: Path) -> None:
    (sequence,) = read_youtube_vos(write_videos(tmp_path / "train", "bee"))
    write_results(tmp_path / "out", "bee")
    (tmp_path / f"out/bee/{NAMES[3]}.png").unlink()
    with pytest.raises(UserError, match=r"bee/00015\.png: no such mask"):
        score_youtube_sequence(tmp_path / "out", sequence)
    write_mask(tmp_path / f"out/bee/{NAMES[3]}.png", np.zeros((H, W + 1), np.uint8))
    with pytest.raises(
        UserError, match="frame 00015 of bee is 49x32 but the ground truth is 48x32"
    ):
        score_youtube_sequence(tmp_path / "out", sequence)


def track(checkpoint: Path, out: Path, *more: str) -> int:
    arguments = ["--checkpoint", str(checkpoint), "--set", "short_side=none", "--out", str(out)]
    return main(["track", *arguments, "--device", "cpu", "--workers", "1", *more])


def test_the_track_command_follows_and_scores_objects_that_appear_later(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = write_videos(tmp_path / "tree", "ant", "bee"), tmp_path / "out"
    (tmp_path / "unseen.txt").write_text("zebra\n")
    more = ("--youtube-vos", str(root), "--unseen", str(tmp_path / "unseen.txt"))
    assert track(checkpoint, out, *more, "--sequences", "ant") == 0
    assert "J-unseen" in capsys.readouterr().out
    assert sorted(p.stem for p in (out / "mine_step1/ant").iterdir()) == list(NAMES)
    before, after = (read_mask(out / f"mine_step1/ant/{NAMES[i]}.png") for i in (LATER - 1, LATER))
    assert set(np.unique(before)) == {0, 1}
    np.testing.assert_array_equal(after == 4, full_mask(LATER) == 4)
    result = json.loads((out / "result.json").read_text())
    trained = result["rows"]["mine_step1"]
    assert result["youtube_vos"] == str(root)
    assert len(trained["per_object"]["ant_1"]["J_frames"]) == FRAMES - 1
    assert len(trained["per_object"]["ant_4"]["J_frames"]) == FRAMES - 1 - LATER
    mean = trained["per_object"]["ant_4"]["J"]["mean"]
    assert trained["groups"]["J-unseen"] == pytest.approx(mean)
    assert (out / "mine_step1/global_results-youtube-vos.csv").is_file()


def test_the_track_command_does_not_score_the_valid_split(checkpoint: Path, tmp_path: Path) -> None:
    root, out = write_videos(tmp_path / "tree", "ant", only_first=True), tmp_path / "out"
    assert track(checkpoint, out, "--youtube-vos", str(root)) == 0
    assert len(list((out / "mine_step1/ant").iterdir())) == FRAMES
    assert "per_object" not in json.loads((out / "result.json").read_text())["rows"]["mine_step1"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--davis", "here"], "give either --davis ROOT or --video FILE with --mask FIRST.png, or"),
        (["--unseen", "nowhere.txt"], "nowhere.txt: no such file"),
        (["--sequences", "cow"], "video cow is not in"),
    ],
)
def test_wrong_options_of_the_track_command_are_one_clear_line(
    checkpoint: Path,
    tmp_path: Path,
    more: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = write_videos(tmp_path / "tree", "ant")
    assert track(checkpoint, tmp_path / "out", "--youtube-vos", str(root), *more) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "videossl track:" in line]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "out").exists()
