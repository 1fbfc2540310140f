import numpy as np
from PIL import Image

from videossl.data.synthetic import Scene, render_davis, render_video
from videossl.decode.backends import open_video


def test_a_scene_is_a_function_of_its_seed():
    frames = [list(Scene(seed).frames(3)) for seed in (1, 1, 2)]
    assert np.array_equal(frames[0][2][0], frames[1][2][0])
    assert not np.array_equal(frames[0][2][0], frames[2][2][0])


def test_every_body_is_in_view_at_first_and_masks_follow_it():
    for seed in range(8):
        frames = list(Scene(seed, num_objects=2).frames(13))
        first, last = frames[0][1], frames[-1][1]
        assert set(np.unique(first)) == {0, 1, 2}
        assert not np.array_equal(first, last)


def test_masks_are_exact():
    """The same scene without its bodies differs from the scene exactly where the masks say."""
    scene, empty = Scene(3, num_objects=2), Scene(3, num_objects=2)
    empty._bodies = []
    (image, ids), (background, _) = next(scene.frames(1)), next(empty.frames(1))
    assert (image[ids == 0] == background[ids == 0]).all()
    assert (image[ids > 0] != background[ids > 0]).any(-1).mean() > 0.99


def test_falling_bodies_lose_height():
    """What makes the arrow visible: a later peak is never higher than an earlier one."""
    scene = next(s for s in map(Scene, range(50)) if s._bodies[0].kind == "fall")
    body, heights = scene._bodies[0], []
    for _ in scene.frames(120):
        heights.append(scene.height - body.y)
    peaks = [b for a, b, c in zip(heights, heights[1:], heights[2:], strict=False) if a < b > c]
    assert len(peaks) >= 2
    assert peaks == sorted(peaks, reverse=True)


def test_files_are_real_videos_and_a_davis_tree(tmp_path):
    render_video(tmp_path / "a.mp4", seed=0, seconds=0.5)
    with open_video(tmp_path / "a.mp4") as reader:
        assert (reader.num_frames, reader.height, reader.width) == (12, 144, 192)
        decoded = reader.frames_at([11]).data[0].permute(1, 2, 0).numpy().astype(int)
    *_, (image, _) = Scene(0).frames(12)
    assert np.abs(decoded - image).mean() < 6  # what h264 at crf 20 loses
    names = render_davis(
        tmp_path / "davis", seed=0, num_sequences=2, num_frames=3, height=64, width=96
    )
    assert (tmp_path / "davis/ImageSets/2017/val.txt").read_text().split() == names
    mask = Image.open(tmp_path / "davis/Annotations/480p" / names[1] / "00002.png")
    assert (mask.mode, mask.size) == ("P", (96, 64))
    assert set(np.unique(np.asarray(mask))) <= {0, 1, 2}
