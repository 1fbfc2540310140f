"""Going on learning on one video, and `videossl track --adapt`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from videossl.__main__ import main
from videossl.config import Config
from videossl.data.transforms import transform_clips
from videossl.engine.adaptation import adapt, restore_tracker, stretches_of
from videossl.engine.build import build_model
from videossl.engine.checkpoint import save_checkpoint
from videossl.errors import UserError
from videossl.io.index_masks import write_mask
from videossl.rng import row_random
from videossl.types import ClipBatch

H, W, FRAMES, RATE = 48, 72, 6, 24.0
COLORIZATION = {
    "stage": "res3",
    "hide": "one",
    "predict": "values",
    "num_references": 1,
    "seconds_between_frames": 1 / 24,
    "crop_size": 32,
    "frame_jitter": 4,
    "radius": 4,
    "weight": 20,
}


def save_run(folder: Path, tasks: dict[str, dict[str, object]]) -> Path:
    """A run that was never trained, saved as a run saves itself."""
    config = Config.model_validate({"out": "x", "tasks": tasks})
    torch.manual_seed(0)
    model = build_model(config)
    state = {
        "encoder": model.encoder.describe(),
        "model": model.state_dict(),
        "config": config.model_dump(mode="json"),
    }
    return save_checkpoint(folder / "checkpoints", state, step=1, keep=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # The arrow reads res5: the tracker's encoder goes deeper than its own task.
    arrow = {"stage": "res5", "num_frames": 4, "crop_size": 32, "seconds_between_frames": 0.1}
    tasks = {"arrow_of_time": arrow, "colorization": COLORIZATION}
    return save_run(tmp_path_factory.mktemp("run") / "mine", tasks)


def frame_and_mask(t: int) -> tuple[np.ndarray, np.ndarray]:
    """A colourful square that moves over a colourful ground."""
    random = np.random.default_rng(0)
    frame = random.integers(0, 250, (H // 4, W // 4, 3)).astype(np.uint8).repeat(4, 0).repeat(4, 1)
    mask = np.zeros((H, W), np.uint8)
    frame[8:32, 8 + 2 * t : 32 + 2 * t] = (
        random.integers(0, 250, (6, 6, 3)).repeat(4, 0).repeat(4, 1)
    )
    mask[8:32, 8 + 2 * t : 32 + 2 * t] = 1
    return frame, mask


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    root = tmp_path / "davis"
    for name in ("ant", "bee"):
        for t in range(FRAMES):
            frame, mask = frame_and_mask(t)
            path = root / f"JPEGImages/480p/{name}/{t:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(frame).save(path.with_suffix(".jpg"), quality=95)
            write_mask(root / f"Annotations/480p/{name}/{t:05d}.png", mask)
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/val.txt").write_text("ant\nbee\n")
    return root


def frames() -> torch.Tensor:
    return torch.stack([torch.from_numpy(frame_and_mask(t)[0]) for t in range(FRAMES)]).permute(
        0, 3, 1, 2
    )


def loss_on_video(tracker, encoder) -> float:
    """What the task loses on clips of the video that adapting has not drawn."""
    spec = tracker.task.clip_spec
    total = 0.0
    for seed in range(4):
        rng = row_random(seed, "test", rank=0, world_size=1, num_rows=4, device=torch.device("cpu"))
        start = torch.randint(0, FRAMES - 1, (4,), generator=torch.Generator().manual_seed(seed))
        index = start[:, None] + torch.arange(spec.num_frames)
        squares = frames()[index][:, None, ..., 12 : 12 + H]
        clips = transform_clips(squares, spec.crop_size, tracker.config.augment, rng)
        batch = ClipBatch({spec: clips}, {spec: index[:, None].double()}, torch.zeros(4).long())
        views = tracker.task.make_views(batch, rng)
        with torch.no_grad():
            features = {n: encoder(rows)[tracker.task.stage] for n, rows in views.inputs.items()}
            total += float(tracker.task(features, views.targets).loss)
    return total


def test_the_task_is_answered_better_on_the_video_afterwards(run):
    tracker = restore_tracker(run)
    tracker.task.train()
    before = loss_on_video(tracker, tracker.encoder)
    adapted = adapt(tracker, [frames()], steps=30, frames_per_second=RATE)
    assert loss_on_video(tracker, adapted) < 0.9 * before


def test_the_encoder_given_stays_as_it_is_and_a_seed_gives_one_result(run):
    tracker = restore_tracker(run)
    before = {name: value.clone() for name, value in tracker.encoder.state_dict().items()}
    first, again = (
        adapt(tracker, [frames()], steps=2, frames_per_second=RATE).state_dict() for _ in range(2)
    )
    other = adapt(tracker, [frames()], steps=2, frames_per_second=RATE, seed=1).state_dict()
    assert all(torch.equal(value, tracker.encoder.state_dict()[n]) for n, value in before.items())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert any(not torch.equal(first[name], before[name]) for name in first)


def test_a_video_of_two_frames_is_enough(run):
    adapted = adapt(restore_tracker(run), [frames()[:2]], steps=1, frames_per_second=RATE)
    assert all(value.isfinite().all() for value in adapted.state_dict().values())


def test_long_videos_are_read_in_evenly_spaced_stretches():
    assert stretches_of(512) == [range(512)]
    stretches = stretches_of(10_000)
    assert (stretches[0].start, stretches[-1].stop) == (0, 10_000)
    assert sum(map(len, stretches)) == 512
    gaps = np.diff([stretch.start for stretch in stretches])
    assert gaps.max() - gaps.min() <= 1


def test_an_exported_file_adapts_as_its_run_does(run, tmp_path):
    file = tmp_path / "encoder.safetensors"
    assert main(["export", "--checkpoint", str(run), "-o", str(file)]) == 0
    again = tmp_path / "again.safetensors"
    assert main(["export", "--checkpoint", str(file), "-o", str(again)]) == 0
    expected, *got = (
        adapt(restore_tracker(path), [frames()], steps=2, frames_per_second=RATE).state_dict()
        for path in (run, file, again)
    )
    for weights in got:
        assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_damaged_weights_of_the_task_are_found_out(run, tmp_path):
    file = tmp_path / "encoder.safetensors"
    assert main(["export", "--checkpoint", str(run), "-o", str(file)]) == 0
    data = bytearray(file.read_bytes())
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    start = 8 + int.from_bytes(data[:8], "little") + header["task.head.weight"]["data_offsets"][0]
    data[start : start + 4] = b"\x00\x00\x80\x3f"
    file.write_bytes(data)
    with pytest.raises(UserError, match="the weights of its task are not its own"):
        restore_tracker(file)


def test_a_run_without_a_task_that_tracks_is_refused(tmp_path):
    arrow = {"stage": "res5", "num_frames": 4, "crop_size": 32, "seconds_between_frames": 0.1}
    path = save_run(tmp_path, {"arrow_of_time": arrow})
    with pytest.raises(UserError, match="trained by no task that tracks"):
        restore_tracker(path)


def track(checkpoint: Path, davis: Path, out: Path, *more: str) -> int:
    fixed = ["--set", "short_side=none", "--set", "radius=4", "--device", "cpu"]
    source = ["--checkpoint", str(checkpoint), "--davis", str(davis), "-o", str(out)]
    return main(["track", *source, *fixed, *more])


@pytest.mark.parametrize("workers", ["1", "2"])
def test_tracking_adapts_to_each_video_and_reports_seconds_and_gain(run, davis, tmp_path, workers):
    out = tmp_path / "out"
    assert track(run, davis, out, "--adapt", "3", "--workers", workers) == 0
    record = json.loads((out / "result.json").read_text())
    assert record["main_row"] == "mine_step1_adapted"
    assert list(record["rows"]) == ["mine_step1", "mine_step1_adapted"]
    assert record["rows"]["mine_step1_adapted"]["adapt_seconds_per_video"] > 0
    assert "adapt_seconds_per_video" not in record["rows"]["mine_step1"]
    assert "mine_step1" in record["differences"]
    assert len(list((out / "mine_step1_adapted").rglob("*.png"))) == 2 * FRAMES


def test_adapting_reads_no_later_mask(run, davis, tmp_path):
    assert track(run, davis, tmp_path / "first", "--adapt", "2", "--sequences", "ant") == 0
    for t in range(1, FRAMES):
        write_mask(davis / f"Annotations/480p/ant/{t:05d}.png", np.full((H, W), t % 2, np.uint8))
    assert track(run, davis, tmp_path / "second", "--adapt", "2", "--sequences", "ant") == 0
    masks = [
        [path.read_bytes() for path in sorted((tmp_path / name / "adapted/ant").glob("*.png"))]
        for name in ("first", "second")
    ]
    assert masks[0] == masks[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "RUN", "--adapt", "0"], "--adapt takes a number of steps >= 1, got 0"),
        (["--features", "a:b", "--adapt", "5"], "--adapt goes on training an encoder"),
    ],
)
def test_what_cannot_be_adapted_is_refused(run, davis, tmp_path, capsys, arguments, message):
    arguments = [str(run) if word == "RUN" else word for word in arguments]
    command = ["track", *arguments, "--davis", str(davis), "-o", str(tmp_path / "out")]
    assert main(command) == 2
    assert message in capsys.readouterr().err
