import logging

import pytest
import torch

from videossl.data.dataset import ClipDataset
from videossl.data.manifest import read_manifest
from videossl.distributed import World
from videossl.engine import build
from videossl.engine.build import resolve_decode_device, videos_per_second
from videossl.errors import UserError
from videossl.types import ClipSpec

CPU = World(0, 1, 0, torch.device("cpu"))
GPU = World(0, 1, 3, torch.device("cuda", 3))


def rates(**by_device: float):
    def measure(device: str) -> float:
        return by_device[device.split(":")[0]]

    return measure


def forbidden(device: str) -> float:
    raise AssertionError("nothing is to be measured")


@pytest.mark.parametrize("asked", ["auto", "cpu"])
def test_without_a_gpu_it_is_the_processor_at_once(asked):
    assert resolve_decode_device(asked, CPU, forbidden) == "cpu"


def test_what_is_asked_for_is_not_measured():
    assert resolve_decode_device("cpu", GPU, forbidden) == "cpu"
    assert resolve_decode_device("cuda", GPU, forbidden) == "cuda:3"


@pytest.mark.parametrize(
    ("cuda", "cpu", "winner"), [(812.4, 300.0, "cuda:3"), (90.0, 300.0, "cpu")]
)
def test_auto_takes_the_quicker_and_says_both_figures(caplog, cuda, cpu, winner):
    with caplog.at_level(logging.INFO, "videossl"):
        assert resolve_decode_device("auto", GPU, rates(cuda=cuda, cpu=cpu)) == winner
    assert f"cuda {cuda:.0f} videos/s, cpu {cpu:.0f}" in caplog.text


def test_auto_is_the_processor_where_the_gpu_cannot_decode(caplog):
    def measure(device: str) -> float:
        raise UserError("cannot decode on cuda: no FFmpeg")

    with caplog.at_level(logging.INFO, "videossl"):
        assert resolve_decode_device("auto", GPU, measure) == "cpu"
    assert "cpu, because cannot decode on cuda: no FFmpeg" in caplog.text


def test_cuda_in_a_process_on_the_processor_says_what_to_set():
    with pytest.raises(UserError, match=r"set device=cuda, or decode\.device=cpu"):
        resolve_decode_device("cuda", CPU, forbidden)


def test_the_loader_is_measured(video_folder, monkeypatch):
    monkeypatch.setattr(build, "PROBE_SECONDS", 0.2)
    dataset = ClipDataset(
        read_manifest(video_folder), [ClipSpec(1, 4, 1 / 12, 24)], seed=0, short_side=48
    )
    assert videos_per_second(dataset, num_workers=1, timeout_seconds=30) > 0
