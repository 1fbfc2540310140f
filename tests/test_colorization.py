import pytest
import torch
import torch.nn.functional as F

from videossl.config import validate
from videossl.models.encoder import Encoder, EncoderSpec
from videossl.pretext._views import CellTruth, cell_metrics
from videossl.pretext.colorization import ColorizationConfig as Config
from videossl.pretext.colorization import Task
from videossl.rng import row_random
from videossl.types import ClipBatch, FeatureMaps, metric_mean

CPU = torch.device("cpu")


def build(encoder_name: str = "tiny", **settings) -> tuple[Encoder, Task]:
    torch.manual_seed(0)
    config = validate(Config, {"crop_size": 32, "frame_jitter": 4, "num_classes": 4, **settings})
    encoder = Encoder(EncoderSpec(encoder_name, deepest_stage=config.stage))
    return encoder, Task(config, encoder.stages)


def batch_of(task: Task, clips: torch.Tensor) -> ClipBatch:
    spec = task.clip_spec
    times = torch.zeros(len(clips), 1, spec.num_frames, dtype=torch.float64)
    return ClipBatch({spec: clips}, {spec: times}, torch.arange(len(clips)))


def random_clips(task: Task, num_videos: int = 2) -> torch.Tensor:
    spec = task.clip_spec
    generator = torch.Generator().manual_seed(2)
    return torch.randn(
        num_videos, 1, 3, spec.num_frames, spec.crop_size, spec.crop_size, generator=generator
    )


def rows(num_rows: int = 2):
    return row_random(0, "views", 0, rank=0, world_size=1, num_rows=num_rows, device=CPU)


@pytest.mark.parametrize(
    "encoder_name", ["tiny", "r3d_18"]
)  # frame-wise, and 3D from the first layer on
@pytest.mark.parametrize("hide", ["both", "one"])
def test_no_hidden_colour_reaches_the_features(encoder_name, hide):
    encoder, task = build(encoder_name, hide=hide)
    clips = random_clips(task).requires_grad_()
    make_views = Task.make_views.__wrapped__  # without no_grad, to see what the views depend on
    views = make_views(task, batch_of(task, clips), rows())
    features = encoder(views.inputs["frames"])[task.stage].data
    (gradient,) = torch.autograd.grad(features[:, :, -1].square().sum(), clips)
    by_channel = gradient.abs().amax(dim=(1, 3, 4, 5))  # (B, 3)
    assert (by_channel[:, 0] > 0).all()
    if hide == "both":
        assert by_channel[:, 1:].max() == 0
    else:
        rng = (
            rows()
        )  # the draws are made in the order of make_views: gaps, reversal, shifts, channel
        (
            rng.integers(high=1),
            rng.integers(high=2),
            rng.integers(task.config.num_references + 1, 2, high=9),
        )
        drawn = rng.integers(high=2)
        for video in range(len(clips)):
            assert by_channel[video, 1 + int(drawn[video])] == 0
            assert by_channel[video, 2 - int(drawn[video])] > 0


def test_perfect_features_copy_the_right_colour_of_a_moving_pattern():
    """References shifted by whole cells: with features that name the pattern's places, the copy is exact."""
    _, task = build(
        stage="res2", num_references=1, frame_jitter=0, temperature=0.01, predict="classes"
    )
    cells = 8
    torch.manual_seed(1)
    identity = F.normalize(torch.randn(1, task.head.in_channels, cells, cells), dim=1)
    classes = torch.randint(0, 4, (1, cells, cells))
    shifted = {
        name: torch.roll(v, 3, dims=-1)
        for name, v in (("identity", identity), ("classes", classes))
    }
    task.head = torch.nn.Identity()
    features = FeatureMaps(torch.stack([shifted["identity"], identity], 2), 1, 4)
    targets = {
        "hidden": torch.zeros(1, 2, 2, cells, cells),
        "classes": torch.stack([shifted["classes"], classes], 1),
        "table": torch.zeros(1, dtype=torch.int64),
        "moved": torch.ones(1, cells, cells, dtype=torch.bool),
    }
    result = task({"frames": features}, targets)
    assert metric_mean(result.metric_sums["accuracy"]) == 1.0
    expected = (classes == shifted["classes"]).float().mean()
    assert metric_mean(result.metric_sums["shortcut_baseline"]) == pytest.approx(float(expected))
    assert float(result.loss) < 0.01


def test_each_frame_is_cut_at_its_own_offset_and_centred_in_evaluation():
    _, task = build(num_references=2, frame_jitter=4)
    side = task.clip_spec.crop_size
    ramp = torch.arange(side, dtype=torch.float32)
    place = ramp[:, None] * side + ramp[None]  # every pixel names its place
    clips = place.expand(3, 1, 3, 3, side, side).clone()
    task.train()
    cut = task._shift_frames(clips[:, 0], rows(3))
    corners = cut[:, 0, :, 0, 0]  # (B, T)
    assert len(corners.flatten().unique()) > 3
    row, column = corners // side, corners % side
    assert max(row.max(), column.max()) <= 8
    expected = corners[..., None, None] + place[:32, :32]
    assert torch.equal(cut[:, 0], expected)
    task.eval()
    centred = task._shift_frames(clips[:, 0], rows(3))
    assert torch.equal(centred[:, 0], place[4:36, 4:36].expand(3, 3, 32, 32))


def test_colour_classes_are_found_where_the_colours_are():
    _, task = build(num_classes=2, num_references=1)
    clips = random_clips(task, 2)
    clips[0, 0, 1:], clips[1, 0, 1:] = 2.0, -1.0
    task.prepare(batch_of(task, clips), seed=0)
    found = task.centroids[0][task.centroids[0, :, 0].argsort()]
    torch.testing.assert_close(found, torch.tensor([[-1.0, -1.0], [2.0, 2.0]]))


def test_chance_is_the_majority_class():
    classes = torch.tensor([0, 0, 0, 1]).view(1, 2, 2)
    still, table = torch.zeros(1, 2, 2, dtype=torch.bool), torch.zeros(1, dtype=torch.int64)
    truth = CellTruth(classes, classes, still, table, num_classes=4)
    metric_sums = cell_metrics(torch.zeros_like(classes), truth)
    assert metric_mean(metric_sums["chance"]) == 0.75
    assert metric_mean(metric_sums["accuracy"]) == 0.75
    assert metric_mean(metric_sums["balanced_accuracy"]) == 0.5


def test_a_stage_without_its_own_time_fails():
    encoder = Encoder(EncoderSpec("r3d_18", keep_time=False))
    with pytest.raises(
        ValueError, match=r"res3 has temporal stride 2: set encoder\.keep_time=true"
    ):
        Task(Config(crop_size=32), encoder.stages)


def test_a_crop_that_is_no_multiple_of_the_stride_fails():
    encoder = Encoder(EncoderSpec("tiny"))
    with pytest.raises(ValueError, match="crop_size 34 must be a multiple of res3's stride 4"):
        Task(Config(crop_size=34), encoder.stages)


@pytest.mark.parametrize("hide", ["both", "one"])
@pytest.mark.parametrize("predict", ["classes", "values"])
def test_answers_are_the_metrics_cell_by_cell(hide, predict):
    """What pretext-eval judges, summed up, is what training reports."""
    encoder, task = build(hide=hide, predict=predict, num_references=1)
    batch = batch_of(task, random_clips(task, 3))
    task.prepare(batch, 0)
    encoder.eval()
    task.eval()
    views = task.make_views(batch, rows(3))
    with torch.no_grad():
        features = {"frames": encoder(views.inputs["frames"])[task.stage]}
        metric_sums = task(features, views.targets).metric_sums
    answers = task.predictions(features, views.targets)
    right = (answers.scores.argmax(1) == answers.labels).float()
    assert float(right.mean()) == pytest.approx(metric_mean(metric_sums["accuracy"]), abs=1e-6)
    moving = answers.subsets["moving"]
    assert float(right[moving].mean()) == pytest.approx(
        metric_mean(metric_sums["moving_accuracy"]), abs=1e-6
    )
    copied = (answers.baselines["same cell"] == answers.labels).float()
    assert float(copied.mean()) == pytest.approx(
        metric_mean(metric_sums["shortcut_baseline"]), abs=1e-6
    )
    assert answers.videos.unique().tolist() == [0, 1, 2]


def test_raw_products_are_compared_where_asked():
    _, cosine = build(num_references=1)
    _, dot = build(num_references=1, similarity="dot", temperature=1.0)
    maps = FeatureMaps(torch.randn(2, 64, 2, 4, 4), 1, 4)
    assert torch.allclose(cosine._embed(maps).norm(dim=2), torch.ones(2, 2, 4, 4), atol=1e-5)
    expected = dot.head(maps.data).transpose(1, 2)
    assert torch.equal(dot._embed(maps), expected)
