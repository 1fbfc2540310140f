"""Sound files that are not one packet, one frame: what FFmpeg shows in order, by every backend that accepts them."""

import itertools
import random
from fractions import Fraction
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from backend import backend_or_skip
from numbered_video import read_numbers
from odd_streams import (
    CLOSED,
    FPS,
    JOINED,
    MPEG2,
    STREAMS,
    decoded_in_order,
    encode,
    joined,
    set_matrix,
)

from videossl.__main__ import main
from videossl.catalog.inspect import inspect_video
from videossl.config import SamplingRules
from videossl.data.entry import sound_entry
from videossl.data.manifest import read_manifest
from videossl.data.sampling import usable_shots
from videossl.decode.backends import READERS, open_video
from videossl.decode.index import VideoIndex, read_index
from videossl.decode.source import VideoSource
from videossl.errors import VideoDecodeError

CASES = Path(__file__).parents[2] / "shared" / "cases" / "files"
# What torchcodec, told the frames of the index, must read; the rest it refuses with the reason.
TORCHCODEC_READS = {
    *(name for name in STREAMS if name.startswith(("trimmed", "h264_cut", "hevc_cut"))),
    "begins_amid_mp4",
    "begins_amid_mkv",
    "intra_refresh",
    "time_of_day",
}


@pytest.fixture(scope="session")
def odd_stream(tmp_path_factory):
    """Called with the name of a file of STREAMS, returns its path and the numbers that it shows; each is written once."""
    written = {}

    def get(name):
        if name not in written:
            written[name] = STREAMS[name](tmp_path_factory.mktemp(name))
        return written[name]

    return get


def as_scanned(path) -> VideoIndex:
    """The index as a row of the manifest gives it back."""
    return sound_entry(read_index(path), VideoSource(str(path)), group="g").index()


def numbers_at(reader, indices) -> list[int]:
    return read_numbers(reader.frames_at(indices).data)


@pytest.mark.parametrize("name", STREAMS)
def test_a_file_shows_what_decoding_in_order_gives(odd_stream, name):
    path, expected = odd_stream(name)
    pictures = torch.from_numpy(decoded_in_order(path)).permute(0, 3, 1, 2)
    assert read_numbers(pictures) == expected, "the reference itself"
    index = read_index(path)
    assert index.info.num_frames == len(expected)
    assert (np.diff(index.pts) >= 0).all()


def must_read(backend: str, name: str) -> bool:
    """torchcodec 0.12 is sent to other frames than those asked for in files trimmed amid a group: they are refused."""
    if backend == "torchcodec" and name in TORCHCODEC_READS:
        return tuple(map(int, metadata.version("torchcodec").split(".")[:2])) >= (0, 17)
    return backend == "pyav"


@pytest.mark.parametrize("backend", list(READERS))
@pytest.mark.parametrize("name", STREAMS)
def test_frames_are_right_in_any_order_or_refused(odd_stream, name, backend):
    backend_or_skip(backend)
    path, expected = odd_stream(name)
    draw = random.Random(name)
    for index in (None, as_scanned(path)):
        try:
            with open_video(path, backend=backend, index=index) as reader:
                everything = range(len(expected))
                assert numbers_at(reader, list(everything)) == expected
                for at in draw.sample(everything, 12):
                    assert numbers_at(reader, [at]) == [expected[at]]
                for _ in range(12):
                    clip = list(everything)[draw.choice(everything) :: draw.choice([1, 2, 5])][:8]
                    assert numbers_at(reader, clip) == [expected[at] for at in clip]
        except VideoDecodeError:
            assert not must_read(backend, name)
            return


@pytest.mark.parametrize("backend", list(READERS))
@pytest.mark.parametrize("path", sorted(CASES.glob("*")), ids=lambda path: path.name)
def test_shared_cases_give_the_pictures_of_decoding_in_order(path, backend):
    backend_or_skip(backend)
    expected = decoded_in_order(path)
    try:
        reader = open_video(path, backend=backend, index=as_scanned(path))
    except VideoDecodeError:
        assert backend != "pyav"
        return
    with reader:
        assert reader.num_frames == len(expected)
        for at in random.Random(1).sample(range(len(expected)), 12):
            (picture,) = reader.frames_at([at]).data.permute(0, 2, 3, 1).numpy()
            assert np.abs(picture.astype(int) - expected[at]).mean() < 2


def test_the_shared_cases_are_there():
    if not CASES.is_dir():
        pytest.skip(
            "the shared cases lie beside the repository, in ../shared/cases, and are not here"
        )
    assert any(CASES.iterdir())


@pytest.fixture(scope="module")
def scanned(odd_stream, tmp_path_factory):
    """The rows of a shallow and of a deep scan of all files, by the names of their folders."""
    folder = tmp_path_factory.mktemp("scans")
    paths = {str(odd_stream(name)[0]): name for name in STREAMS}
    rows = {}
    for kind, options in {"plain": [], "deep": ["--deep"]}.items():
        out = folder / f"{kind}.parquet"
        assert main(["scan", *paths, "-o", str(out), "--workers", "2", *options]) == 0
        rows[kind] = {paths[entry.path]: entry for entry in read_manifest(out)}
    return folder, rows


@pytest.mark.parametrize("name", STREAMS)
def test_both_scans_find_it_sound(scanned, odd_stream, name):
    _, expected = odd_stream(name)
    for rows in scanned[1].values():
        assert (rows[name].status, rows[name].reason) == ("ok", "")
        assert rows[name].num_frames == len(expected)


@pytest.mark.parametrize("name", JOINED)
def test_joined_recordings_follow_each_other_with_a_cut_between(scanned, name):
    for rows in scanned[1].values():
        entry = rows[name]
        assert entry.fps == pytest.approx(FPS, rel=0.02)
        assert entry.duration_seconds == pytest.approx(4.0, abs=0.1)
        at = entry.index().pts_seconds[50]
        assert at in entry.cuts
        shots = usable_shots_of(entry)
        assert all(end < at or begin >= at for begin, end in shots)


@pytest.mark.parametrize(
    ("begin", "delay"), [(0.0, 2.0), (0.0, 5.0), (95_440.0, 0.2)], ids=["on", "pause", "wrap"]
)
@pytest.mark.parametrize(
    ("codec", "options"),
    [("libx264", {**CLOSED, "x264-params": "repeat-headers=1"}), ("mpeg2video", MPEG2)],
    ids=["h264", "mpeg2"],
)
def test_joined_recordings_are_sound_where_the_clock_does_not_tell(
    tmp_path, codec, options, begin, delay
):
    """Their counters of packets start anew: FFmpeg calls the packets corrupt, and each of them decodes."""
    path, expected = joined(tmp_path, codec, options, ".ts", delay, begin=begin)
    found = inspect_video(path)
    assert (found.num_frames, found.decode_errors) == (len(expected), 0)


def test_a_broadcast_stream_that_lost_packets_is_damaged(tmp_path):
    path = encode(tmp_path / "whole.ts", range(100), options=CLOSED)
    data = path.read_bytes()
    packets = [data[at : at + 188] for at in range(0, len(data), 188)]
    kept = [packet for at, packet in enumerate(packets) if at % 40 not in (20, 21)]
    assert len(kept) < len(packets)
    path.write_bytes(b"".join(kept))
    assert inspect_video(path).damage


def usable_shots_of(entry):
    from videossl.data.dataset import video_times

    return usable_shots(video_times(entry, entry.index()), SamplingRules())


def test_a_far_clock_changes_no_distance(scanned):
    entry = scanned[1]["plain"]["time_of_day"]
    assert entry.fps == FPS
    assert entry.is_constant_rate
    assert entry.begin_seconds == pytest.approx(1_764_500_000, abs=1e-3)


def test_a_clock_that_is_no_time_begins_at_zero(scanned):
    entry = scanned[1]["plain"]["no_time_at_all"]
    assert (entry.begin_seconds, entry.fps) == (0, FPS)


@pytest.mark.parametrize("kind", ["plain", "deep"])
def test_packed_files_show_the_same_numbers(scanned, odd_stream, tmp_path, kind):
    folder, rows = scanned
    out = tmp_path / "packed"
    manifest = folder / f"{kind}.parquet"
    assert main(["pack", str(manifest), "-o", str(out), "--workers", "2", "--min-shot", "0"]) == 0
    assert (out / "skipped.jsonl").read_text() == ""
    packed = {name: [] for name in STREAMS}
    by_group = {rows[kind][name].group: name for name in STREAMS} if kind == "plain" else None
    for entry in read_manifest(out / "manifest.parquet"):
        with open_video(entry.source, index=entry.index()) as reader:
            numbers = numbers_at(reader, list(range(reader.num_frames)))
        if by_group:
            packed[by_group[entry.group]] += numbers
    if by_group:
        for name in STREAMS:
            # A clock that is not regular repeats frames at a constant rate.
            numbers = [number for number, _ in itertools.groupby(packed[name])]
            assert numbers == odd_stream(name)[1], name


# Of the picture as stored: (a, b, c, d) of the matrix, and what a player shows.
ORIENTATIONS = {
    "plain": ((1, 0, 0, 1), lambda x: x),
    "flipped": ((-1, 0, 0, 1), np.fliplr),
    "upside_down": ((1, 0, 0, -1), np.flipud),
    "half_turn": ((-1, 0, 0, -1), lambda x: np.rot90(x, 2)),
    "transposed": ((0, 1, 1, 0), lambda x: x.transpose(1, 0, 2)),
    "clockwise": ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),
    "counterclockwise": ((0, -1, 1, 0), lambda x: np.rot90(x)),
    "transverse": ((0, -1, -1, 0), lambda x: np.rot90(x, 2).transpose(1, 0, 2)),
}


@pytest.fixture(scope="module", params=list(ORIENTATIONS))
def oriented(request, tmp_path_factory):
    """A file of one of the eight orientations, and its pictures as a player shows them."""
    matrix, shown = ORIENTATIONS[request.param]
    path = encode(tmp_path_factory.mktemp("oriented") / "a.mp4", range(30), options=CLOSED)
    pictures = decoded_in_order(path)
    set_matrix(path, *matrix)
    return path, np.stack([shown(picture) for picture in pictures])


@pytest.mark.parametrize("backend", list(READERS))
@pytest.mark.parametrize("short_side", [None, 48])
def test_all_eight_orientations_are_shown_upright_or_refused(oriented, backend, short_side):
    backend_or_skip(backend)
    path, pictures = oriented
    try:
        reader = open_video(path, backend=backend, short_side=short_side, index=as_scanned(path))
    except VideoDecodeError:
        assert backend != "pyav"
        return
    with reader:
        got = reader.frames_at([0, 17, 29]).data.permute(0, 2, 3, 1).numpy()
    expected = pictures[[0, 17, 29]].astype(int)
    if short_side:  # by half
        n, height, width, _ = expected.shape
        expected = expected.reshape(n, height // 2, 2, width // 2, 2, 3).mean(axis=(2, 4))
    assert got.shape == expected.shape
    assert np.abs(got - expected).mean() < 5


def test_packed_and_inspected_pictures_are_upright(oriented, tmp_path):
    path, pictures = oriented
    manifest, out = tmp_path / "m.parquet", tmp_path / "packed"
    assert main(["scan", str(path), "-o", str(manifest), "--workers", "1", "--deep"]) == 0
    assert main(["pack", str(manifest), "-o", str(out), "--workers", "1", "--min-shot", "0"]) == 0
    (entry,) = read_manifest(out / "manifest.parquet")
    with open_video(entry.source, index=entry.index()) as reader:
        got = reader.frames_at([0, 17, 29]).data.permute(0, 2, 3, 1).numpy()
    assert got.shape == pictures[:3].shape
    assert np.abs(got.astype(int) - pictures[[0, 17, 29]]).mean() < 6


def test_a_shape_that_was_rounded_to_even_sizes_is_left_alone(tmp_path):
    """224 of 398 is 9:16 but for a pixel, and scaling tools note the difference."""
    path = encode(tmp_path / "a.mp4", range(4), options=CLOSED, pixel_aspect=Fraction(448, 447))
    info = read_index(path).info
    assert info.has_square_pixels
    assert (info.width, info.height) == (128, 96)


@pytest.mark.parametrize("pixel_aspect", [Fraction(4, 3), Fraction(8, 9), Fraction(16, 11)])
@pytest.mark.parametrize("backend", list(READERS))
def test_pixels_that_are_not_square_are_shown_as_wide_as_they_are(tmp_path, backend, pixel_aspect):
    backend_or_skip(backend)
    path = encode(tmp_path / "a.mp4", range(30), options=CLOSED, pixel_aspect=pixel_aspect)
    index = as_scanned(path)
    width = round(128 * pixel_aspect)
    assert (index.info.width, index.info.height) == (width, 96)
    assert (index.info.stored_width, index.info.stored_height) == (128, 96)
    with open_video(path, backend=backend, index=index) as reader:
        assert (reader.width, reader.height) == (width, 96)
        frames = reader.frames_at([3, 22]).data
    assert frames.shape == (2, 3, 96, width)
    assert read_numbers(frames) == [3, 22]
    out = tmp_path / "packed"
    assert main(["scan", str(path), "-o", str(tmp_path / "m.parquet"), "--workers", "1"]) == 0
    assert main(["pack", str(tmp_path / "m.parquet"), "-o", str(out), "--workers", "1"]) == 0
    (entry,) = read_manifest(out / "manifest.parquet")
    assert entry.width / entry.height == pytest.approx(width / 96, rel=0.02)
    assert (entry.stored_width, entry.stored_height) == (entry.width, entry.height)
