"""The backends on real files: containers, codecs, rotations, broken and lying headers of the field."""

from pathlib import Path

import pytest
import torch
from backend import backend_or_skip

from videossl.decode.backends import READERS, available_backends, open_video
from videossl.decode.index import probe
from videossl.errors import VideoDecodeError

NUM_FRAMES_COMPARED = 6  # spread over the file, asked for out of order
NUM_PIXELS_COMPARED = 4_000_000  # of one file: large frames are fewer, but two at least
NUM_SAMPLED_FILES = 8  # of each folder of re-encoded footage
SHARED_VIDEOS = Path(__file__).parents[2] / "shared" / "data" / "videos"

# Not one frame can be had from these, or not all: name -> what the error says.
BROKEN = {
    "ExoPlayer__full_blocks.mkv": "no video stream .it holds subtitle",
    "moviepy__result.webm": "the file is empty",
}
# Sound header, torn stream: reading it to the end fails at the torn frame.
TORN = {"decord__corrupted.mp4"}

AVI = ("ExoPlayer__sample.avi", "OpenCV-Python-Tutorial__Megamind.avi", "mmaction2__test.avi")
MPEG_PS = ("LipNet__swiz3n.mpg", "torchcodec__sine_stereo_mp2.mpg")
GIF = ("torchcodec__animated.gif", "torchcodec__gradient.gif")
REFUSALS = {
    "torchcodec": dict.fromkeys(AVI + MPEG_PS, "its seeks are not exact"),
    "decord": {
        **dict.fromkeys(AVI + MPEG_PS + GIF, "it mixes up frames"),
        "ExoPlayer__dolbyVision-hdr.MOV": "colours of yuv420p10le",
        "torchcodec__h265_10bits.mp4": "colours of yuv420p10le",
        "moviepy__dash-video-with-dash-.mp4": "colours of yuv444p",
        "torchcodec__testsrc2_odd_height_and_width_mpeg2.mp4": "colours of odd sizes",
        "gradio__av1-video.mp4": "cannot find video stream",
        "torchcodec__av1_video.mkv": "cannot find video stream",
        "moviepy__no_duration.webm": "Failed to measure duration",
    },
}


def odd_files():
    return sorted(path.name for path in (SHARED_VIDEOS / "odd").glob("*"))


def sampled_files():
    """Evenly spread over each folder, as paths below the folder of videos."""
    names = []
    for folder in ("unlabelled", "actions"):
        files = sorted(
            path
            for path in (SHARED_VIDEOS / folder).rglob("*")
            if path.suffix in {".mp4", ".avi", ".mkv", ".webm"}
        )
        step = max(1, len(files) // NUM_SAMPLED_FILES)
        names += [str(path.relative_to(SHARED_VIDEOS)) for path in files[::step]]
    return names


def spread_indices(num_frames, pixels_per_frame):
    """Distinct indices over the whole file, out of order."""
    count = max(2, min(NUM_FRAMES_COMPARED, NUM_PIXELS_COMPARED // pixels_per_frame))
    spread = torch.linspace(0, num_frames - 1, min(count, num_frames)).round().int().tolist()
    return spread[1::2] + spread[::2]


def assert_agrees_with_pyav(name, path):
    backend_or_skip(name)
    with READERS["pyav"](path) as reference, READERS[name](path) as reader:
        assert torch.equal(reader.pts_seconds, reference.pts_seconds)
        indices = spread_indices(reference.num_frames, reference.height * reference.width)
        expected, got = reference.frames_at(indices), reader.frames_at(indices)
    assert torch.equal(got.pts_seconds, expected.pts_seconds)
    assert got.data.shape == expected.data.shape
    is_scaled = not probe(
        path
    ).has_square_pixels  # and each scales at another point of the conversion
    for one, other in zip(got.data, expected.data, strict=True):
        difference = (one.short() - other.short()).abs()
        assert difference.max() <= (48 if is_scaled else 2)
        assert difference.float().mean() <= (3 if is_scaled else 2)


@pytest.mark.parametrize("name", ["torchcodec", "decord"])
@pytest.mark.parametrize("file", sorted(set(odd_files()) - set(BROKEN) - TORN))
def test_backends_agree_on_odd_files(shared_data, name, file):
    path = str(shared_data / "videos" / "odd" / file)
    if file in REFUSALS[name] and not available_backends()[name]:
        with pytest.raises(VideoDecodeError, match=REFUSALS[name][file]):
            READERS[name](path)
        return
    assert_agrees_with_pyav(name, path)


@pytest.mark.parametrize("name", ["torchcodec", "decord"])
@pytest.mark.parametrize("file", sampled_files())
def test_backends_agree_on_footage(shared_data, name, file):
    assert_agrees_with_pyav(name, str(shared_data / "videos" / file))


@pytest.mark.parametrize("file", sorted(set(odd_files()) - set(BROKEN) - TORN))
def test_auto_reads_first_and_last_frame_of_every_sound_file(shared_data, file):
    path = str(shared_data / "videos" / "odd" / file)
    with open_video(path, short_side=64) as reader:
        batch = reader.frames_at([reader.num_frames - 1, 0])
    assert batch.data.shape == (2, 3, reader.height, reader.width)
    assert min(reader.height, reader.width) <= 64


@pytest.mark.parametrize("name", ["auto", *READERS])
@pytest.mark.parametrize("file", sorted(BROKEN))
def test_broken_odd_file_fails(shared_data, name, file):
    if available_backends().get(name):
        pytest.skip(f"{name} does not load here: {available_backends()[name]}")
    with pytest.raises(VideoDecodeError, match=BROKEN[file]):
        open_video(str(shared_data / "videos" / "odd" / file), backend=name)


def test_torn_stream_fails_at_the_torn_frame_only(shared_data):
    path = str(shared_data / "videos" / "odd" / "decord__corrupted.mp4")
    with READERS["pyav"](path) as reader:
        assert len(reader.frames_at([0, 5])) == 2
        with pytest.raises(VideoDecodeError, match="pyav cannot decode it: invalid data"):
            reader.frames_at(range(reader.num_frames))


# Facts of ffprobe 5.1: size as shown (display_aspect_ratio), frames decoded, rotation (counter-clockwise).
@pytest.mark.parametrize(
    ("file", "width", "height", "num_frames", "rotation"),
    [
        ("ExoPlayer__dolbyVision-hdr.MOV", 720, 1280, 4, 90),  # 5 packets, one edited out
        ("ExoPlayer__portrait_4k60.mp4", 2160, 3840, 18, 90),
        (
            "ExoPlayer__video_desks.3gp",
            384,
            288,
            71,
            0,
        ),  # 352x288 at 12:11, metadata that is not UTF-8
        ("OpenCV-Python-Tutorial__Megamind.avi", 720, 528, 270, 0),
        ("decord__video_180.mov", 568, 320, 3, 180),
        ("mmaction2__test.avi", 320, 240, 164, 0),
        ("moviepy__no_duration.webm", 1280, 720, 74, 0),
        ("torchcodec__gradient.gif", 1280, 720, 1, 0),
        ("torchcodec__nasa_13013.mp4", 480, 270, 390, 0),  # two streams: the larger is the best
        ("torchcodec__sine_stereo_mp2.mpg", 128, 128, 100, 0),
    ],
)
def test_probe_agrees_with_ffprobe(shared_data, file, width, height, num_frames, rotation):
    info = probe(shared_data / "videos" / "odd" / file)
    assert (info.width, info.height) == (width, height)
    assert (info.num_frames, info.rotation) == (num_frames, rotation)
