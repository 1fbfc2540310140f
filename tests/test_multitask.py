import itertools
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from videossl.config import Config, validate
from videossl.engine.build import build_model
from videossl.engine.multitask import MultiTask, Request, SharedPass
from videossl.models.encoder import ENCODERS, STAGES, Encoder, EncoderSpec
from videossl.rng import generator, row_random
from videossl.types import ClipBatch, Views

CPU = torch.device("cpu")
CONFIG = {
    "out": "unused",
    "tasks": {
        "order_verification": {"crop_size": 32, "num_frames": 4, "dropout": 0.0},
        "arrow_of_time": {"crop_size": 32, "num_frames": 4, "dropout": 0.0, "min_motion": 0.0},
        "colorization": {
            "crop_size": 32,
            "frame_jitter": 0,
            "num_references": 3,
            "weight": 2.0,
            "num_classes": 4,
        },
    },
}
NUM_VIDEOS = 4


def build() -> MultiTask:
    torch.manual_seed(0)
    return build_model(validate(Config, CONFIG))


def batch_rows(model: MultiTask, start: int = 0, stop: int = NUM_VIDEOS) -> ClipBatch:
    """Rows [start, stop) of one global batch."""
    clips, times = {}, {}
    for index, spec in enumerate(sorted({task.clip_spec for _, task in model.named_tasks()})):
        shape = (NUM_VIDEOS, spec.num_clips, 3, spec.num_frames, spec.crop_size, spec.crop_size)
        clips[spec] = torch.randn(shape, generator=generator(0, index))[start:stop]
        times[spec] = torch.zeros(
            stop - start, spec.num_clips, spec.num_frames, dtype=torch.float64
        )
    return ClipBatch(clips, times, torch.arange(start, stop))


def rows(rank: int, world_size: int):
    count = NUM_VIDEOS // world_size
    return row_random(0, "views", 0, rank=rank, world_size=world_size, num_rows=count, device=CPU)


def loss_and_gradients(rank: int, world_size: int) -> tuple[float, dict[str, torch.Tensor]]:
    model = build()
    count = NUM_VIDEOS // world_size
    for _, task in model.named_tasks():
        task.prepare(batch_rows(model), 0)
    # Batch statistics are each process's own in training, as is usual on several GPUs; with fixed ones all is equal.
    model.eval()
    batch = batch_rows(model, rank * count, (rank + 1) * count)
    wrapped = DistributedDataParallel(model) if world_size > 1 else model
    loss, _ = wrapped(model.make_views(batch, rows(rank, world_size)))
    loss.backward()
    mean = loss.detach().clone()
    if world_size > 1:
        dist.all_reduce(mean)
        mean /= world_size
    return float(mean), {name: p.grad for name, p in model.named_parameters()}


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29617")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    result = loss_and_gradients(rank, 2)
    if rank == 0:
        torch.save(result, f"{folder}/result.pt")
    dist.destroy_process_group()


def test_two_processes_give_the_loss_and_gradients_of_one_with_the_whole_batch(tmp_path):
    mp.spawn(_process, (str(tmp_path),), nprocs=2)
    loss, gradients = torch.load(tmp_path / "result.pt")
    expected_loss, expected = loss_and_gradients(0, 1)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        scale = expected[name].abs().max().clamp_min(1e-6)
        torch.testing.assert_close(
            gradient / scale, expected[name] / scale, rtol=0, atol=1e-4, msg=name
        )


def test_the_shared_forward_equals_separate_forwards(monkeypatch):
    model = build().eval()
    views = model.make_views(batch_rows(model), rows(0, 1))
    calls = []
    forward = Encoder.forward
    monkeypatch.setattr(
        Encoder, "forward", lambda self, *a: calls.append(a[0].shape) or forward(self, *a)
    )
    with torch.no_grad():
        together = model.encode(views)
        shapes = {rows.shape[1:] for view in views.values() for rows in view.inputs.values()}
        assert len(calls) == len(shapes)
        for task, by_view in together.items():
            stage = model.tasks[task].stage
            for view, maps in by_view.items():
                alone = model.encoder(views[task].clips(view))[stage]
                # On a CPU the convolution's own blocking depends on the number of rows: the last bits may differ.
                torch.testing.assert_close(maps.data, alone.data, rtol=0, atol=2e-6)


def test_a_tensor_that_two_tasks_share_is_encoded_once(monkeypatch):
    model = build().eval()
    shared = torch.randn(2, 3, 4, 32, 32)
    views = {
        name: Views({"clip": shared if name != "colorization" else shared[:1].clone()})
        for name, _ in model.named_tasks()
    }
    encoded = []
    forward = Encoder.forward
    monkeypatch.setattr(
        Encoder, "forward", lambda self, *a: encoded.append(len(a[0])) or forward(self, *a)
    )
    with torch.no_grad():
        features = model.encode(views)
    assert encoded == [3]
    assert torch.equal(
        features["arrow_of_time"]["clip"].data, features["order_verification"]["clip"].data
    )


def test_learned_weights_are_those_of_kendall():
    """At s the factor is exp(-s) and s / 2 is added; the best s of a constant loss l is log(2 l)."""
    torch.manual_seed(0)
    config = {**CONFIG, "train": {"task_weights": "learned"}}
    model = build_model(validate(Config, config)).eval()
    views = model.make_views(batch_rows(model), rows(0, 1))
    fixed = build().eval()
    with torch.no_grad():
        assert torch.equal(model(views)[0], fixed(views)[0])  # it begins where fixed weights are
    results = model(views)[1]
    loss = float(results["arrow_of_time"].loss.detach())
    optimizer = torch.optim.LBFGS([model.log_variances["arrow_of_time"]], max_iter=50)

    def term() -> torch.Tensor:
        optimizer.zero_grad()
        value = model.terms(results)["arrow_of_time"]
        value.backward(retain_graph=True)
        return value

    optimizer.step(term)
    learned = model.learned_weights()
    assert learned["arrow_of_time"] == pytest.approx(1 / (2 * loss), rel=1e-4)
    assert learned["colorization"] == 2.0
    assert fixed.learned_weights() == {}
    assert "log_variances.colorization" in model.state_dict()


@pytest.mark.parametrize("name", ["tiny", "slow_r50", "x3d_s", "r2plus1d_18", "s3d"])
@pytest.mark.parametrize("stages", [("res5", "res5"), ("res3", "res5"), ("res2", "res2")])
def test_reversed_views_are_encoded_as_if_they_had_been_reversed_first(name, stages):
    """Shallow and deep readers of a clip and its reversal, of one with a reversal alone, and of one without."""
    torch.manual_seed(0)
    encoder = Encoder(EncoderSpec(name)).eval()
    x, y, z = (torch.randn(2, 3, 4, 32, 32) for _ in range(3))
    first, second = (STAGES.index(stage) for stage in stages)
    requests = [
        Request("a", "forward", x, first),
        Request("a", "backward", x, second, is_reversed=True),
        Request("b", "backward", y, first, is_reversed=True),
        Request("c", "forward", z, second),
        Request("d", "forward", x, second),
    ]
    with torch.no_grad():
        found = SharedPass(requests, encoder).run()
        assert [request for request, _ in found] == requests
        for request, maps in found:
            rows = request.rows.flip(2) if request.is_reversed else request.rows
            alone = encoder(rows)[STAGES[request.depth]]
            scale = alone.data.abs().max()
            torch.testing.assert_close(maps.data / scale, alone.data / scale, rtol=0, atol=1e-5)


def test_frame_wise_stages_are_those_where_a_frame_changes_no_other():
    for name in ENCODERS:
        encoder = Encoder(EncoderSpec(name)).eval()
        for parameter in encoder.parameters():
            if parameter.ndim == 1:  # a branch that begins at zero would hide what it sees
                torch.nn.init.uniform_(parameter, 0.5, 1.0)
        x = torch.randn(1, 3, 6, 32, 32)
        changed = x.clone()
        changed[:, :, 3] += 1
        with torch.no_grad():
            pairs = [(encoder(x)[s].data, encoder(changed)[s].data) for s in encoder.stages]
        others = [0, 1, 2, 4, 5]
        alike = [
            a.shape[2] == 6 and torch.allclose(a[:, :, others], b[:, :, others], atol=1e-6)
            for a, b in pairs
        ]
        pairs = zip(encoder.stages, alike, strict=True)
        expected = tuple(stage for stage, _ in itertools.takewhile(lambda pair: pair[1], pairs))
        assert encoder.frame_wise_stages == expected, name
