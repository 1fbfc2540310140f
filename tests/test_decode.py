import os
import random
import subprocess
import sys
from fractions import Fraction

import av
import fsspec
import numpy as np
import pytest
import torch
from av.stream import Disposition
from backend import backend_or_skip
from numbered_video import VARIANTS, Variant, read_numbers, stored_picture, write_numbered_video
from odd_streams import decoded_in_order, encode

from videossl.catalog.cuts_and_bars import full_luma_of, luma_of
from videossl.data.entry import sound_entry
from videossl.decode import torchcodec_reader
from videossl.decode.backends import READERS, available_backends, open_video, resolve_backend
from videossl.decode.container import filter_graph
from videossl.decode.index import (
    frame_ticks,
    is_constant_rate,
    motion_of,
    probe,
    read_index,
    tick_deltas,
)
from videossl.decode.pyav_reader import PyavReader
from videossl.decode.reader import FrameBatch, gather_frames, indices_shown_at, resized_shape
from videossl.decode.source import VideoSource
from videossl.errors import UserError, VideoDecodeError

# What a backend refuses rather than get wrong. Everything else must be read right.
REFUSALS = {
    "torchcodec": {
        **dict.fromkeys(("h264_ts", "h264_avi", "mpeg4_avi", "mpeg2_ps", "wmv"), "not exact"),
    },
    "pyav": {},
    "decord": {
        **dict.fromkeys(
            ("h264_ts", "h264_avi", "mpeg4_avi", "mpeg2_ps", "wmv", "gif"), "mixes up frames"
        ),
        **dict.fromkeys(("h264_odd_size", "h264_422", "h264_10_bit", "hevc_10_bit"), "colours"),
        "vp9_odd_size": "odd sizes",
        "mpeg4_padded_rows": "size must exactly match",
        "av1": "cannot find video stream",
    },
}


@pytest.fixture(params=list(READERS))
def backend(request):
    backend_or_skip(request.param)
    return request.param


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_every_frame_shows_its_number(numbered_video, backend, variant):
    path = str(numbered_video(variant))
    if variant in REFUSALS[backend]:
        with pytest.raises(VideoDecodeError, match=REFUSALS[backend][variant]):
            READERS[backend](path)
        return
    expected = VARIANTS[variant]
    order = random.Random(variant).sample(range(expected.num_frames), expected.num_frames)
    with READERS[backend](path) as reader:
        assert reader.num_frames == expected.num_frames
        assert (reader.height, reader.width) == (expected.height, expected.width)
        batch = reader.frames_at(order)
        assert read_numbers(batch.data) == order
        # A container may start its clock late; the distances are those that were written.
        seconds = reader.pts_seconds.numpy() - float(reader.pts_seconds[0])
        np.testing.assert_allclose(seconds, expected.seconds, atol=1e-3)
        assert torch.equal(batch.pts_seconds, reader.pts_seconds[order])


@pytest.mark.parametrize("variant", ["h264_open_gop", "hevc", "mpeg4_b_frames", "vp9", "h264_mkv"])
def test_single_frames_in_random_order_show_their_number(numbered_video, backend, variant):
    order = random.Random(1).sample(range(VARIANTS[variant].num_frames), 12)
    with READERS[backend](str(numbered_video(variant))) as reader:
        assert [read_numbers(reader.frames_at([index]).data)[0] for index in order] == order


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("other", ["torchcodec", "decord"])
@pytest.mark.parametrize("short_side", [None, 64])
def test_backends_agree_on_pixels(numbered_video, other, variant, short_side):
    backend_or_skip(other)
    if variant in REFUSALS[other]:
        pytest.skip("refused, see test_every_frame_shows_its_number")
    path = str(numbered_video(variant))
    indices = [0, VARIANTS[variant].num_frames // 2, VARIANTS[variant].num_frames - 1]
    with READERS["pyav"](path, short_side=short_side) as reference:
        expected = reference.frames_at(indices)
    with READERS[other](path, short_side=short_side) as reader:
        got = reader.frames_at(indices)
    difference = (got.data.int() - expected.data.int()).abs()
    assert torch.equal(got.pts_seconds, expected.pts_seconds)
    if short_side:  # torchcodec converts the colours before it scales, the others after
        assert difference.float().mean() < (3 if other == "decord" else 1.5)
        assert difference.max() <= 48
    else:
        assert difference.max() <= 2


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_frames_passed_over_change_no_other(numbered_video, variant):
    """Against decoding every frame: frames that no other refers to, and ends of groups of pictures, are not decoded."""
    path = str(numbered_video(variant))
    count = VARIANTS[variant].num_frames
    with READERS["pyav"](path) as reader:
        everything = reader.frames_at(range(count)).data
    rng = random.Random(variant)
    for size in (1, 2, 3, 9, 20):
        wanted = sorted(rng.sample(range(count), min(size, count)))
        with READERS["pyav"](path, index=read_index(path)) as reader:
            assert torch.equal(reader.frames_at(wanted).data, everything[wanted])
            again = wanted[::-2]  # a second request starts where the first left the decoder
            assert torch.equal(reader.frames_at(again).data, everything[again])


def test_a_file_changed_since_the_scan_fails(numbered_video, tmp_path, backend):
    path = tmp_path / "video.mp4"
    path.write_bytes(numbered_video("h264").read_bytes())
    index = read_index(path)
    path.write_bytes(numbered_video("h264_b_frames").read_bytes())
    with pytest.raises(VideoDecodeError, match=r"changed since the scan, from \d+ to \d+ bytes"):
        READERS[backend](path, index=index)


def test_a_member_of_a_larger_file_reads_like_a_file(numbered_video, tmp_path, backend):
    video = numbered_video("h264").read_bytes()
    shard = tmp_path / "shard.tar"
    shard.write_bytes(b"x" * 700 + video + b"y" * 900)
    source = VideoSource(str(shard), 700, len(video))
    with READERS[backend](source) as reader:
        assert read_numbers(reader.frames_at([31, 2]).data) == [31, 2]
    with pytest.raises(VideoDecodeError, match=r"shard.tar\[1500:\d+\]: .*truncated"):
        READERS[backend](VideoSource(str(shard), 1500, len(video)))


def test_a_url_reads_like_a_file(numbered_video, backend):
    fsspec.filesystem("memory").pipe("/folder/video.mp4", numbered_video("h264").read_bytes())
    with READERS[backend]("memory://folder/video.mp4") as reader:
        assert read_numbers(reader.frames_at([40, 5]).data) == [40, 5]
    with pytest.raises(VideoDecodeError, match=r"memory://folder/none.mp4: .*no such file"):
        READERS[backend]("memory://folder/none.mp4")


@pytest.mark.parametrize("variant", ["h264", "h264_b_frames", "h264_mkv", "h264_variable_rate"])
def test_a_scanned_file_of_any_rate_gives_no_wrong_frame(numbered_video, backend, variant):
    """200 times at random on one reader with the index of a scan: what torchcodec's approximate mode alone gets wrong."""
    path = str(numbered_video(variant))
    index = read_index(path)
    seconds, end = index.pts_seconds, index.info.end_seconds
    rng = random.Random(7)
    with READERS[backend](path, index=index) as reader:
        for _ in range(50):
            times = [rng.uniform(seconds[0], end - 1e-3) for _ in range(4)]
            expected = [max(i for i, t in enumerate(seconds) if t <= time) for time in times]
            assert read_numbers(reader.frames_shown_at(times).data) == expected


def test_repeats_and_any_order_are_gathered(numbered_video, backend):
    with READERS[backend](str(numbered_video("h264_b_frames"))) as reader:
        batch = reader.frames_at([7, 3, 7, 59, 0, 3])
    assert read_numbers(batch.data) == [7, 3, 7, 59, 0, 3]


def test_no_frames_asked_gives_an_empty_batch(numbered_video, backend):
    with READERS[backend](str(numbered_video("h264")), short_side=48) as reader:
        assert reader.frames_at([]).data.shape == (0, 3, 48, 64)


def test_frames_shown_at_a_time_of_a_variable_rate_file(numbered_video, backend):
    expected = VARIANTS["h264_variable_rate"]
    times = np.append(expected.seconds, expected.seconds[-1] + 1 / expected.fps)
    asked = np.random.default_rng(0).uniform(times[0], times[-1] - 1e-3, size=80)
    slow = [max(i for i, pts in enumerate(expected.seconds) if pts <= t) for t in asked]
    with READERS[backend](str(numbered_video("h264_variable_rate"))) as reader:
        assert read_numbers(reader.frames_shown_at(asked.tolist()).data) == slow


def test_a_frame_is_shown_at_exactly_its_own_time(numbered_video, backend):
    expected = VARIANTS["h264"]
    with READERS[backend](str(numbered_video("h264"))) as reader:
        batch = reader.frames_shown_at([number / expected.fps for number in range(60)])
    assert read_numbers(batch.data) == list(range(60))


@pytest.mark.parametrize("seconds", [-0.1, 2.4, 99.0, float("nan")])
def test_time_outside_the_file_fails(numbered_video, backend, seconds):
    with (
        READERS[backend](str(numbered_video("h264"))) as reader,
        pytest.raises(UserError, match=r"shows frames in \[0, 2\.4\) s"),
    ):
        reader.frames_shown_at([0.5, seconds])


@pytest.mark.parametrize("index", [-1, 60])
def test_index_outside_the_file_fails(numbered_video, backend, index):
    with (
        READERS[backend](str(numbered_video("h264"))) as reader,
        pytest.raises(UserError, match=f"no frame {index}: the file has frames 0 to 59"),
    ):
        reader.frames_at([index])


@pytest.mark.parametrize(
    ("height", "width", "short_side", "expected"),
    [
        (96, 128, 48, (48, 64)),
        (128, 96, 48, (64, 48)),
        (480, 854, 112, (112, 199)),  # 199.27
        (100, 125, 50, (50, 63)),  # 62.5 goes up
        (96, 128, 96, (96, 128)),
        (96, 128, 500, (96, 128)),  # never enlarged
        (96, 128, None, (96, 128)),
        (1000, 1, 1, (1000, 1)),
    ],
)
def test_short_side_sets_the_size(height, width, short_side, expected):
    assert resized_shape(height, width, short_side) == expected


def test_short_side_below_one_fails():
    with pytest.raises(UserError, match="short_side must be at least 1 pixel, got 0"):
        resized_shape(96, 128, 0)


@pytest.mark.parametrize("variant", ["h264", "h264_rotated_90", "h264_rotated_180"])
def test_frames_come_at_the_short_side_asked_for(numbered_video, backend, variant):
    with READERS[backend](str(numbered_video(variant)), short_side=48) as reader:
        batch = reader.frames_at([37, 5])
    assert (reader.height, reader.width) == batch.data.shape[2:] == (48, 64)
    assert read_numbers(batch.data) == [37, 5]


def test_full_and_limited_range_give_the_same_colours(numbered_video, backend):
    pictures = []
    for variant in ("h264", "h264_full_range"):
        with READERS[backend](str(numbered_video(variant))) as reader:
            pictures.append(reader.frames_at([0]).data.float().mean(dim=(0, 2, 3)))
    torch.testing.assert_close(*pictures, atol=3, rtol=0)


@pytest.mark.parametrize(
    ("variant", "rotation", "constant"),
    [("h264", 0, True), ("h264_rotated_90", 90, True), ("h264_variable_rate", 0, False)],
)
def test_probe_reports_what_was_written(numbered_video, variant, rotation, constant):
    info = probe(numbered_video(variant))
    written = VARIANTS[variant]
    assert (info.container, info.codec, info.pixel_format) == ("mov", "h264", "yuv420p")
    assert (info.width, info.height, info.rotation) == (128, 96, rotation)
    assert (info.num_frames, info.is_constant_rate) == (60, constant)
    assert info.fps == pytest.approx(59 / (written.seconds[-1] - written.seconds[0]))
    assert info.duration_seconds == pytest.approx(written.seconds[-1] + 1 / written.fps)
    assert len(info.motion) == 32


def test_probe_of_one_frame_has_a_rate(numbered_video):
    info = probe(numbered_video("h264_one_frame"))
    assert (info.num_frames, info.fps, info.is_constant_rate) == (1, 25.0, True)


def test_motion_is_the_mean_size_of_each_bin():
    seconds = np.array([0.0, 0.1, 16.0, 31.9])
    motion = motion_of(seconds, np.array([1.0, 3.0, 5.0, 7.0]), begin=0.0, end=32.0)
    expected = [0.0] * 32
    expected[0], expected[16], expected[31] = 2.0, 5.0, 7.0
    assert motion == pytest.approx(expected)


@pytest.mark.parametrize(
    ("times", "tick", "expected"),
    [
        ([0.0], 0.04, True),
        ([0.033, 0.067, 0.100, 0.133], 0.001, True),  # 30 fps in milliseconds
        ([0.0, 0.04, 0.12, 0.16], 0.04, False),
        ([0.0, 0.033, 0.05, 0.1], 0.001, False),
    ],
)
def test_constant_rate_allows_for_the_clock_only(times, tick, expected):
    assert is_constant_rate(np.array(times), tick) is expected


def test_indices_shown_at_matches_a_slow_search():
    pts = torch.tensor([1.0, 1.5, 1.6, 3.0], dtype=torch.float64)
    asked = [1.0, 1.49, 1.5, 1.55, 1.6, 2.9, 3.0, 3.4]
    slow = [max(i for i in range(4) if pts[i] <= t) for t in asked]
    assert indices_shown_at(pts, asked, 3.5).tolist() == slow


def test_gather_decodes_each_frame_once_in_ascending_order():
    calls = []

    def decode(indices):
        calls.append(indices)
        return torch.tensor(indices, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 1, 1)

    batch = gather_frames(decode, [4, 1, 4, 2], torch.arange(6, dtype=torch.float64))
    assert calls == [[1, 2, 4]]
    assert batch.data[:, 0, 0, 0].tolist() == [4, 1, 4, 2]
    assert batch.pts_seconds.tolist() == [4, 1, 4, 2]


def test_frame_batch_of_wrong_shape_fails():
    with pytest.raises(ValueError, match=r"data must be \(N, 3, H, W\) uint8"):
        FrameBatch(torch.zeros(2, 4, 4, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"pts_seconds must be \(2,\) float64"):
        FrameBatch(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2))


# --- broken files ---


def broken_files(folder, sound):
    """name -> (path, the cause that every backend must name)."""
    content = sound.read_bytes()
    index_at = content.index(b"moov")
    media_at = content.index(b"mdat")
    files = {
        "text": (b"this is not a video\n" * 50, "invalid data"),
        "empty": (b"", "empty"),
        "cut_media": (content[: index_at - 20], "damaged or truncated"),
        "cut_index": (content[: index_at + 20], "no stream at all .damaged or truncated"),
        "garbage": (
            content[: media_at + 4] + bytes(index_at - media_at - 8) + content[index_at - 4 :],
            "invalid data|holds no frame",
        ),
    }
    paths = {}
    for name, (data, cause) in files.items():
        paths[name] = (folder / f"{name}.mp4", cause)
        paths[name][0].write_bytes(data)
    paths["missing"] = (folder / "missing.mp4", "no such file")
    paths["folder"] = (folder, "a directory")
    return paths


@pytest.mark.parametrize(
    "name", ["text", "empty", "cut_media", "cut_index", "garbage", "missing", "folder"]
)
def test_broken_file_fails(tmp_path, numbered_video, backend, name):
    path, cause = broken_files(tmp_path, numbered_video("h264"))[name]
    with pytest.raises(VideoDecodeError, match=cause) as caught:
        READERS[backend](str(path))
    assert caught.value.path == str(path)
    assert caught.value.backend == backend
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_file_cut_after_its_index_fails(tmp_path, numbered_video, backend):

    whole = tmp_path / "whole.mp4"
    with (
        av.open(str(numbered_video("h264"))) as source,
        av.open(str(whole), "w", options={"movflags": "faststart"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    with pytest.raises(VideoDecodeError, match="truncated: its index needs"):
        READERS[backend](str(cut))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_metadata_that_is_not_utf_8_costs_no_video(tmp_path, suffix):
    path, title = tmp_path / f"phone{suffix}", b"Zug nach Z_rich"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = title.decode()
        stream = container.add_stream("mpeg4", rate=25, width=128, height=96, pix_fmt="yuv420p")
        stream.metadata["title"] = title.decode()
        for number in range(6):
            frame = av.VideoFrame.from_ndarray(stored_picture(number, Variant()), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    written = path.read_bytes()
    assert written.count(title) == 2
    path.write_bytes(written.replace(title, title.replace(b"_", b"\xfc")))
    index = read_index(path)
    with READERS["pyav"](path, index=index) as reader:
        assert read_numbers(reader.frames_at([4, 0, 5]).data) == [4, 0, 5]


def test_audio_only_file_fails(tmp_path, backend):

    path = tmp_path / "sound.m4a"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(VideoDecodeError, match=r"no video stream \(it holds audio\)"):
        READERS[backend](str(path))


def test_decode_error_survives_pickling():
    import pickle

    error = pickle.loads(pickle.dumps(VideoDecodeError("a.mp4", "pyav", "it is torn")))
    assert (error.path, error.backend, error.cause) == ("a.mp4", "pyav", "it is torn")
    assert str(error) == "a.mp4: pyav cannot decode it: it is torn"


def test_path_that_looks_like_a_protocol_is_a_file(tmp_path, monkeypatch, backend):
    monkeypatch.chdir(tmp_path)
    write_numbered_video(tmp_path / "part.mp4", Variant(num_frames=5))
    (tmp_path / "part.mp4").rename(tmp_path / "a:b.mp4")
    with READERS[backend]("a:b.mp4") as reader:
        assert read_numbers(reader.frames_at([4]).data) == [4]


# --- the choice of a backend ---


@pytest.fixture
def without_torchcodec(monkeypatch):
    reason = "no FFmpeg in this test"
    monkeypatch.setattr(torchcodec_reader, "load_error", lambda: reason)
    available_backends.cache_clear()
    yield reason
    available_backends.cache_clear()


def test_torchcodec_asked_for_where_it_does_not_load_fails(without_torchcodec, numbered_video):
    with pytest.raises(UserError, match=f"torchcodec backend does not load: {without_torchcodec}"):
        open_video(str(numbered_video("h264")), backend="torchcodec")


def test_machine_without_ffmpeg_reads_with_pyav(numbered_video, tmp_path):
    for library in ("avutil", "avcodec", "avformat", "avfilter", "swscale", "avdevice"):
        for version in range(4, 70):  # empty files that the loader finds before any real library
            (tmp_path / f"lib{library}.so.{version}").touch()
    code = (
        "import sys; from videossl.decode.backends import available_backends, open_video; "
        "print(open_video(sys.argv[1]).backend, '|', available_backends()['torchcodec'])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(numbered_video("h264"))],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.startswith("pyav | torchcodec finds no FFmpeg (install the libraries")


def test_other_missing_library_is_named():
    error = RuntimeError(
        "Could not load libtorchcodec. Likely causes:\n"
        "OSError: libavutil.so.60: cannot open shared object file\n"
        "OSError: libnvrtc.so.13: cannot open shared object file\n"
    )
    assert "libnvrtc.so.13" in torchcodec_reader.short_load_error(error)


def test_auto_is_pyav_on_the_processor(numbered_video):
    assert open_video(str(numbered_video("h264"))).backend == "pyav"


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_auto_reads_every_kind_of_file_right(numbered_video, variant):
    last = VARIANTS[variant].num_frames - 1
    with open_video(str(numbered_video(variant))) as reader:
        assert read_numbers(reader.frames_at([last, 0]).data) == [last, 0]


def test_auto_on_a_broken_file_fails(tmp_path, numbered_video):
    path, cause = broken_files(tmp_path, numbered_video("h264"))["text"]
    with pytest.raises(VideoDecodeError, match=cause):
        open_video(str(path))


def test_unknown_backend_fails():
    with pytest.raises(UserError, match="use one of auto, torchcodec, pyav, decord"):
        resolve_backend("opencv")


def test_cuda_with_a_cpu_backend_fails():
    with pytest.raises(UserError, match="the pyav backend decodes on the cpu only, not on cuda"):
        resolve_backend("pyav", "cuda")


def test_cuda_without_a_device_says_why(monkeypatch):
    backend_or_skip("torchcodec")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="cannot decode on cuda: torch sees no CUDA device"):
        open_video("any.mp4", device="cuda")


def test_cuda_without_torchcodec_says_why(without_torchcodec, monkeypatch):
    monkeypatch.setattr(torchcodec_reader, "cuda_error", lambda device: "")
    with pytest.raises(UserError, match=f"cannot decode on cuda: {without_torchcodec}"):
        open_video("any.mp4", device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("variant", ["h264_b_frames", "hevc", "h264_variable_rate"])
def test_cuda_decodes_the_same_frames(numbered_video, variant):
    backend_or_skip("torchcodec")
    with open_video(str(numbered_video(variant)), device="cuda") as reader:
        batch = reader.frames_at([17, 3, 59])
    assert batch.data.is_cuda
    assert read_numbers(batch.data.cpu()) == [17, 3, 59]


@pytest.mark.parametrize(
    ("ticks", "num_kept"),
    [
        ([0, 512, 1024, 1536], 0),
        ([7], 0),
        ([0, 33, 67, 100, 133], 0),  # 30 frames a second on a clock of milliseconds
        ([-100, 0, 5, 300], 3),
    ],
)
def test_ticks_come_back_from_little(ticks, num_kept):
    deltas = tick_deltas(np.array(ticks))
    assert len(deltas) == num_kept
    assert frame_ticks(ticks[0], ticks[-1], len(ticks), deltas).tolist() == ticks


def test_another_file_of_the_same_size_and_time_is_noticed(tmp_path):
    """The same bytes but for the last ones: neither size nor time tells."""
    path = write_numbered_video(tmp_path / "a.mp4", Variant())
    index, stat = read_index(path), path.stat()
    PyavReader(path, index=index).close()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(VideoDecodeError, match="it has changed since the scan, though not in size"):
        PyavReader(path, index=index)


# --- streams without a container, several streams, what torchcodec says ---


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        (".obu", "libsvtav1", {"preset": "12", "g": "20"}),
        (".obu", "libaom-av1", {"cpu-used": "8", "g": "20"}),
        (".h264", "libx264", {"g": "20", "bf": "2"}),
    ],
)
def test_bare_streams_are_read_with_the_index_of_a_scan(tmp_path, suffix, codec, options):
    """Opened by a known format alone, FFmpeg 8.1 gives the frames of AV1 times of a 48000th of what they are."""
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV cannot write {codec}")
    variant = Variant(codec=codec, suffix=suffix, options=options)
    path = write_numbered_video(tmp_path / f"a{suffix}", variant)
    index = sound_entry(read_index(path), VideoSource(str(path)), group="g").index()
    assert index.info.num_frames == variant.num_frames
    with open_video(path, index=index) as reader:
        assert read_numbers(reader.frames_at(range(60)).data) == list(range(60))
        assert read_numbers(reader.frames_at([41, 7, 59]).data) == [41, 7, 59]


@pytest.mark.parametrize("count", [1, 20])
def test_pictures_in_a_row_are_a_video_and_one_is_none(tmp_path, count):
    """FFmpeg takes a stream of large pictures for one picture, by what it looks at, and decodes them all."""
    path, draw = tmp_path / "a.mjpeg", np.random.default_rng(0)
    with av.open(str(path), "w") as out:
        options = {"qmin": "1", "qmax": "1"}
        stream = out.add_stream("mjpeg", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuvj420p"
        stream.codec_context.sample_aspect_ratio = Fraction(1)
        for _ in range(count):
            noise = draw.integers(0, 256, (96, 128, 3), dtype=np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        out.mux(stream.encode())
    with av.open(str(path)) as container:
        assert container.format.name == "jpeg_pipe"
    if count == 1:
        with pytest.raises(VideoDecodeError, match="still picture"):
            read_index(path)
        return
    expected = decoded_in_order(path)
    index = sound_entry(read_index(path), VideoSource(str(path)), group="g").index()
    assert index.info.num_frames == len(expected) == count
    with open_video(path, index=index) as reader:
        for at in (17, 3, 19):
            (got,) = reader.frames_at([at]).data.permute(0, 2, 3, 1).numpy()
            assert np.abs(got.astype(int) - expected[at]).mean() < 2


@pytest.mark.parametrize("is_larger", [False, True])
@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_the_better_of_two_streams_is_read_or_the_file_refused(
    tmp_path, numbered_video, backend, suffix, is_larger
):
    """decord reads the first of two streams where the second is the one that players show."""
    other = tmp_path / "other.mp4"
    if is_larger:
        write_numbered_video(other, Variant(width=256, options={"g": "10", "bf": "0"}))
    else:
        encode(other, range(100, 160))
    path = tmp_path / f"two{suffix}"
    with (
        av.open(str(other)) as one,
        av.open(str(numbered_video("h264_b_frames"))) as two,
        av.open(str(path), "w") as out,
    ):
        parts = [(part, out.add_stream_from_template(part.streams.video[0])) for part in (one, two)]
        parts[0][1].disposition, parts[1][1].disposition = Disposition(0), Disposition.default
        for part, stream in parts:
            for packet in part.demux(part.streams.video[0]):
                if packet.size:
                    packet.stream = stream
                    out.mux(packet)
    index = read_index(path)
    with av.open(str(path)) as container:
        expected = [
            frame.to_ndarray(format="rgb24")
            for frame in container.decode(container.streams.best("video"))
        ]
    try:
        reader = READERS[backend](path, index=index)
    except VideoDecodeError:
        assert backend == "decord"
        return
    with reader:
        for at in (0, 17, 59):
            (got,) = reader.frames_at([at]).data.permute(0, 2, 3, 1).numpy()
            assert np.abs(got.astype(int) - expected[at]).mean() < 3


def test_what_torchcodec_cannot_read_comes_with_the_remedy(tmp_path):
    """Of flv files of a frame it says "Requested next frame while there are no more frames left to decode."."""
    backend_or_skip("torchcodec")
    path, said = tmp_path / "a.flv", ""
    write_numbered_video(path, Variant(suffix=".flv", num_frames=1))
    try:
        with READERS["torchcodec"](path) as reader:
            assert read_numbers(reader.frames_at([0]).data) == [0]
    except VideoDecodeError as error:
        said = str(error)
    assert not said or said.endswith("; use backend=pyav or auto")


def test_rows_stored_bottom_up_are_read_from_the_top():
    picture = stored_picture(5, Variant())
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
    frame.pts = 0
    source = f"video_size={frame.width}x{frame.height}:pix_fmt=yuv420p:time_base=1/25"
    graph = filter_graph(source, ["vflip"])
    graph.push(frame)
    flipped = graph.pull()
    assert flipped.planes[0].line_size < 0
    assert np.array_equal(luma_of(flipped), luma_of(frame)[::-1])
    assert np.array_equal(full_luma_of(flipped), full_luma_of(frame)[::-1])
