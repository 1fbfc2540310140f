import json
import math

import numpy as np
import pytest
import torch

from videossl.__main__ import main
from videossl.audit import probes
from videossl.audit.classifier import Cheater, class_weights
from videossl.audit.findings import measure
from videossl.audit.labels import Places, dependence, label_checks, mutual_information
from videossl.audit.split import split_checks
from videossl.audit.swap import Judged, swap_check
from videossl.audit.transcode import VARIANTS, transcoded
from videossl.data.dataset import ClipDataset
from videossl.data.manifest import VideoEntry
from videossl.data.table import Manifest, read_manifest
from videossl.decode.info import read_index
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


QUICK = ["--control-videos", "0", "--head-steps", "0", "--no-swap"]


@pytest.fixture
def config_file(tmp_path, video_folder):
    path = tmp_path / "config.yaml"
    path.write_text(
        "out: unused\n"
        "data: {short_side: 48, videos_per_step: 4, num_workers: 0, holdout_fraction: 0.3}\n"
        "tasks: {order_verification: "
        "{crop_size: 32, num_frames: 1, window_seconds: 1.2, min_gap_seconds: 0.1, min_difference: 0.0}}\n"
    )
    return path


def test_the_command_writes_what_it_prints(tmp_path, config_file, video_folder, capsys):
    out = tmp_path / "audit"
    arguments = ["--config", str(config_file), "--manifest", str(video_folder), "-o", str(out)]
    assert main(["audit", *arguments, "--train-clips", "2", "--heldout-clips", "2", *QUICK]) == 0
    printed = capsys.readouterr().out
    assert (out / "audit.md").read_text().strip() in printed
    record = json.loads((out / "audit.json").read_text())
    (task,) = record["tasks"].values()
    assert {cheat["probe"] for cheat in task["cheats"]} >= {"P2", "P3", "P4", "P6"}
    judged = [cheat for cheat in task["cheats"] if cheat["probe"] != "P6"]
    assert all(cheat["verdict"] == "too few videos" for cheat in judged)
    assert task["best_cheap_cheat"]["accuracy"][0] == max(
        c["accuracy"][0] for c in task["cheats"] if c["probe"] in ("P2", "P3", "P4")
    )


def test_nothing_to_audit_fails(tmp_path, capsys):
    assert main(["audit", "-o", str(tmp_path / "a")]) == 2
    assert "give --config FILE, or --checkpoint RUN" in capsys.readouterr().err


def test_without_held_out_videos_it_fails(tmp_path, config_file, video_folder, capsys):
    arguments = ["--config", str(config_file), "--manifest", str(video_folder)]
    out = ["-o", str(tmp_path / "a"), "data.holdout_fraction=0"]
    assert main(["audit", *arguments, *out]) == 2
    assert "data.holdout_fraction is 0: cheats are judged" in capsys.readouterr().err


def test_a_run_is_set_beside_the_cheats(tmp_path, config_file, video_folder):
    """With files coded anew, heads on a random encoder, and the picture."""
    run, out = tmp_path / "run", tmp_path / "audit"
    settings = [
        f"data.manifest={video_folder}",
        f"out={run}",
        "train.steps=2",
        "train.save_every=2",
    ]
    assert main(["train", "--config", str(config_file), *settings]) == 0
    arguments = ["--checkpoint", str(run), "-o", str(out), "--control-videos", "0"]
    arguments += ["--train-clips", "1", "--heldout-clips", "2", "--head-steps", "2"]
    assert main(["audit", *arguments]) == 0
    record = json.loads((out / "audit.json").read_text())
    task = record["tasks"]["order_verification"]
    estimate, low, high = task["model"]["accuracy"]
    assert low <= estimate <= high
    assert task["model"]["is_above_chance"] == (low > task["chance"])
    names = {cheat["name"] for cheat in task["cheats"]}
    assert "trained head on a frozen random encoder" in names
    assert "the task's own rule: thumbnails" in names
    swapped = {check["name"] for check in task["checks"] if check["probe"] == "P7"}
    assert len(swapped) == 2 * len(VARIANTS)  # of the probe and of the model
    assert (out / "audit.png").stat().st_size > 10_000
    assert {path.name for path in out.iterdir()} == {"audit.json", "audit.md", "audit.png"}


def test_a_checkpoint_of_other_tasks_fails(tmp_path, config_file, video_folder, capsys):
    run = tmp_path / "run"
    settings = [
        f"data.manifest={video_folder}",
        f"out={run}",
        "train.steps=1",
        "train.save_every=1",
    ]
    assert main(["train", "--config", str(config_file), *settings]) == 0
    other = tmp_path / "other.yaml"
    other.write_text(config_file.read_text().replace("order_verification", "odd_one_out"))
    other.write_text(
        other.read_text().replace("num_frames: 1, ", "").replace(", min_difference: 0.0", "")
    )
    arguments = ["--config", str(other), "--manifest", str(video_folder), "--checkpoint", str(run)]
    assert main(["audit", *arguments, "-o", str(tmp_path / "a")]) == 2
    assert "the checkpoint does not fit the config" in capsys.readouterr().err


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
    assert not swap_check("the model", "CRF 28", before, worse).is_clean
    assert swap_check("the model", "CRF 28", before, before).is_clean
    assert swap_check("the model", "CRF 28", worse, before).is_clean  # a gain is no loss


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
