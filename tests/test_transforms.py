import torch

from videossl.color import encoder_input
from videossl.config import Augmentation
from videossl.data.transforms import transform_clips
from videossl.rng import row_random

CPU = torch.device("cpu")
STILL = Augmentation(
    border=0.0,
    min_scale=1.0,
    flip=False,
    clip_jitter=0.0,
    brightness=0,
    contrast=0,
    saturation=0,
    hue_degrees=0,
)


def rows(num_rows: int, step: int = 0):
    return row_random(0, "views", step, rank=0, world_size=1, num_rows=num_rows, device=CPU)


def random_frames(
    num_videos: int = 3, num_clips: int = 2, num_frames: int = 4, side: int = 32
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (num_videos, num_clips, num_frames, 3, side, side)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def test_evaluation_without_a_border_is_the_frame_itself_in_lab():
    frames = random_frames()
    # At one output pixel a pixel, the two samples a side sit at +-1/4: constant 2x2 blocks are left as they are.
    frames = frames[..., :1, :1].expand_as(frames)
    clips = transform_clips(frames, 32, Augmentation(border=0.0), None)
    assert clips.shape == (3, 2, 3, 4, 32, 32)
    expected = encoder_input(frames, dim=3).movedim(3, 2)
    torch.testing.assert_close(clips, expected, rtol=0, atol=1e-4)


def test_every_frame_of_a_clip_gets_the_same_parameters():
    frames = random_frames(num_frames=1).expand(-1, -1, 6, -1, -1, -1)
    clips = transform_clips(frames, 24, Augmentation(), rows(3))
    assert (clips - clips[:, :, :, :1]).abs().max() == 0


def test_clips_of_a_video_are_varied_independently_and_videos_too():
    frames = random_frames(num_videos=1, num_clips=1).expand(3, 2, -1, -1, -1, -1)
    clips = transform_clips(frames, 24, Augmentation(), rows(3)).flatten(0, 1)
    distances = torch.cdist(clips.flatten(1), clips.flatten(1))
    assert (distances[~torch.eye(6, dtype=torch.bool)] > 1).all()


def test_augmentation_off_equals_evaluation():
    frames = random_frames()
    torch.testing.assert_close(
        transform_clips(frames, 24, STILL, rows(3)),
        transform_clips(frames, 24, Augmentation(border=0.0), None),
    )


def test_crops_stay_inside_the_border():
    frames = torch.zeros(8, 1, 1, 3, 100, 100, dtype=torch.uint8)
    frames[..., 10:90, 10:90] = 255  # a black frame of a tenth on every side
    for step in range(20):
        clips = transform_clips(
            frames, 16, Augmentation(border=0.1, brightness=0, contrast=0), rows(8, step)
        )
        assert clips[:, :, 0].min() > 2.2  # white everywhere: (100 - 45) / 24


def test_draws_make_the_clips():
    frames = random_frames()
    first, again = (transform_clips(frames, 16, Augmentation(), rows(3, 1)) for _ in range(2))
    other = transform_clips(frames, 16, Augmentation(), rows(3, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
