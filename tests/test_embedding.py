import numpy as np
import pytest
import torch

from videossl.data.entry import VideoEntry
from videossl.data.manifest import Manifest, read_manifest
from videossl.decode.backends import open_video
from videossl.errors import UserError
from videossl.export.video_encoder import ClipForm, VideoEncoder
from videossl.models.encoder import Encoder, EncoderSpec
from videossl.probe.embedding import ClipReader, uniform_clip_times, video_features

CLIP = ClipForm(num_frames=4, seconds_between_frames=0.2, resize=36, crop_size=32)


def test_clips_are_spread_from_the_first_frame_to_the_last():
    times = uniform_clip_times(1.0, 4.0, fps=10, clip=CLIP, num_clips=3)
    expected = [[1.0, 1.2, 1.4, 1.6], [2.15, 2.35, 2.55, 2.75], [3.3, 3.5, 3.7, 3.9]]
    np.testing.assert_allclose(times.numpy(), expected)
    (middle,) = uniform_clip_times(1.0, 4.0, fps=10, clip=CLIP, num_clips=1)
    np.testing.assert_allclose(middle.numpy(), expected[1])


def test_a_short_video_repeats_its_last_frame():
    times = uniform_clip_times(0.0, 0.5, fps=10, clip=CLIP, num_clips=2)
    np.testing.assert_allclose(times.numpy(), [[0.0, 0.2, 0.4, 0.4]] * 2)


@pytest.fixture(scope="module")
def manifest(video_folder) -> Manifest:
    broken = VideoEntry("nowhere.mp4", "g", "broken", "no such file", 0)
    return Manifest.from_entries([*read_manifest(video_folder), broken])


def test_a_clip_holds_the_frames_shown_at_its_times(manifest):
    entry = manifest[3]
    clips = ClipReader(manifest, CLIP, num_clips=2).read(3)
    times = uniform_clip_times(
        entry.begin_seconds, entry.end_seconds, fps=entry.fps, clip=CLIP, num_clips=2
    )
    with open_video(entry.source, short_side=CLIP.resize) as reader:
        expected = torch.stack([reader.frames_shown_at(clip.tolist()).data for clip in times])
    assert torch.equal(clips, expected)
    assert clips.shape[:3] == (2, 4, 3)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_videos_come_in_the_order_asked_for_and_broken_ones_with_their_reason(
    manifest, num_workers
):
    reader = ClipReader(manifest, CLIP, num_clips=2)
    rows = [7, 10, 0, 3, 9, 1]
    found = list(reader.read_all(rows, num_workers=num_workers))
    assert [video.row for video in found] == rows
    assert [video.row for video in found if video.frames is None] == [10]
    assert "no such file" in found[1].reason
    assert torch.equal(found[3].frames, reader.read(3))


def test_features_of_a_video_are_those_of_its_clips_alone(manifest):
    torch.manual_seed(0)
    encoder = VideoEncoder(Encoder(EncoderSpec("tiny")), CLIP)
    reader = ClipReader(manifest, CLIP, num_clips=3)
    cpu = torch.device("cpu")
    found = list(video_features(encoder, reader, [2, 10, 5], device=cpu, num_workers=1))
    assert [video.clips is None for video in found] == [False, True, False]
    with torch.no_grad():
        expected = torch.cat([encoder.eval()(clip[None]) for clip in reader.read(5)])
    torch.testing.assert_close(found[2].clips, expected, atol=1e-5, rtol=0)
    (alone,) = video_features(encoder, reader, [5], device=cpu, num_workers=0)
    assert torch.equal(alone.clips, found[2].clips)


def test_tokens_are_the_cells_of_the_stage(manifest):
    torch.manual_seed(0)
    encoder = VideoEncoder(Encoder(EncoderSpec("tiny")), CLIP).eval()
    reader = ClipReader(manifest, CLIP, num_clips=1)
    cpu = torch.device("cpu")
    (found,) = video_features(encoder, reader, [0], device=cpu, form="tokens", num_workers=0)
    with torch.no_grad():
        # (1, 128, 4, 2, 2): no larger than the grid
        maps = encoder.feature_maps(reader.read(0))["res5"]
    torch.testing.assert_close(found.clips, maps.flatten(2).transpose(1, 2))


def test_no_clips_fails(manifest):
    with pytest.raises(UserError, match="at least 1"):
        ClipReader(manifest, CLIP, num_clips=0)
