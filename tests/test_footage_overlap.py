"""Videos that show the footage of a benchmark are left out, whatever was done to it, and others are not."""

import csv
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
from PIL import Image
from test_inspect import scene, write

from videossl.__main__ import main
from videossl.catalog import scanning, sequence_overlap
from videossl.catalog.near_duplicates import (
    CROPS,
    FrameSignatures,
    SignatureFile,
    SignatureList,
    centre_crops,
    mirrored,
    signatures,
    spectra,
    without_bars,
)
from videossl.catalog.sequence_overlap import (
    SAME_DISTANCE,
    Footage,
    FootageFrames,
    find_footage,
    read_piece,
    read_signatures,
)
from videossl.data.dataset import ClipDataset
from videossl.data.manifest import read_manifest
from videossl.errors import UserError
from videossl.types import ClipSpec


def grey(seed, *, height=54, width=96):
    """A picture with some detail at every scale."""
    rng = np.random.default_rng(seed)
    layers = [rng.normal(size=(2 * k, 3 * k)) / k for k in (1, 2, 4, 8)]
    sum_ = sum(np.asarray(Image.fromarray(x).resize((width, height), 3)) for x in layers)
    return ((sum_ - sum_.min()) / np.ptp(sum_) * 255).astype(np.uint8)


def unit(picture):
    values = signatures(picture[None])[0].astype(float)
    return values / np.linalg.norm(values)


def distance(one, other):
    return 1 - unit(one) @ unit(other)


def scaled(picture, size):
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


# --- signatures ---


@pytest.mark.parametrize("size", [8, 11])
def test_spectrum_is_the_cosine_transform(size):
    picture = grey(0).astype(float)
    expected = scipy.fft.dctn(picture, norm="ortho")[:size, :size] / np.sqrt(picture.size)
    np.testing.assert_allclose(spectra(picture[None], size)[0], expected, atol=1e-3)


def test_signature_orders_frequencies_and_weights_them():
    """The definition, slowly: diagonal by diagonal, times the frequency, signed root, length 1."""
    picture = grey(1)
    table = scipy.fft.dctn(picture.astype(float), norm="ortho") / np.sqrt(picture.size)
    places = [(row, total - row) for total in range(1, 11) for row in range(total + 1)][:64]
    weighted = np.array([table[p] * np.hypot(*p) for p in places])
    expected = np.sign(weighted) * np.sqrt(np.abs(weighted) / np.abs(weighted).sum()) * 127
    np.testing.assert_allclose(signatures(picture[None])[0], expected, atol=0.51)


def test_signature_outlasts_size_shape_brightness_and_contrast():
    picture = grey(2, height=216, width=384)
    small = scaled(picture, (96, 54))
    assert distance(picture, small) < 0.01
    assert distance(picture, scaled(picture, (96, 96))) < 0.01
    assert distance(small, (small * 0.5).astype(np.uint8)) < 0.01
    assert distance(small, (small * 0.5 + 100).astype(np.uint8)) < 0.01
    others = [distance(small, grey(seed)) for seed in range(3, 40)]
    assert min(others) > 2 * SAME_DISTANCE


def test_mirroring_a_signature_is_that_of_the_mirrored_picture():
    picture = grey(3)
    assert distance(picture, picture[:, ::-1]) > 2 * SAME_DISTANCE
    np.testing.assert_allclose(mirrored(unit(picture)), unit(picture[:, ::-1]), atol=0.01)


def test_frames_that_are_like_all_others_have_no_signature():
    ramp = np.linspace(20, 230, 96)[None, :].repeat(54, axis=0)
    pictures = [
        np.zeros((54, 96)),
        np.full((54, 96), 255),
        ramp,
        ramp.T[:54, :54].repeat(2, axis=1)[:, :96],
        128 + np.random.default_rng(0).normal(0, 1, (54, 96)),  # a covered lens
    ]
    assert not signatures(np.stack(pictures).astype(np.uint8)).any()
    frames = SignatureList(frames_per_second=None)
    frames.add(0.0, np.zeros((54, 96), np.uint8))
    assert (frames.result().num_frames, len(frames.result().values)) == (0, 0)


@pytest.mark.parametrize(
    ("height", "width", "shapes"),
    [
        (54, 96, [16 / 9, 4 / 3, 1]),
        (72, 96, [4 / 3, 1]),
        (96, 96, [1]),
        (96, 54, [9 / 16, 3 / 4, 1]),
    ],
)
def test_centre_crops_are_of_the_shape_and_share_asked_for(height, width, shapes):
    rows, columns = np.mgrid[:height, :width]
    crops = list(centre_crops(np.stack([rows, columns], axis=-1)[..., 0]))
    across = list(centre_crops(np.stack([rows, columns], axis=-1)[..., 1]))
    assert len(crops) == len(shapes) * len(CROPS)
    for number, (crop, other) in enumerate(zip(crops, across, strict=True)):
        shape, share = shapes[number // len(CROPS)], CROPS[number % len(CROPS)]
        full_width = min(width, height * shape)
        expected = (full_width / shape * share, full_width * share)
        assert np.abs(np.array(crop.shape) - expected).max() <= 1
        for line, side in ((crop[:, 0], height), (other[0], width)):
            assert abs((line[0] + line[-1]) / 2 - (side - 1) / 2) <= 0.5  # in the centre


def test_black_bars_are_cut_and_a_dark_rim_is_not():
    picture = np.maximum(grey(4), 30)
    barred = np.zeros((72, 96), np.uint8)
    barred[9:63] = picture
    np.testing.assert_array_equal(without_bars(barred), picture)
    ragged = picture.copy()
    ragged[:9] = np.where(np.arange(96) % 3, 0, ragged[:9])
    assert without_bars(ragged).shape == ragged.shape


def test_frames_are_taken_by_the_clock_from_the_first_one_on():
    frames = SignatureList(frames_per_second=4)
    times = 7.0 + np.arange(60) / 30
    taken = [time - 7 for time in times if frames.wants(time)]
    np.testing.assert_allclose(taken, np.ceil(np.arange(8) * 7.5) / 30, atol=1e-9)


# --- the file of signatures ---


def some_signatures(seed, count=3):
    values = np.random.default_rng(seed).integers(-50, 50, (count, 64)).astype(np.int8)
    return FrameSignatures(count, np.arange(count, dtype=np.float32) / 4, values)


def test_signatures_come_back_from_the_file_and_a_torn_row_does_not(tmp_path):
    keys = [Footage(f"/{name}.mp4", 10, 20).key for name in "abc"]
    known = SignatureFile(tmp_path / "m.parquet")
    for number, key in enumerate(keys):
        known.append(key, some_signatures(number, count=number))
    known.close()
    content = known.path.read_bytes()
    known.path.write_bytes(content[:-7])
    known = SignatureFile(tmp_path / "m.parquet")
    assert [key in known for key in keys] == [True, True, False]
    known.append(keys[2], some_signatures(2, count=2))
    known.close()
    assert known.path.read_bytes() == content
    known = SignatureFile(tmp_path / "m.parquet")
    for number, key in enumerate(keys):
        found, expected = known[key], some_signatures(number, count=number)
        assert found.num_frames == number
        np.testing.assert_array_equal(found.seconds, expected.seconds)
        np.testing.assert_array_equal(found.values, expected.values)
    assert Footage("/a.mp4", 11, 20).key not in known  # another size is another file
    assert Footage("/a.mp4", 10, 21).key not in known
    known.close()
    assert keys[0] not in SignatureFile(tmp_path / "m.parquet", fresh=True)


# --- where footage lies ---


def write_frames(folder, pictures):
    folder.mkdir(parents=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number:05d}.jpg", quality=95)


def test_of_a_davis_tree_frames_are_taken_and_masks_are_not(tmp_path):
    for part in ("JPEGImages/480p", "JPEGImages/Full-Resolution", "Annotations/480p"):
        write_frames(tmp_path / part / "bear", [grey(0), grey(1)])
    (tmp_path / "ImageSets").mkdir()
    write_frames(tmp_path / "preview", [grey(0)])
    (piece,) = find_footage([tmp_path])
    assert (piece.name, piece.pictures) == ("bear", ("00000.jpg", "00001.jpg"))
    assert piece.path == str(tmp_path / "JPEGImages" / "480p" / "bear")


def test_footage_is_any_mixture_of_frames_and_videos(tmp_path):
    write_frames(tmp_path / "frames" / "a" / "one", [grey(0)])
    write_frames(tmp_path / "frames" / "two", [grey(1)])
    write_frames(tmp_path / "vos" / "JPEGImages" / "0a", [grey(1)])
    write(tmp_path / "frames" / "clip.mp4", scene(0, 3))
    write(tmp_path / "alone.webm.mp4", scene(1, 3))
    (tmp_path / "list.txt").write_text("alone.webm.mp4\n")
    found = find_footage([tmp_path / n for n in ("frames", "vos", "alone.webm.mp4", "list.txt")])
    assert sorted(piece.name for piece in found) == [
        "0a",
        "a/one",
        "alone.webm.mp4",
        "clip.mp4",
        "two",
    ]
    assert all(piece.with_crops for piece in found)


def test_footage_that_is_not_there_fails(tmp_path):
    with pytest.raises(UserError, match=r"no such file or folder: .*nowhere"):
        find_footage([tmp_path / "nowhere"])
    (tmp_path / "notes.txt.old").write_text("no frames")
    with pytest.raises(UserError, match=r"no frames and no videos in .*; looked for .*\.jpg"):
        find_footage([tmp_path])


# --- the command ---


def crop(frames, share):
    for frame in frames:
        height, width = frame.shape[:2]
        rows, columns = round(height * share), round(width * share)
        top, left = (height - rows) // 2, (width - columns) // 2
        yield frame[top : top + rows, left : left + columns]


def letterboxed(frames):
    for frame in frames:
        yield np.pad(frame, ((16, 16), (0, 0), (0, 0)))


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory) -> Path:
    """A DAVIS tree of two sequences of 24 frames."""
    root = tmp_path_factory.mktemp("benchmark")
    for number, name in enumerate(("first", "second")):
        write_frames(root / "JPEGImages" / "480p" / name, list(scene(number, 24, speed=3)))
    return root


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Videos that show the benchmark, or do not (other*), at 24 frames a second."""
    folder = tmp_path_factory.mktemp("videos")
    first = list(scene(0, 24, speed=3))
    made = {
        "small": (first, {"size": (64, 48), "crf": 32}),
        "square": (first, {"size": (96, 96)}),
        "dark": ([(frame * 0.6).astype(np.uint8) for frame in first], {}),
        "mirrored": ([frame[:, ::-1] for frame in first], {}),
        "reversed": (first[::-1], {}),
        "slow": (first[::2], {"fps": 8}),
        "cropped": (list(crop(first, 0.85)), {"size": (112, 80)}),
        "letterboxed": (list(letterboxed(first)), {}),
        "excerpt": ([*scene(7, 48), *scene(1, 24, speed=3), *scene(8, 48)], {}),
        "other": (scene(9, 48), {}),
        "other_black": ([np.zeros((96, 128, 3), np.uint8)] * 24, {}),
    }
    for name, (frames, options) in made.items():
        write(folder / f"{name}.mp4", frames, **{"fps": 24, "crf": 20} | options)
    return folder


def scanned(videos, out, *options):
    return main(["scan", str(videos), "-o", str(out), "--workers", "1", *map(str, options)])


def left_out(out):
    return {Path(e.path).stem for e in read_manifest(out) if e.status == "left out"}


SHOWING = {
    *("small", "square", "dark", "mirrored", "reversed", "slow", "cropped", "letterboxed"),
    "excerpt",
}


@pytest.mark.parametrize("depth", [[], ["--deep"]])
def test_videos_that_show_the_footage_are_left_out_and_listed(
    benchmark, videos, tmp_path, capsys, depth
):
    out = tmp_path / "all.parquet"
    assert scanned(videos, out, "--json", *depth, "--without-footage", benchmark) == 0
    assert left_out(out) == SHOWING
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert (result["ok"], result["left_out"], result["rows"]) == (2, 9, 11)
    footage = result["footage"]
    assert (footage["pieces"], footage["frames"], footage["videos_compared"]) == (2, 48, 10)
    assert list(footage["not_compared"]) == [str(videos / "other_black.mp4")]
    assert footage["list"] == str(tmp_path / "all.left_out.csv")
    by_name = {Path(row["path"]).stem: row for row in footage["shared"]}
    assert by_name.keys() == SHOWING
    for name, row in by_name.items():
        assert row["name"] == ("second" if name == "excerpt" else "first")
        assert row["distance"] < SAME_DISTANCE
        assert row["is_mirrored"] == (name == "mirrored")
        assert f"left out: {row['path']} shows {row['name']}: " in captured.err
    excerpt = by_name["excerpt"]
    assert (excerpt["begin_seconds"], excerpt["end_seconds"]) == (2.0, 2.75)
    assert (excerpt["num_matching"], excerpt["num_frames"]) == (4, 20)
    with (tmp_path / "all.left_out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [row["path"] for row in footage["shared"]]
    assert float(rows[0]["distance"]) == pytest.approx(footage["shared"][0]["distance"], abs=1e-4)


def test_the_match_is_at_the_right_frames(benchmark, videos, tmp_path):
    """Frame k of the reversed video is frame 23 - k of the footage."""
    pieces = find_footage([benchmark])
    frames = FootageFrames([(piece, read_piece(piece)) for piece in pieces])
    path = videos / "reversed.mp4"
    (shared,) = frames.shared_with(str(path), read_piece(Footage(str(path), 0, 0)))
    assert int(shared.footage_frame.removesuffix(".jpg")) == 23 - round(shared.seconds * 24)


def test_no_clip_of_a_video_left_out_is_ever_drawn(benchmark, videos, tmp_path):
    out = tmp_path / "all.parquet"
    assert scanned(videos, out, "--without-footage", benchmark) == 0
    spec = ClipSpec(num_clips=1, num_frames=2, seconds_between_frames=0.1, crop_size=32)
    dataset = ClipDataset(read_manifest(out), [spec], seed=0, short_side=48)
    used = {Path(read_manifest(out)[int(row)].path).stem for row in dataset.rows}
    assert used == {"other", "other_black"}
    assert dataset.left_out.startswith("9 broken or left out, ")


def test_the_same_command_again_decodes_nothing(benchmark, videos, tmp_path, monkeypatch):
    out = tmp_path / "all.parquet"
    arguments = (videos, out, "--deep", "--without-footage", benchmark)
    assert scanned(*arguments) == 0
    before = [*read_manifest(out)], (tmp_path / "all.left_out.csv").read_bytes()

    def refuse(*args, **options):
        raise AssertionError("read again")

    monkeypatch.setattr(sequence_overlap, "read_piece", refuse)
    monkeypatch.setattr(scanning, "scan_video", refuse)
    assert scanned(*arguments) == 0
    assert ([*read_manifest(out)], (tmp_path / "all.left_out.csv").read_bytes()) == before


def test_more_footage_is_compared_with_what_is_known(benchmark, videos, tmp_path, monkeypatch):
    out = tmp_path / "all.parquet"
    frames = benchmark / "JPEGImages" / "480p"
    assert scanned(videos, out, "--without-footage", frames / "second") == 0
    assert left_out(out) == {"excerpt"}
    read = []

    def note(pieces, num_workers):
        read.extend(piece.path for piece in pieces)
        return ((piece, read_piece(piece)) for piece in pieces)

    monkeypatch.setattr(sequence_overlap, "_read_all", note)
    paths = (frames / "second", frames / "first")
    assert scanned(videos, out, "--without-footage", *paths) == 0
    assert left_out(out) == SHOWING
    assert read == [str(frames / "first")]


def test_an_interrupted_comparison_goes_on_where_it_was(
    benchmark, videos, tmp_path, monkeypatch, caplog
):
    pieces = find_footage([benchmark]) + find_footage([videos])
    known = SignatureFile(tmp_path / "all.parquet")
    read_all = sequence_overlap._read_all

    def interrupted(todo, num_workers):
        for number, one in enumerate(read_all(todo, num_workers)):
            if number == 5:
                raise KeyboardInterrupt
            yield one

    monkeypatch.setattr(sequence_overlap, "_read_all", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read_signatures(pieces, known, num_workers=1, description="reading")
    known.close()
    known = SignatureFile(tmp_path / "all.parquet")
    assert sum(piece.key in known for piece in pieces) == 5
    remaining = []

    def note(todo, num_workers):
        remaining.extend(todo)
        return read_all(todo, num_workers)

    monkeypatch.setattr(sequence_overlap, "_read_all", note)
    assert read_signatures(pieces, known, num_workers=1, description="reading") == {}
    assert len(remaining) == len(pieces) - 5


def test_a_scan_without_the_option_brings_them_back_and_says_so(
    benchmark, videos, tmp_path, caplog
):
    out = tmp_path / "all.parquet"
    assert scanned(videos, out) == 0
    before = [*read_manifest(out)]
    assert scanned(videos, out, "--without-footage", benchmark) == 0
    assert left_out(out) == SHOWING
    with caplog.at_level(logging.WARNING, "videossl"):
        assert scanned(videos, out) == 0
    assert [*read_manifest(out)] == before
    assert "9 videos that the earlier scan left out are in again" in caplog.text
    assert not (tmp_path / "all.left_out.csv").exists()
    assert scanned(videos, out, "--without-footage", benchmark) == 0
    assert (tmp_path / "all.left_out.csv").exists()
    assert scanned(videos, out, "--fresh") == 0
    assert not (tmp_path / "all.left_out.csv").exists()


def test_footage_that_cannot_be_read_is_named(benchmark, videos, tmp_path, capsys):
    bad = tmp_path / "bad"
    write_frames(bad / "torn", [grey(0), grey(1)])
    (bad / "torn" / "00001.jpg").write_bytes(b"\xff\xd8 no picture")
    write_frames(bad / "black", [np.zeros((54, 96), np.uint8)] * 3)
    out = tmp_path / "all.parquet"
    assert scanned(videos, out, "--without-footage", bad) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "there is no footage to compare videos with: " in error
    assert scanned(videos, out, "--without-footage", bad, benchmark, "--json") == 0
    captured = capsys.readouterr()
    assert "NOT COMPARED, 2 of the footage: " in captured.err
    reasons = json.loads(captured.out)["footage"]["not_compared"]
    assert "00001.jpg: cannot identify image" in reasons[str(bad / "torn")]
    assert "uniform" in reasons[str(bad / "black")]


def test_when_all_are_left_out_the_exit_code_is_1(benchmark, videos, tmp_path, caplog):
    out = tmp_path / "all.parquet"
    assert scanned(videos / "small.mp4", out, "--without-footage", benchmark) == 1
    assert "not one of the 1 videos is left" in caplog.text


def test_videos_are_footage_too_and_are_found_turned_upright(numbered_video, tmp_path):
    """A phone's file with a rotation flag against the same scene stored upright."""
    upright, turned = numbered_video("h264"), numbered_video("h264_rotated_90")
    piece = Footage(str(upright), 0, 0, "upright", with_crops=True)
    frames = FootageFrames([(piece, read_piece(piece))])
    (shared,) = frames.shared_with("turned", read_piece(Footage(str(turned), 0, 0)))
    assert (shared.num_matching, shared.num_frames) == (10, 10)
    assert shared.distance < 0.05


# --- real footage ---

SEQUENCES = ("dance-twirl", "motocross-jump", "libby")


@pytest.fixture(scope="module")
def real_frames(shared_data):
    """The middle second of some sequences, at 398x224."""
    frames = {}
    for name in SEQUENCES:
        paths = sorted((shared_data / "davis" / "JPEGImages" / "480p" / name).glob("*.jpg"))
        middle = len(paths) // 2
        frames[name] = [
            np.asarray(Image.open(path).convert("RGB").resize((398, 224)))
            for path in paths[middle - 12 : middle + 12]
        ]
    return frames


REAL = {  # how, and the options of the encoder
    "excerpt": (lambda frames: frames, {"crf": 27}),
    "small": (lambda frames: frames, {"size": (198, 112), "crf": 36}),
    "bright": (lambda frames: [(f * 0.75 + 60).astype(np.uint8) for f in frames], {"crf": 27}),
    "mirrored_reversed": (lambda frames: [f[:, ::-1] for f in frames[::-1]], {"crf": 27}),
    "slower": (lambda frames: frames[::3], {"fps": 8, "crf": 27}),
    "squeezed": (lambda frames: frames, {"size": (224, 224), "crf": 27}),
    "square": (lambda frames: [f[:, 87:311] for f in frames], {"crf": 27}),
    "crop_85": (lambda frames: list(crop(frames, 0.85)), {"size": (336, 190), "crf": 27}),
    "letterboxed": (lambda frames: [np.pad(f, ((36, 36), (0, 0), (0, 0))) for f in frames], {}),
}


def test_real_footage_is_found_and_nothing_else_is(shared_data, real_frames, tmp_path, capsys):
    shown = tmp_path / "shown"
    for name, frames in real_frames.items():
        for how, (change, options) in REAL.items():
            (shown / how).mkdir(parents=True, exist_ok=True)
            write(shown / how / f"{name}.mp4", change(frames), **{"fps": 24} | options)
    others = sorted((shared_data / "videos" / "unlabelled").glob("*.mp4"))[::6]
    sources = [str(shown), *map(str, others)]
    out = tmp_path / "all.parquet"
    frames = [str(shared_data / "davis"), str(shared_data / "davis/multi_object_samples/bear")]
    command = ["scan", *sources, "-o", str(out), "--workers", "2", "--json"]
    assert main([*command, "--without-footage", *frames]) == 0
    shared = json.loads(capsys.readouterr().out)["footage"]["shared"]
    found = {(Path(row["path"]).parent.name, Path(row["path"]).stem): row["name"] for row in shared}
    assert found == {(how, name): name for how in REAL for name in SEQUENCES}
    assert max(row["distance"] for row in shared) < SAME_DISTANCE / 2


def test_a_training_sequence_of_davis_among_real_videos_is_found(shared_data, tmp_path):
    """Two frames of `bear` are all that is here of it, and a copy of it is among the videos."""
    path = shared_data / "videos" / "unlabelled" / "co-tracker__bear.mp4"
    other = shared_data / "videos" / "unlabelled" / "co-tracker__paragliding.mp4"
    frames = shared_data / "davis" / "multi_object_samples" / "bear"
    out = tmp_path / "m.parquet"
    command = ["scan", str(path), str(other), "-o", str(out), "--without-footage", str(frames)]
    assert main(command) == 0
    assert left_out(out) == {"co-tracker__bear"}
    (reason,) = [e.reason for e in read_manifest(out) if not e.is_ok]
    assert reason.startswith(
        "shows bear: 2 of 11 frames looked at, nearest its frame at 0.00 s to 0000"
    )
