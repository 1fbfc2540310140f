import pytest
import torch

from videossl.config import validate
from videossl.models.encoder import Encoder, EncoderSpec
from videossl.pretext.arrow_of_time import ArrowOfTimeConfig, Task
from videossl.rng import row_random
from videossl.types import ClipBatch, metric_mean

CPU = torch.device("cpu")


def build(**settings) -> tuple[Encoder, Task]:
    torch.manual_seed(0)
    config = validate(ArrowOfTimeConfig, {"crop_size": 32, "num_frames": 4, **settings})
    encoder = Encoder(EncoderSpec("tiny")).eval()
    return encoder, Task(config, encoder.stages).eval()


def judge(encoder: Encoder, task: Task, clips: torch.Tensor):
    spec = task.clip_spec
    times = torch.zeros(len(clips), 1, spec.num_frames, dtype=torch.float64)
    batch = ClipBatch({spec: clips[:, None]}, {spec: times}, torch.arange(len(clips)))
    rng = row_random(0, "views", 0, rank=0, world_size=1, num_rows=len(clips), device=CPU)
    views = task.make_views(batch, rng)
    features = {name: encoder(views.clips(name))[task.stage] for name in views.names}
    return views, task(features, views.targets)


def random_clips(num: int = 6) -> torch.Tensor:
    return torch.randn(num, 3, 4, 32, 32, generator=torch.Generator().manual_seed(3))


def test_both_directions_are_one_tensor_and_its_flip():
    encoder, task = build()
    clips = random_clips()
    views, _ = judge(encoder, task, clips)
    assert torch.equal(views.clips("forward"), clips)
    assert torch.equal(views.clips("backward"), clips[:, :, [3, 2, 1, 0]])


def test_a_reversed_clip_is_judged_the_other_way_round():
    encoder, task = build()
    clips = random_clips()
    _, result = judge(encoder, task, clips)
    _, reversed_result = judge(encoder, task, clips.flip(2))
    accuracy = metric_mean(result.metric_sums["accuracy"])
    assert metric_mean(reversed_result.metric_sums["accuracy"]) == pytest.approx(1 - accuracy)


def test_clips_without_motion_are_left_out():
    encoder, task = build(min_motion=0.02)
    clips = random_clips()
    clips[:4] = clips[:4, :, :1]
    _, result = judge(encoder, task, clips)
    _, counts = result.metric_sums["accuracy"]
    assert float(counts) == 2
    assert metric_mean(result.metric_sums["moving_share"]) == pytest.approx(2 / 6)
    _, of_static = judge(encoder, task, clips[:4])
    assert float(of_static.loss.detach()) == 0


def test_a_palindrome_scores_exactly_chance():
    """A clip equal to its reversal shows no direction: any other score would be a leak."""
    encoder, task = build(min_motion=0.0)
    clips = random_clips()
    clips[:, :, 2:] = clips[:, :, [1, 0]]
    _, result = judge(encoder, task, clips)
    assert metric_mean(result.metric_sums["accuracy"]) == 0.5


def test_too_few_frames_for_the_groups_fails():
    encoder = Encoder(EncoderSpec("tiny"))
    with pytest.raises(ValueError, match="2 frames give fewer features in time than num_groups 3"):
        Task(ArrowOfTimeConfig(num_frames=2, num_groups=3), encoder.stages)


def test_clips_that_order_verification_asks_for_too_are_encoded_once():
    from videossl.config import Config
    from videossl.engine.build import build_model

    window = {"crop_size": 32, "num_frames": 4, "seconds_between_frames": 0.1}
    window |= {"min_gap_seconds": 0.1, "window_seconds": 1.0}
    tasks = {"order_verification": window, "arrow_of_time": {**window, "num_clips": 5}}
    model = build_model(validate(Config, {"out": "unused", "tasks": tasks})).eval()
    (spec,) = {task.clip_spec for _, task in model.named_tasks()}
    clips = torch.randn(2, 5, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    batch = ClipBatch({spec: clips}, {spec: torch.zeros(2, 5, 4).double()}, torch.arange(2))
    rng = row_random(0, "views", 0, rank=0, world_size=1, num_rows=2, device=CPU)
    views = model.make_views(batch, rng)
    seen = []
    for part in (model.encoder.stem, *model.encoder.blocks.values()):
        part.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    _, results = model(views)
    assert seen == [
        10,
        10,
        10,
        20,
        20,
    ]  # stem to res3 see frames alone, res4 and res5 both directions
    assert float(results["arrow_of_time"].metric_sums["moving_share"][1].sum()) == 2 * 5
