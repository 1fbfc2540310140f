"""The readers of point benchmarks on tiny trees, hostile files, and `videossl track-points` from the command line."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import io as matlab

from videossl.__main__ import main
from videossl.errors import UserError
from videossl.io.index_masks import write_mask
from videossl.tracking.point_scoring import draw_points, score_points
from videossl.tracking.point_sets import (
    load_array_pickle,
    read_badja,
    read_jhmdb,
    read_tapvid,
    sample_queries,
)
from videossl.tracking.points import Tracks

DAVIS = Path(__file__).parents[2] / "shared" / "data" / "davis"
H, W, FRAMES = 48, 64, 6
SHIFT = 4  # pixels a frame, to the right: a cell of the features


def frame(t: int) -> NDArray[np.uint8]:
    """A texture of 2-pixel blobs that moves to the right."""
    blobs = np.random.default_rng(0).integers(0, 256, (H // 2, 80, 3)).astype(np.uint8)
    large = np.repeat(np.repeat(blobs, 2, 0), 2, 1)
    return np.ascontiguousarray(large[:, 60 - SHIFT * t : 60 - SHIFT * t + W])


@pytest.fixture
def badja(tmp_path: Path) -> Path:
    """Two animals of three joints at x = 20, 24, 28 and y = 10, 20, 30 in frame 1, known at frames 1, 3 and 5."""
    root = tmp_path / "davis"
    for name in ("cow", "dog"):
        entries = []
        for t in range(FRAMES):
            image = root / f"JPEGImages/480p/{name}/{t:05d}.jpg"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(frame(t)).save(image, quality=95)
            mask = np.zeros((H, W), np.uint8)
            mask[4:45, 10:51] = 1  # 1681 pixels: a threshold of 8.2
            write_mask(root / f"Annotations/480p/{name}/{t:05d}.png", mask)
            if t % 2:
                joints = [
                    [(10 + 10 * j) * 1080 / H, (16 + 4 * j + SHIFT * t) * 1920 / W]
                    for j in range(3)
                ]
                entries.append(
                    {
                        "image_path": f"DAVIS/JPEGImages/Full-Resolution/{name}/{t:05d}.jpg",
                        "segmentation_path": f"DAVIS/Annotations/Full-Resolution/{name}/{t:05d}.png",
                        "joints": joints,
                        "visibility": [True, t != 1, t != 3],
                    }
                )
        (root / "badja_joints").mkdir(exist_ok=True)
        # Out of order on purpose: the order is that of the frame numbers.
        (root / f"badja_joints/{name}.json").write_text(json.dumps(entries[::-1]))
    return root


@pytest.fixture
def jhmdb(tmp_path: Path) -> Path:
    """Two videos of one action, 15 joints on a grid that move with the texture; joint 14 begins outside."""
    root = tmp_path / "jhmdb"
    grid = np.array([[12 + 8 * (j % 5), 10 + 10 * (j // 5)] for j in range(15)], float)
    grid[14] = [70, 10]
    for name in ("a", "b"):
        for t in range(FRAMES):
            image = root / f"Rename_Images/wave/{name}/{t + 1:05d}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(frame(t)).save(image)
        joints = np.stack(
            [grid + np.array([SHIFT * t, 0]) for t in range(FRAMES - 1)], 2
        )  # (15, 2, T)
        folder = root / f"joint_positions/wave/{name}"
        folder.mkdir(parents=True)
        matlab.savemat(folder / "joint_positions.mat", {"pos_img": joints.transpose(1, 0, 2) + 0.5})
    (root / "splits").mkdir()
    (root / "splits/wave_test_split1.txt").write_text("a.avi 2\nb.avi 2\nnot_here.avi 1\n")
    return root


def tapvid_arrays() -> dict[str, NDArray]:
    """Three points that move with the texture; the second is hidden at first, the third always."""
    start = np.array([[20, 12], [30, 30], [10, 10]], float)
    pixels = np.stack([start + np.array([SHIFT * t, 0]) for t in range(FRAMES)], 1)
    occluded = np.zeros((3, FRAMES), bool)
    occluded[1, :2], occluded[2], occluded[0, 4] = True, True, True
    return {
        "video": np.stack([frame(t) for t in range(FRAMES)]),
        "points": (pixels / [W, H]).astype(np.float32),
        "occluded": occluded,
    }


@pytest.fixture
def tapvid(tmp_path: Path) -> Path:
    path = tmp_path / "tapvid.pkl"
    path.write_bytes(pickle.dumps({"ant": tapvid_arrays(), "bee": tapvid_arrays()}))
    return path


def run(*arguments: object) -> int:
    return main(["track-points", "--device", "cpu", *map(str, arguments)])


# A small radius, so that cells that come in at the border find no joint to copy.
SMALL = ("--set", "short_side=none", "--set", "radius=1")


def test_badja_joints_go_to_the_size_of_the_frames(badja: Path) -> None:
    cow, dog = read_badja(badja)
    assert (cow.name, dog.name, cow.size) == ("cow", "dog", (H, W))
    assert cow.source.num_frames == 5  # frames 1 to 5
    assert cow.truth.shape == (2, 5, 2)  # joint 1 is not visible in the first annotated frame
    half = np.array([0.5 * W / 1920, 0.5 * H / 1080])
    np.testing.assert_allclose(cow.queries.places, np.array([[20, 10], [28, 30]]) + half)
    np.testing.assert_allclose(cow.truth[0, 4], np.array([36, 10]) + half)
    assert cow.is_visible.tolist() == [
        [True, False, True, False, True],
        [True, False, False, False, True],
    ]
    assert cow.mask_areas is not None
    assert cow.mask_areas.tolist() == [1681, 0, 1681, 0, 1681]


def test_all_problems_of_a_badja_tree_are_one_line(badja: Path) -> None:
    (badja / "JPEGImages/480p/cow/00003.jpg").unlink()
    (badja / "badja_joints/dog.json").write_text("[{}]")
    with pytest.raises(
        UserError, match=r"2 of 2 videos.*cow: 1 of 5 frames are missing.*dog: dog.json is not"
    ) as error:
        read_badja(badja)
    assert "\n" not in str(error.value)
    shutil.rmtree(badja / "badja_joints")
    with pytest.raises(UserError, match="neither badja_joints nor joint_annotations"):
        read_badja(badja)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e["joints"].__setitem__(0, [1080, 5]), "outside frames of 1920x1080"),
        (lambda e: e["joints"].pop(), r"must hold joints|is not a list of BADJA joints"),
        (lambda e: e.update(visibility=[False] * 3), "no joint is visible in the first"),
        (lambda e: e.update(image_path="cow/first.jpg"), "is not a list of BADJA joints"),
    ],
)
def test_a_damaged_badja_file_fails(
    badja: Path, change: Callable[[dict], object], message: str
) -> None:
    path = badja / "badja_joints/cow.json"
    entries = json.loads(path.read_text())
    change(entries[-1])  # the first frame
    path.write_text(json.dumps(entries))
    with pytest.raises(UserError, match=message):
        read_badja(badja)


@pytest.mark.skipif(not DAVIS.exists(), reason="no shared DAVIS data beside the checkout")
def test_real_badja_joints_lie_on_their_animals() -> None:
    videos = read_badja(DAVIS)
    assert [video.name for video in videos] == ["cows", "dog", "horsejump-high"]
    assert [video.source.num_frames for video in videos] == [100, 53, 50]
    assert [len(video.truth) for video in videos] == [19, 17, 19]
    for video in videos:
        mask = np.asarray(
            Image.open(
                DAVIS / f"Annotations/480p/{video.name}/{3 if video.name == 'dog' else 0:05d}.png"
            )
        )
        assert video.mask_areas is not None
        assert video.mask_areas[0] == np.count_nonzero(mask)
        for x, y in video.queries.places:
            near = mask[max(0, int(y) - 4) : int(y) + 5, max(0, int(x) - 4) : int(x) + 5]
            assert near.any(), f"{video.name} {x:.0f} {y:.0f}"


def test_jhmdb_joints_count_pixels_from_one(jhmdb: Path) -> None:
    first, second = read_jhmdb(jhmdb)
    assert (first.name, second.name) == ("wave/a", "wave/b")
    assert first.source.num_frames == FRAMES - 1  # the frame without joints is left out
    np.testing.assert_allclose(
        first.queries.places[0], [12, 10]
    )  # stored as 12.5: pixel 12 of 1, ... covers 11 to 12
    np.testing.assert_allclose(first.truth[6, 3], [20 + 3 * SHIFT, 20])
    assert first.is_visible.all(1).tolist() == [True] * 14 + [False]
    (jhmdb / "splits/run_test_split2.txt").write_text("a.avi 1\n")
    with pytest.raises(UserError, match=r"no video is marked 2 \(test\)"):
        read_jhmdb(jhmdb, [jhmdb / "splits/run_test_split2.txt"])


def test_all_problems_of_a_jhmdb_tree_are_one_line(jhmdb: Path) -> None:
    (jhmdb / "Rename_Images/wave/a/00002.png").unlink()
    (jhmdb / "Rename_Images/wave/a/00003.png").unlink()
    (jhmdb / "joint_positions/wave/b/joint_positions.mat").write_bytes(b"MATLAB 5.0" + bytes(200))
    with pytest.raises(
        UserError, match=r"2 of 2 videos.*wave/a: 5 frames have joints.*holds 4; wave/b: no pos_img"
    ):
        read_jhmdb(jhmdb)
    (jhmdb / "splits/wave_test_split1.txt").write_text("a.avi\n")
    with pytest.raises(UserError, match="each line must be"):
        read_jhmdb(jhmdb)
    shutil.rmtree(jhmdb / "splits")
    with pytest.raises(UserError, match=r"holds no <action>_test_split1\.txt"):
        read_jhmdb(jhmdb)


@pytest.mark.parametrize("line", ["../../../esc.avi 2", "/tmp/esc.avi 2", "a/b.avi 2", "...avi 2"])
def test_a_line_of_a_split_cannot_lead_out_of_the_folder(jhmdb: Path, line: str) -> None:
    (jhmdb / "splits/wave_test_split1.txt").write_text(line)
    with pytest.raises(UserError, match=r"video name '.*' may not be empty"):
        read_jhmdb(jhmdb)
    (jhmdb / "splits/.._test_split1.txt").write_text("a.avi 2")
    with pytest.raises(UserError, match=r"action '\.\.' may not be empty"):
        read_jhmdb(jhmdb, [jhmdb / "splits/.._test_split1.txt"])


def test_queries_are_the_first_visible_frame_or_every_fifth() -> None:
    occluded = np.ones((3, 12), bool)
    occluded[0, 3:] = False
    occluded[2, [0, 10]] = False
    rows, frames = sample_queries(occluded, "first")
    assert (rows.tolist(), frames.tolist()) == ([0, 2], [3, 0])
    rows, frames = sample_queries(occluded, "strided")
    assert list(zip(rows.tolist(), frames.tolist(), strict=True)) == [
        (2, 0),
        (0, 5),
        (0, 10),
        (2, 10),
    ]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_tapvid_pickles_of_every_protocol_are_read(tmp_path: Path, protocol: int) -> None:
    arrays = tapvid_arrays()
    arrays["points"] = np.asfortranarray(arrays["points"].astype(">f8"))
    path = tmp_path / "set.pkl"
    path.write_bytes(pickle.dumps({"ant": {**arrays, "note": "text"}}, protocol))
    found = load_array_pickle(path)["ant"]
    assert set(found) == set(arrays)
    for key, array in arrays.items():
        np.testing.assert_array_equal(found[key], array)
    (video,) = read_tapvid(path, "first")
    assert video.query_frames.tolist() == [0, 2]
    np.testing.assert_allclose(video.queries.places[0], [20 / W * 256, 12 / H * 256])


def test_tapvid_npz_and_lists_are_the_same_set(tmp_path: Path, tapvid: Path) -> None:
    arrays = tapvid_arrays()
    np.savez(
        tmp_path / "many.npz", **{f"{n}/{k}": a for n in ("ant", "bee") for k, a in arrays.items()}
    )
    np.savez(tmp_path / "one.npz", **arrays)
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([arrays, arrays]))
    names = {
        path.name: [video.name for video in read_tapvid(path, "strided")]
        for path in (tapvid, *(tmp_path / n for n in ("many.npz", "one.npz", "list.pkl")))
    }
    assert names == {
        "tapvid.pkl": ["ant", "bee"],
        "many.npz": ["ant", "bee"],
        "one.npz": ["one"],
        "list.pkl": ["00000", "00001"],
    }


class Hostile:
    """Pickles into a call of the given function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_hostile_pickle_runs_nothing(tmp_path: Path, protocol: int) -> None:
    trap = tmp_path / "trap"
    path = tmp_path / "hostile.pkl"
    for hostile in (
        Hostile(os.system, f"touch {trap}"),
        Hostile(eval, f"open({str(trap)!r}, 'w')"),
        Hostile(np.save, str(trap), 1),
        Hostile(getattr, np.zeros(2), "tofile"),
    ):
        inside_array = np.array([hostile], object)
        for where in (
            hostile,
            {"a": hostile},
            {"a": {"video": hostile}},
            {"a": {"video": inside_array}},
        ):
            path.write_bytes(pickle.dumps(where, protocol))
            with pytest.raises(UserError, match=r"asks for .*only numpy arrays"):
                read_tapvid(path, "first")
    assert not list(tmp_path.glob("trap*"))


def test_damaged_pickles_are_refused(tmp_path: Path, tapvid: Path) -> None:
    whole = tapvid.read_bytes()
    path = tmp_path / "damaged.pkl"
    random = np.random.default_rng(0)
    damaged = [b"", b"text", whole[:50], whole[: len(whole) // 2]]
    for _ in range(60):  # of the head, where the structure is
        changed = bytearray(whole[:300] + whole[-60:])
        changed[random.integers(300)] = random.integers(256)
        damaged.append(bytes(changed))
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(UserError):
            read_tapvid(path, "first")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video": np.zeros((6, 4, 4), np.uint8)}, r"video must be \(T, H, W, 3\) uint8"),
        ({"points": np.zeros((3, 5, 2))}, r"points must be \(N, 6, 2\) float, got \(3, 5, 2\)"),
        ({"points": np.full((3, 6, 2), 200.0)}, "must be shares of the width and height"),
        ({"occluded": np.ones((3, 6), bool)}, "no point is ever visible"),
        ({"occluded": np.ones((3, 6))}, r"occluded must be \(3, 6\) bool"),
        ({"points": "text"}, "no array of numbers points"),
    ],
)
def test_wrong_arrays_of_a_tapvid_file_fail(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "set.pkl"
    path.write_bytes(pickle.dumps({"good": tapvid_arrays(), "bad": {**tapvid_arrays(), **change}}))
    with pytest.raises(UserError, match=f"1 of 2 videos.*bad: .*{message}"):
        read_tapvid(path, "first")


@pytest.mark.parametrize("name", ["../../up", "/etc/x", ".hidden", "a/b", ""])
def test_a_video_name_cannot_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    path = tmp_path / "set.pkl"
    path.write_bytes(pickle.dumps({name: tapvid_arrays()}))
    with pytest.raises(UserError, match="files are named after it"):
        read_tapvid(path, "first")


def test_badja_from_the_command_line(
    checkpoint: Path, badja: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ("--badja", badja, "--checkpoint", checkpoint, *SMALL, "--out", out)
    assert run(*arguments, "--baselines", "lab,untrained") == 0
    printed = capsys.readouterr().out
    result = json.loads((out / "result.json").read_text())
    rows = result["rows"]
    assert list(rows) == ["identity", "lab", "untrained", "mine_step1"]
    assert all(row in printed for row in rows)
    # Frame 3 is 8 pixels off, within 0.2 * sqrt(1681) = 8.2, and frame 5 is 16 off: 1 of 3 of each animal's joints.
    assert rows["identity"]["per_video"] == {"cow": {"PCK@0.2": 1 / 3}, "dog": {"PCK@0.2": 1 / 3}}
    assert rows["identity"]["global"]["PCK@0.2"] == pytest.approx(1 / 3)
    assert rows["lab"]["global"]["PCK@0.2"] == 1
    assert rows["mine_step1"]["global"]["PCK@0.2"] >= 1 / 3
    assert result["complete"] is True
    assert result["versions"]["torch"] == torch.__version__.partition("+")[0]
    trained = rows["mine_step1"]
    assert trained["protocol"]["temperature"] == 0.02
    assert trained["reading"] == {"sigma": 0.5, "top_cells": 3, "cycle_cells": 4.0}
    assert trained["features"]["stage"] == "res3"
    assert trained["input_size_hw"] == {"cow": [H, W], "dog": [H, W]}
    with np.load(out / "mine_step1/cow.npz") as arrays:
        assert arrays["tracks"].shape == (2, 5, 2)
        assert arrays["size"].tolist() == [H, W]
    with Image.open(out / "sheets/cow.png") as sheet:
        assert sheet.height == 220 * 5  # the truth and four rows


def test_jhmdb_from_the_command_line(checkpoint: Path, jhmdb: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("--jhmdb", jhmdb, "--checkpoint", checkpoint, *SMALL, "--out", out)
    assert run(*arguments, "--baselines", "lab", "--videos", "wave/b") == 0
    rows = json.loads((out / "result.json").read_text())["rows"]
    # The box of the 14 judged joints is 32 x 20 in each frame, times 0.6: 22.6. Identity is off by 4, 8, 12, 16.
    shares = [rows["identity"]["global"][f"PCK@{alpha}"] for alpha in (0.1, 0.2, 0.3, 0.4)]
    assert shares == pytest.approx([0, 1 / 4, 1 / 4, 2 / 4])
    assert rows["lab"]["global"]["PCK@0.1"] == 1
    assert (out / "mine_step1/wave/b.npz").is_file()
    assert (out / "sheets/wave/b.png").is_file()


@pytest.mark.parametrize("mode", ["first", "strided"])
def test_tapvid_from_the_command_line_and_again_from_its_tracks(
    checkpoint: Path, tapvid: Path, tmp_path: Path, mode: str
) -> None:
    given = ("--tapvid", tapvid, "--query-mode", mode)
    arguments = (*given, "--checkpoint", checkpoint, "--set", "short_side=128")
    assert run(*arguments, "--baselines", "lab", "--out", tmp_path / "out") == 0
    rows = json.loads((tmp_path / "out/result.json").read_text())["rows"]
    assert rows["lab"]["global"]["delta_16"] > rows["identity"]["global"]["delta_16"]
    assert run(*given, "--tracks", tmp_path / "out/lab", "--out", tmp_path / "again") == 0
    again = json.loads((tmp_path / "again/result.json").read_text())["rows"]
    assert list(again) == ["identity", "tracks"]
    assert again["tracks"]["global"] == pytest.approx(rows["lab"]["global"])
    assert again["identity"]["global"] == rows["identity"]["global"]


def test_perfect_tracks_in_pixels_of_any_size_score_one(
    tapvid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    arrays = tapvid_arrays()
    for name, size in (("ant", (256, 256)), ("bee", (H, W))):
        found = {
            "tracks": arrays["points"][:2] * np.array(size)[::-1],
            "occluded": arrays["occluded"][:2],
        }
        if name == "bee":
            found["size"] = np.array(size)
        np.savez(folder / f"{name}.npz", **found)
    assert run("--tapvid", tapvid, "--tracks", folder, "--out", tmp_path / "out", "--json") == 0
    record = json.loads((tmp_path / "out/result.json").read_text())
    assert json.loads(capsys.readouterr().out) == record  # that, and nothing else, is printed
    rows = record["rows"]
    assert set(rows["tracks"]["global"].values()) == {1.0}
    assert rows["identity"]["global"]["AJ"] < 0.5


def test_a_video_that_says_nothing_is_left_out_of_the_mean(tmp_path: Path) -> None:
    silent = tapvid_arrays()
    silent["occluded"][:, 1:] = True  # nothing is visible after the queries
    path = tmp_path / "set.pkl"
    path.write_bytes(pickle.dumps({"ant": tapvid_arrays(), "mute": silent}))
    ant, mute = read_tapvid(path, "first")
    tracks = {video.name: Tracks(video.truth, ~video.is_visible) for video in (ant, mute)}
    found = score_points("tapvid", [ant, mute], tracks).as_dict()
    assert found["per_video"]["mute"]["AJ"] is None
    assert found["global"]["AJ"] == 1
    json.dumps(found, allow_nan=False)


def test_all_problems_of_given_tracks_are_one_line(
    tapvid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    np.savez(
        folder / "ant.npz", tracks=np.zeros((3, FRAMES, 2)), occluded=np.zeros((3, FRAMES), bool)
    )
    assert run("--tapvid", tapvid, "--tracks", folder, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "2 of 2 videos" in error
    assert "ant: tracks must be (N, T, 2) = (2, 6, 2)" in error
    assert "bee: no bee.npz" in error
    np.savez(folder / "bee.npz", tracks=np.array([{}], object), occluded=np.zeros(1))
    assert run("--tapvid", tapvid, "--tracks", folder, "--out", tmp_path / "out") == 2
    assert "bee: bee.npz is not a sound .npz" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--preset", "mast"], "points need soft labels"),
        (["--preset", "stm"], "preset 'stm' is unknown"),
        (["--set", "top_k"], "--set takes KEY=VALUE"),
        (["--top-cells", "0"], "top_cells must be >= 1, got 0"),
        (["--query-mode", "last"], "allowed: first, strided"),
        (["--query-mode", "strided"], "goes with --tapvid only"),
        (["--split-list", "x_test_split1.txt"], "goes with --jhmdb only"),
        (["--videos", "cat"], "no video cat; there are: cow, dog"),
        (["--baselines", "flow"], "baseline flow is unknown; allowed: lab, untrained"),
        (["--tracks", "here"], "give either --checkpoint RUN"),
        (["--stage", "res9"], "this encoder has"),
        (["--device", "tpu"], "allowed: auto, cpu, cuda"),
    ],
)
def test_wrong_input_is_one_clear_line(
    checkpoint: Path,
    badja: Path,
    tmp_path: Path,
    more: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ("--badja", badja, "--checkpoint", checkpoint, "--out", tmp_path / "out")
    assert run(*arguments, *more) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("videossl ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "out").exists()


def test_a_broken_tree_is_refused_before_the_encoder_is_read(
    badja: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (badja / "badja_joints/dog.json").write_text("{")
    (tmp_path / "no_encoder").write_text("text")
    arguments = (
        "--badja",
        badja,
        "--checkpoint",
        tmp_path / "no_encoder",
        "--out",
        tmp_path / "out",
    )
    assert run(*arguments) == 2
    assert "dog: dog.json is not a list" in capsys.readouterr().err


def test_an_output_that_cannot_be_made_is_told_before_the_encoder_is_read(
    badja: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "no_encoder").write_text("text")
    arguments = (
        "--badja",
        badja,
        "--checkpoint",
        tmp_path / "no_encoder",
        "--out",
        "/proc/videossl",
    )
    assert run(*arguments) == 2
    assert "--out /proc/videossl cannot be written to" in capsys.readouterr().err


def test_tracks_in_the_output_folder_are_not_deleted(
    tapvid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out/trained"
    folder.mkdir(parents=True)
    (folder / "ant.npz").write_bytes(b"mine")
    assert run("--tapvid", tapvid, "--tracks", folder, "--out", tmp_path / "out") == 2
    assert "give another --out" in capsys.readouterr().err
    assert (folder / "ant.npz").read_bytes() == b"mine"


def test_seen_points_are_discs_and_hidden_ones_rings() -> None:
    black = np.zeros((40, 60, 3), np.uint8)
    places = np.array([[15.0, 20.0], [45.0, 20.0], [np.nan, np.nan]])
    drawn = draw_points(black, places, np.array([False, True, False]), radius=6)
    assert drawn[20, 15].any()
    assert not drawn[20, 45].any()
    assert drawn[20, 39:52].any()
    assert not black.any()
