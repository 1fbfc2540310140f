"""Norms and cosines of the tasks' gradients, against plain backward passes."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_multitask import batch_rows, build, rows

from videossl.engine.multitask import TaskGradients, describe_gradients


def test_norms_and_cosines_are_those_of_separate_backward_passes():
    model = build().eval()
    for _, task in model.named_tasks():
        task.prepare(batch_rows(model), 0)
    views = model.make_views(batch_rows(model), rows(0, 1))
    alone = {}
    for name, _ in model.named_tasks():
        model.zero_grad()
        _, results = model(views)
        model.terms(results)[name].backward()
        alone[name] = torch.cat(
            [
                (torch.zeros_like(p) if p.grad is None else p.grad).flatten()
                for p in model.encoder.parameters()
            ]
        )
    gradients = TaskGradients(model.encoder)
    _, results = model(views)
    gradients.measure(model.terms(results))
    values = gradients.read()
    assert values["norm"].keys() == alone.keys()
    for name, gradient in alone.items():
        torch.testing.assert_close(values["norm"][name], float(gradient.norm()), rtol=1e-4, atol=0)
    assert len(values["cosine"]) == 3
    for pair, cosine in values["cosine"].items():
        first, second = (alone[name] for name in pair.split())
        expected = float(torch.nn.functional.cosine_similarity(first, second, dim=0))
        torch.testing.assert_close(cosine, expected, rtol=1e-3, atol=1e-5)
    assert gradients.read() == {}
    assert "arrow_of_time x colorization " in describe_gradients(values)


def test_measuring_leaves_the_step_as_it_is():
    states = []
    for measures in (False, True):
        model = build()
        views = model.make_views(batch_rows(model), rows(0, 1))
        torch.manual_seed(0)
        loss, results = model(views)
        if measures:
            TaskGradients(model.encoder).measure(model.terms(results))
        loss.backward()
        states.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def measure_on_half(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    weight = torch.nn.Linear(3, 1, bias=False)
    torch.nn.init.ones_(weight.weight)
    gradients = TaskGradients(weight)
    x = torch.tensor([[1.0, 0, 0], [0, 2.0, 0]])[rank]
    gradients.measure({"a": weight(x).sum(), "b": weight(torch.tensor([1.0, 0, 0])).sum()})
    values = gradients.read()
    # a's gradient is the mean of (1, 0, 0) and (0, 2, 0), b's is (1, 0, 0)
    torch.testing.assert_close(values["norm"], {"a": 1.25**0.5, "b": 1.0}, rtol=1e-6, atol=0)
    torch.testing.assert_close(values["cosine"], {"a b": 0.5 / 1.25**0.5}, rtol=1e-6, atol=0)
    dist.destroy_process_group()


def test_gradients_are_means_over_ranks(tmp_path):
    mp.spawn(measure_on_half, (str(tmp_path),), nprocs=2)
