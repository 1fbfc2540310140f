import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from videossl.audit import probes
from videossl.audit.classifier import Cheater, class_weights
from videossl.audit.findings import Check, measure, sign_test
from videossl.audit.labels import Places, dependence, label_checks, mutual_information
from videossl.audit.split import split_checks
from videossl.audit.swap import Judged, swap_check
from videossl.audit.transcode import VARIANTS, transcoded
from videossl.data.dataset import ClipDataset
from videossl.data.entry import VideoEntry
from videossl.data.manifest import Manifest, read_manifest
from videossl.decode.index import read_index
from videossl.types import ClipSpec, Questions


def asked(frames: torch.Tensor, labels: list[int] | None = None, num_answers: int = 2) -> Questions:
    count = len(frames)
    labels = [0] * count if labels is None else labels
    return Questions(frames, torch.tensor(labels), torch.arange(count), num_answers)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_scalars_are_those_of_a_loop():
    frames = noise(2, 3, 3, 32, 40)
    found = probes.scalars(asked(frames)).numpy()
    for question, frame in np.ndindex(2, 3):
        light = frames[question, frame, 0].double().numpy()
        energy = np.mean(
            [
                (
                    4 * light[y, x]
                    - light[y - 1, x]
                    - light[y + 1, x]
                    - light[y, x - 1]
                    - light[y, x + 1]
                )
                ** 2
                for y in range(1, 31)
                for x in range(1, 39)
            ]
        )
        expected = [light.mean(), light.std(ddof=1), math.log(energy + probes.EPSILON)]
        assert found[question, frame::3] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_ramps_change_their_sign_with_the_direction():
    frames = noise(3, 7, 3, 32, 32).cumsum(1)
    for ramp in (probes.quality_ramp, probes.quality_and_change_ramp):
        assert torch.allclose(ramp(asked(frames.flip(1))), -ramp(asked(frames)), atol=1e-5)
    assert probes.quality_and_change_ramp(asked(noise(1, 16, 3, 32, 32))).shape == (1, 15 + 15 + 13)


def test_blockiness_finds_the_grid_of_eight():
    smooth = torch.linspace(0, 1, 64).expand(64, 64)
    blocks = (torch.arange(64) // 8).float().expand(64, 64)
    frames = torch.stack([smooth, blocks])[None, :, None].expand(1, 2, 3, 64, 64)
    plain, blocky = probes._blockiness(frames[:, :, 0])[0].tolist()
    assert plain == pytest.approx(0, abs=0.01)
    assert blocky > 1.5


def test_rim_and_middle_share_no_pixel():
    frames = noise(1, 2, 3, 56, 56).requires_grad_()
    (of_rim,) = torch.autograd.grad(probes.rim(asked(frames)).square().sum(), frames)
    (of_middle,) = torch.autograd.grad(probes.middle(asked(frames)).square().sum(), frames)
    assert float((of_rim.abs() * of_middle.abs()).max()) == 0
    assert float(of_rim[..., 4:-4, 4:-4].abs().max()) == 0
    assert bool((of_rim[:, :, 0] != 0)[..., :4, :].all())


def test_distances_put_the_frame_between_between():
    """Three frames on a line: the distance of the ends is the largest wherever the middle one is shown."""
    place = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 2.0]])
    frames = place[:, :, None, None, None].expand(2, 3, 3, 16, 16)
    found = probes.distances(asked(frames))[:, :3]  # of (0, 1), (0, 2), (1, 2)
    assert found.argmax(1).tolist() == [1, 2]


def test_direction_is_recognised():
    frames = noise(2, 4, 3, 32, 32)
    both = torch.cat([frames, frames.flip(1)])
    videos = torch.tensor([0, 1, 0, 1])
    assert probes.asks_direction(Questions(both, torch.tensor([1, 1, 0, 0]), videos, 2))
    assert not probes.asks_direction(Questions(both, torch.tensor([1, 1, 1, 1]), videos, 2))
    assert not probes.asks_direction(Questions(both, torch.tensor([1, 1, 0, 0]), videos, 3))
    assert not probes.asks_direction(asked(frames, [0, 1]))


def test_mutual_information_is_the_closed_form():
    assert mutual_information(np.array([[5.0, 0.0], [0.0, 5.0]])) == pytest.approx(1.0)
    assert mutual_information(np.array([[2.0, 4.0], [3.0, 6.0]])) == pytest.approx(0.0)


def test_a_label_tied_to_the_index_is_named_and_a_drawn_one_is_not():
    positions = np.arange(160)
    places = Places(positions, 8)
    tied = label_checks(positions % 2, places)
    said = [check.says for check in tied if not check.is_clean]
    assert any("the label is tied to the parity of the video's index: 0.9" in says for says in said)
    drawn = np.random.default_rng(0).integers(0, 2, 160)
    assert all(check.is_clean for check in label_checks(drawn, places))


def test_shuffled_videos_are_rarely_called_dependent():
    """The p values of 40 draws in which nothing depends are about uniform, though each video has five equal labels."""
    values = []
    for seed in range(40):
        random = np.random.default_rng(seed)
        labels = np.repeat(random.integers(0, 2, 24), 5)
        videos = np.repeat(np.arange(24), 5)
        values.append(dependence(labels, videos % 2, videos, random)[1])
    assert min(values) > 1e-3
    assert 0.25 < np.mean(values) < 0.8


def test_classes_weigh_alike():
    labels = np.array([0, 0, 0, 1, 2, 2])
    constant = (labels == 0).astype(float)
    weights = class_weights(labels)
    assert (constant * weights).sum() / weights.sum() == pytest.approx(1 / 3)


def test_a_cheater_learns_what_can_be_learned_and_nothing_else():
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 600)
    features = np.stack([labels + 0.1 * random.normal(size=600), random.normal(size=600)], 1)
    right = Cheater(features[:300], labels[:300]).answer(features[300:]) == labels[300:]
    assert right.mean() > 0.95
    assert Cheater(features[:5], np.full(5, 2)).answer(features[:2]).tolist() == [2, 2]


@pytest.mark.parametrize(
    ("accuracy", "is_baseline", "expected"),
    [(0.9, False, "leaks"), (0.9, True, "baseline to beat"), (0.5, False, "at chance")],
)
def test_verdicts(accuracy, is_baseline, expected):
    videos = np.repeat(np.arange(60), 4)
    right = np.random.default_rng(1).random(240) < accuracy
    _, verdict = measure(right, np.ones(240), videos, chance=0.5, is_baseline=is_baseline)
    assert verdict == expected
    few = videos < 5
    assert measure(right[few], np.ones(20), videos[few], chance=0.5)[1] == "too few videos"


def test_nine_videos_that_a_rule_wins_are_no_luck_and_eight_may_be():
    for won, expected in ((9, "leaks"), (8, "too few videos")):
        right = np.repeat(np.arange(9) < won, 4).astype(float)
        videos = np.repeat(np.arange(9), 4)
        assert measure(right, np.ones(36), videos, chance=0.5)[1] == expected


@pytest.mark.parametrize("won", range(10))
def test_the_sign_test_is_the_binomial_one(won):
    videos, right = np.arange(9), (np.arange(9) < won).astype(float)
    expected = binomtest(won, 9, 0.5, alternative="greater").pvalue
    assert sign_test(right, np.ones(9), videos, chance=0.5) == pytest.approx(expected)


def test_the_same_clips_are_read_from_other_files(tmp_path, video_folder):
    """Frame k of the file coded anew stands for frame k: pictures alike, times and crops the same."""
    manifest = read_manifest(video_folder)
    spec = ClipSpec(1, 4, 0.1, 32)
    data = ClipDataset(manifest, [spec], seed=0, short_side=48, rows=np.arange(3), shuffle=False)
    swapped, rows = transcoded(data, tmp_path)
    assert rows == {0, 1, 2}
    for position in range(3):
        own = data[position]
        for name, other in swapped.items():
            found = other[position]
            assert torch.equal(found.pts_seconds[spec], own.pts_seconds[spec])
            apart = (found.frames[spec].float() - own.frames[spec].float()).abs().mean()
            assert 0 < float(apart) < 8, name


def test_intra_only_files_hold_key_frames_alone(tmp_path, video_folder):
    data = ClipDataset(
        read_manifest(video_folder),
        [ClipSpec(1, 2, 0.1, 32)],
        seed=0,
        short_side=48,
        rows=np.arange(1),
    )
    transcoded(data, tmp_path)
    keys = {
        name: read_index(tmp_path / f"{number}_0.mp4").is_key
        for number, name in enumerate(VARIANTS)
    }
    assert keys["intra-only"].all()
    assert np.flatnonzero(keys["groups of 12, no B-frames"])[:3].tolist() == [0, 12, 24]


def test_a_loss_is_named_where_it_is_beyond_chance_and_three_points():
    videos = np.repeat(np.arange(40), 10)
    right = np.random.default_rng(0).random(400) < 0.9
    before = Judged(right, None, videos)
    worse = Judged(right & (np.arange(400) % 5 > 0), None, videos)
    everyone = set(range(40))

    def check(first: Judged, second: Judged, coded: set[int] = everyone) -> Check:
        return swap_check("the model", "CRF 28", first, second, coded=coded)

    assert not check(before, worse).is_clean
    assert check(before, before).is_clean
    assert check(worse, before).is_clean  # a gain is no loss
    # Of 40 videos 4 were coded anew: the others, the same before and after, must not dilute what is lost.
    few = np.isin(videos, range(4))
    diluted = check(before, Judged(np.where(few, False, right), None, videos), set(range(4)))
    assert diluted.numbers["loss"] == pytest.approx(right[few].mean())
    assert not diluted.is_clean
    assert check(before, worse, {99}).says.startswith("P7 not run: the model is asked nothing")


def test_sources_and_copies_on_both_sides_are_named():
    def entry(name: str, group: str, phash: int) -> VideoEntry:
        return VideoEntry(path=name, group=group, status="ok", reason="", bytes=1, phash=phash)

    rows = [entry("a", "one", 0), entry("b", "two", 2**40 - 1), entry("c", "one", 2**63 - 7)]
    manifest = Manifest.from_entries([*rows, entry("d", "three", 0b11)])
    disjoint, copies = split_checks(manifest, np.array([0, 1]), np.array([2]))
    assert not disjoint.is_clean
    assert copies.is_clean
    disjoint, copies = split_checks(manifest, np.array([0, 1]), np.array([3]))
    assert disjoint.is_clean
    assert not copies.is_clean
    assert "1 pairs of near-duplicates stand on both sides" in copies.says


def test_outlines_see_what_is_where_and_neither_brightness_nor_a_small_shift():
    """Stripes that stand and stripes that lie: alike in all but direction."""
    standing = torch.sin(torch.arange(48.0) / 2).expand(48, 48)
    shown = {
        "same, brighter": 2 * standing + 1,
        "same, moved": standing.roll(2, 1),
        "lying": standing.T.contiguous(),
    }
    distance = {}
    for name, other in shown.items():
        frames = torch.stack([standing, other])[None, :, None].expand(1, 2, 3, 48, 48)
        outlines = probes._outlines(frames[:, :, 0])
        distance[name] = float((outlines[:, 0] - outlines[:, 1]).abs().sum())
    assert distance["same, brighter"] < 1e-5
    assert distance["same, moved"] < 0.1 * distance["lying"]
    assert distance["lying"] > 1.5  # of 2: nothing in common
