"""Every task of videossl/pretext in one model: any set of them must train together."""

import torch

from videossl.config import validate
from videossl.engine.multitask import MultiTask
from videossl.models.encoder import Encoder, EncoderSpec
from videossl.pretext import available, load
from videossl.rng import RowRandom, row_random
from videossl.types import ClipBatch

SETTINGS: dict[str, dict[str, object]] = {
    "colorization": {"frame_jitter": 4},
    "cpc": {"num_blocks": 3, "num_predicted": 1, "block_frames": 2},
    "playback_speed": {"num_frames": 3},
    "random_walk": {"patch_size": 16, "grid": 3, "frame_jitter": 4},
    "relative_position": {"gap": 4, "jitter": 2},
}
NUM_VIDEOS = 2


def build() -> MultiTask:
    torch.manual_seed(0)
    encoder = Encoder(EncoderSpec("tiny"))
    tasks = {}
    for name in available():
        config = validate(load(name).Config, {"crop_size": 32, **SETTINGS.get(name, {})})
        tasks[name] = load(name)(config, encoder.stages)
    return MultiTask(encoder, tasks, dict.fromkeys(tasks, 1.0))


def batch_for(model: MultiTask) -> ClipBatch:
    random = torch.Generator().manual_seed(1)
    clips, times = {}, {}
    for spec in sorted({task.clip_spec for _, task in model.named_tasks()}):
        size = spec.crop_size
        shape = (NUM_VIDEOS, spec.num_clips, 3, spec.num_frames, size, size)
        clips[spec] = torch.randn(shape, generator=random)
        times[spec] = torch.zeros(NUM_VIDEOS, spec.num_clips, spec.num_frames).double()
    return ClipBatch(clips, times, torch.arange(NUM_VIDEOS))


def rows() -> RowRandom:
    device = torch.device("cpu")
    return row_random(0, "views", rank=0, world_size=1, num_rows=NUM_VIDEOS, device=device)


def test_all_tasks_train_together():
    model = build().train()
    batch = batch_for(model)
    for _, task in model.named_tasks():
        task.prepare(batch, 0)
    loss, results = model(model.make_views(batch, rows()))
    loss.backward()
    assert results.keys() == set(available())
    without = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_a_task_judges_beside_all_others_as_it_does_alone():
    """One encoder pass for all of them: rows of other tasks, deeper or shallower, must not show."""
    model = build().eval()
    batch = batch_for(model)
    for _, task in model.named_tasks():
        task.prepare(batch, 0)
    views = model.make_views(batch, rows())
    with torch.no_grad():
        _, together = model(views)
        for name, task in model.named_tasks():
            _, alone = MultiTask(model.encoder, {name: task}, {name: 1.0}).eval()(
                {name: views[name]}
            )
            torch.testing.assert_close(together[name].loss, alone[name].loss, rtol=1e-4, atol=1e-5)
