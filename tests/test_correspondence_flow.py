"""Colours along a path: what is hidden, what the second frame hands on, and that the answer cannot leak."""

import pytest
import torch

from videossl.engine.multitask import MultiTask
from videossl.models.encoder import Encoder, EncoderSpec
from videossl.pretext.correspondence_flow import CorrespondenceFlowConfig, Task
from videossl.rng import row_random
from videossl.types import ClipBatch, FeatureMaps, metric_mean

CPU = torch.device("cpu")


def build(**settings) -> tuple[MultiTask, Task]:
    torch.manual_seed(0)
    encoder = Encoder(EncoderSpec("tiny", deepest_stage="res3"))
    config = CorrespondenceFlowConfig(
        **{"crop_size": 32, "frame_jitter": 4, "num_classes": 5, "radius": 3, **settings}
    )
    task = Task(config, encoder.stages)
    return MultiTask(encoder, {"correspondence_flow": task}, {"correspondence_flow": 1.0}), task


def batch_of(task: Task, num_videos: int) -> ClipBatch:
    spec = task.clip_spec
    generator = torch.Generator().manual_seed(1)
    clips = torch.randn(num_videos, 1, 3, 3, spec.crop_size, spec.crop_size, generator=generator)
    return ClipBatch(
        {spec: clips}, {spec: torch.zeros(num_videos, 1, 3).double()}, torch.arange(num_videos)
    )


def rows(count: int):
    return row_random(2, "v", rank=0, world_size=1, num_rows=count, device=CPU)


def test_one_or_two_channels_are_hidden_in_all_frames_and_the_rest_is_scaled_up():
    _, task = build(frame_jitter=0)
    task.train()
    batch = batch_of(task, 400)
    clips = batch.clips[task.clip_spec][:, 0]
    view = task.make_views(batch, rows(400)).inputs["frames"]
    kept = (view != 0).flatten(2).any(2)  # (B, 3)
    counts = torch.bincount(3 - kept.sum(1), minlength=3).tolist()
    assert counts[0] == pytest.approx(0.3 * 400, abs=40)
    assert counts[1] == pytest.approx(0.35 * 400, abs=40)
    assert sum(counts[:3]) == 400
    for clip, shown, keep in zip(clips, view, kept, strict=True):
        scale = 3 / int(keep.sum())
        torch.testing.assert_close(shown, clip * keep[:, None, None, None] * scale)
    assert kept.float().mean(0).tolist() == pytest.approx([0.65] * 3, abs=0.08)
    task.eval()
    in_evaluation = task.make_views(batch, rows(400)).inputs["frames"]
    assert bool(((in_evaluation != 0).flatten(2).any(2).sum(1) < 3).all())


def test_hidden_channels_do_not_reach_the_features():
    model, task = build()
    batch = batch_of(task, 8)
    clips = batch.clips[task.clip_spec].requires_grad_()
    with torch.enable_grad():
        views = Task.make_views.__wrapped__(task, batch, rows(8))  # as it is, without no_grad
        model.encode({"correspondence_flow": views})["correspondence_flow"][
            "frames"
        ].data.sum().backward()
    gradient = clips.grad[:, 0].abs().flatten(2).sum(2)
    hidden = ~(views.inputs["frames"] != 0).flatten(2).any(2)
    assert hidden.any()
    assert float(gradient[hidden].abs().max()) == 0
    assert float(gradient[~hidden].min()) > 0


def test_the_loss_equals_the_three_copies_by_hand():
    _, task = build(radius=None, frame_jitter=0, sampling_from=0.0, sampling_to=0.0)
    task.eval()
    batch = batch_of(task, 2)
    task.prepare(batch, 0)
    targets = task.make_views(batch, rows(2)).targets
    maps = FeatureMaps(torch.randn(2, 64, 3, 8, 8), 1, 4)
    loss = task({"frames": maps}, targets).loss
    z = torch.nn.functional.normalize(task.head(maps.data), dim=1).flatten(3).movedim(2, 1)
    labels = (
        torch.nn.functional.one_hot(targets["classes"], 5).float().flatten(2, 3)
    )  # (B, T, hw, K)

    def copied(target, source, values):
        weights = (z[:, target].mT @ z[:, source] / 0.07).softmax(-1)
        return weights @ values

    second = copied(1, 0, labels[:, 0])
    third = copied(2, 1, second)
    back = copied(0, 1, copied(1, 2, third))

    def nll(shares, frame):
        return -(labels[:, frame] * (shares + 1e-6).log()).sum(-1).mean()

    expected = (nll(second, 1) + nll(third, 2)) / 2 + 0.1 * nll(back, 0)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("batches", "share"), [(0, 0.9), (50, 0.75), (100, 0.6), (1000, 0.6)])
def test_the_share_of_true_classes_falls(batches, share):
    _, task = build(sampling_steps=100)
    task.num_batches.fill_(batches)
    assert float(task._share_of_truth()) == pytest.approx(share)


def test_training_counts_its_batches_and_evaluation_does_not():
    _, task = build()
    batch = batch_of(task, 2)
    task.prepare(batch, 0)
    maps = {"frames": FeatureMaps(torch.randn(2, 64, 3, 8, 8), 1, 4)}
    task.train()
    task(maps, task.make_views(batch, rows(2)).targets)
    task.eval()
    result = task(maps, task.make_views(batch, rows(2)).targets)
    assert int(task.num_batches) == 1
    answers = task.predictions(maps, task.make_views(batch, rows(2)).targets)
    right = (answers.scores.argmax(1) == answers.labels).float().mean()
    assert float(right) == pytest.approx(metric_mean(result.metric_sums["accuracy"]))


def test_a_crop_that_cells_do_not_divide_fails():
    with pytest.raises(ValueError, match="crop_size 30 must be a multiple of res3's stride 4"):
        build(crop_size=30)
